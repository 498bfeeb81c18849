"""One run whose weights are split over its processes: `fully_shard` of PyTorch (FSDP2).

A process holds its part of every weight, trained or frozen, and of gradients and optimiser states.
The weights of a block are put together where the block runs, and dropped after it; those outside
the blocks (embeddings, last norm, output layer) are whole from the beginning of a pass to its end.
Each process reads the whole parent before it is split. At the end the first process puts the
trained weights together on the processor, to write them.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from emlens.foundation.errors import InputError
from emlens.training.parallel import Group, LossOfPart
from emlens.training.recipes import FOUR_BITS, Recipe
from emlens.training.streams import blocks_of


def check_split(recipe: Recipe, model: Any, reads_weights: dict[str, bool]) -> None:
    """Refuse what needs whole weights in one process.

    Args:
        model: as given to `fit`: a directory, or a model in memory.
        reads_weights: options of `fit` that read or wrap the model → whether they are given.

    Raises:
        InputError: names it, and what to do instead.
    """
    reasons = {
        "a model in memory would be taken apart; pass its directory": isinstance(model, nn.Module),
        "optimiser 'muon' reads whole matrices; pass 'adamw' or 'lion', or kind: ddp": (
            recipe.optimiser == "muon"
        ),
        f"parent_dtype {recipe.parent_dtype!r} packs its weights, which cannot be split; pass 'own'"
        ", or kind: ddp": recipe.parent_dtype in FOUR_BITS,
    }
    for name, given in reads_weights.items():
        reasons[f"{name} would see a part of each weight; leave it out, or pass kind: ddp"] = given
    for reason, found in reasons.items():
        if found:
            raise InputError(f"parallel: kind 'fsdp': {reason}")


class SplitWeights:
    """A model whose weights are split; what one process keeps to write it.

    Args:
        part: what is run in a step, with the model inside.
        model: the model, with the adapter or vectors that are trained.
        device: where the parts of the weights are held.
    """

    def __init__(self, part: LossOfPart, model: Any, group: Group, device: str):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        from emlens.models.loading import torch_device

        self._model = model
        self._empty = _without_weights(model) if group.writes else None
        mesh = init_device_mesh(torch_device(device).type, (group.count,))
        for block in blocks_of(model):
            fully_shard(block, mesh=mesh)
        fully_shard(part, mesh=mesh)
        # accelerate puts DistributedDataParallel around what is not marked, and refuses DTensors
        part._is_accelerate_prepared = True  # type: ignore[assignment]

    def whole(self) -> Any | None:
        """The model with its trained weights whole, in the first process; None in the others.
        Frozen weights stay without values. All processes must call it.
        """
        empty = {} if self._empty is None else dict(self._empty.named_parameters())
        for name, parameter in self._model.named_parameters():
            if not parameter.requires_grad:
                continue
            weight = whole_tensor(parameter.detach()).cpu()
            if name in empty:
                # in place, so that tied weights stay one
                torch.utils.swap_tensors(empty[name], nn.Parameter(weight))
        return self._empty


def whole_tensor(value: Tensor) -> Tensor:
    """A tensor that may be split over processes, put together; all of them must call it."""
    gather: Callable[[], Tensor] | None = getattr(value, "full_tensor", None)  # of a DTensor
    return value if gather is None else gather()


def _without_weights(model: nn.Module) -> Any:
    """A copy of a model whose parameters have shapes and no values."""
    replaced: dict[int, Any] = {}
    for parameter in model.parameters():
        replaced[id(parameter)] = nn.Parameter(
            parameter.detach().to("meta"), requires_grad=parameter.requires_grad
        )
    return copy.deepcopy(model, replaced)
