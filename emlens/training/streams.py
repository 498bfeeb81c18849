"""The stream of a model under training: interventions applied in its passes, blocks read with their
gradients, vectors trained.

Interventions are those of `emlens.interventions`, at `resid_pre` and `resid_post` and at every
token; what needs to know where a prompt ends is refused. Hooks exist inside a context only.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emlens.foundation.errors import InputError
from emlens.foundation.intervention import Edit, Intervention, PaddedRows
from emlens.foundation.sites import SITE_KINDS, Site
from emlens.models.architectures import architecture_of

_NO_ROWS = PaddedRows((), (), (), (), 0)
_KINDS = ("resid_pre", "resid_post")


def blocks_of(module: nn.Module) -> Sequence[nn.Module]:
    """The blocks of the language model inside a module under training."""
    model: Any = module.model if isinstance(module, SteeredModel) else module
    if hasattr(model, "get_base_model"):  # an adapter of peft
        model = model.get_base_model()
    architecture = architecture_of(model)
    blocks: Any = architecture.module(model, architecture.layers)
    return list(blocks)


def check_edits(
    interventions: Sequence[Intervention], n_layers: int | None = None
) -> list[tuple[Site, Edit]]:
    """What interventions do at which sites of a model with `n_layers` blocks; without a count only
    what needs none is checked.

    Raises:
        InputError: tokens other than all; a site that is not a stream between blocks, or that the
            model lacks.
    """
    for intervention in interventions:
        if intervention.positions != "all":
            raise InputError(
                f"positions={intervention.positions!r}: while training every token is edited;"
                " pass positions='all'"
            )
    if n_layers is None:
        return []
    block_kinds = SITE_KINDS[:-1]
    sites = [Site(kind, i) for i in range(n_layers) for kind in block_kinds]
    sites.append(Site("final_norm"))
    edits = []
    for intervention in interventions:
        for site in intervention.targets(sites):
            if site.kind not in _KINDS:
                raise InputError(
                    f"site {site} lies inside a block; while training pass resid_pre or resid_post"
                )
            edits.append((site, intervention.bind(site, _NO_ROWS)))
    return edits


@contextmanager
def edited(module: nn.Module, interventions: Sequence[Intervention]) -> Iterator[None]:
    """Interventions in every pass inside, with gradients through them.

    Raises:
        InputError: as `check_edits`.
    """
    blocks = blocks_of(module)
    edits = check_edits(interventions, len(blocks))
    with ExitStack() as stack:
        for site, edit in edits:
            block = blocks[site.layer or 0]
            if site.kind == "resid_post":
                handle = block.register_forward_hook(_after(edit))
            else:
                handle = block.register_forward_pre_hook(_before(edit), with_kwargs=True)
            stack.callback(handle.remove)
        yield


@contextmanager
def read(module: nn.Module, layers: Sequence[int]) -> Iterator[list[Tensor]]:
    """The stream after some blocks in the last pass inside, in the order in which the pass reached
    them.
    """
    blocks = blocks_of(module)
    streams: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        # Blocks of some architectures give a tuple, whose first entry is the stream.
        streams.append(output[0] if isinstance(output, tuple) else output)

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(blocks[layer].register_forward_hook(keep).remove)
        yield streams


def _after(edit: Edit) -> Any:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (edit(output[0], None), *output[1:])
        return edit(output, None)

    return hook


def _before(edit: Edit) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (edit(args[0], None), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"], None)}

    return hook


class SteeredModel(nn.Module):
    """A frozen model with one trained vector per block, added to the stream after it.

    It is added at every token; all vectors begin at zero.

    Raises:
        InputError: a block that the model lacks.
    """

    def __init__(self, model: Any, layers: Sequence[int]):
        super().__init__()
        self.model = model.requires_grad_(False)
        count = len(blocks_of(model))
        if max(layers) >= count:
            raise InputError(
                f"layers_to_transform={tuple(layers)} names a block the model does not have;"
                f" it has 0 to {count - 1}"
            )
        vectors = {}
        for layer in layers:
            zeros = torch.zeros(model.config.hidden_size, device=model.device)
            vectors[str(layer)] = nn.Parameter(zeros)
        self.vectors = nn.ParameterDict(vectors)
        self.config = model.config
        self._steers = True

    def forward(self, **inputs: Any) -> Any:
        blocks = blocks_of(self.model)
        with ExitStack() as stack:
            if self._steers:
                for layer, vector in self.vectors.items():
                    hook = _after(_Adding(vector))
                    stack.callback(blocks[int(layer)].register_forward_hook(hook).remove)
            return self.model(**inputs)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Without the vectors inside; named as in peft."""
        self._steers = False
        try:
            yield
        finally:
            self._steers = True

    def save(self, directory: Path) -> None:
        """Write the vectors as interventions, which `emlens.interventions.load_interventions`
        reads.
        """
        from emlens.interventions import save_interventions, steer

        interventions = []
        for layer, vector in self.vectors.items():
            interventions.append(steer(vector.detach(), 1.0, at=[f"resid_post.{layer}"]))
        save_interventions(directory, interventions)

    @classmethod
    def load(cls, model: Any, directory: Path) -> "SteeredModel":
        """The model with saved vectors."""
        from emlens.interventions import load_interventions

        vectors = {}
        for intervention in load_interventions(directory):
            layer = int(str(intervention.at[0]).rpartition(".")[2])
            vectors[layer] = intervention.tensors()["vector"]
        steered = cls(model, list(vectors))
        with torch.no_grad():
            for layer, vector in vectors.items():
                steered.vectors[str(layer)].copy_(vector)
        return steered


class _Adding(Edit):
    def __init__(self, vector: Tensor):
        self.vector = vector

    def __call__(self, activation: Any, mask: Any) -> Any:
        return activation + self.vector.to(activation.dtype)
