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
from emlens.foundation.sites import Site
from emlens.models.architectures import architecture_of

_NO_ROWS = PaddedRows((), (), (), (), 0)
_KINDS = ("resid_pre", "resid_post")


def blocks_of(module: nn.Module) -> Sequence[nn.Module]:
    """The blocks of the language model inside a module under training."""
    model: Any = module.model if isinstance(module, SteeredModel) else module
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    found: Any = architecture_of(model).module(model, architecture_of(model).layers)
    return list(found)


def check_edits(
    interventions: Sequence[Intervention], n_layers: int | None = None
) -> list[tuple[Site, Edit]]:
    """What interventions do at which sites of a model with so many blocks; without a count only
    what needs none is checked.

    Raises:
        InputError: tokens other than all; a site that is no stream between blocks, or that the
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
    sites = [
        Site(kind, i)
        for i in range(n_layers)
        for kind in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
    ]
    found = []
    for intervention in interventions:
        for site in intervention.targets([*sites, Site("final_norm")]):
            if site.kind not in _KINDS:
                raise InputError(
                    f"site {site} lies inside a block; while training pass resid_pre or resid_post"
                )
            found.append((site, intervention.bind(site, _NO_ROWS)))
    return found


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
                stack.callback(block.register_forward_hook(_after(edit)).remove)
            else:
                stack.callback(
                    block.register_forward_pre_hook(_before(edit), with_kwargs=True).remove
                )
        yield


@contextmanager
def read(module: nn.Module, layers: Sequence[int]) -> Iterator[list[Tensor]]:
    """The stream after some blocks in the last pass inside, in the order in which the pass reached
    them.
    """
    blocks = blocks_of(module)
    found: list[Tensor] = []
    with ExitStack() as stack:
        for layer in layers:

            def keep(_module: nn.Module, _args: Any, output: Any) -> None:
                found.append(output[0] if isinstance(output, tuple) else output)

            stack.callback(blocks[layer].register_forward_hook(keep).remove)
        yield found


def _after(edit: Edit) -> Any:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        return (
            (edit(output[0], None), *output[1:])
            if isinstance(output, tuple)
            else edit(output, None)
        )

    return hook


def _before(edit: Edit) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (edit(args[0], None), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"], None)}

    return hook


class SteeredModel(nn.Module):
    """A frozen model with one trained vector a block, added to the stream after it at every token;
    all begin at zero.

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
        self.vectors = nn.ParameterDict(
            {
                str(i): nn.Parameter(torch.zeros(model.config.hidden_size, device=model.device))
                for i in layers
            }
        )
        self.config = model.config
        self._steers = True

    def forward(self, **inputs: Any) -> Any:
        blocks = blocks_of(self.model)
        with ExitStack() as stack:
            if self._steers:
                for layer, vector in self.vectors.items():
                    stack.callback(
                        blocks[int(layer)].register_forward_hook(_after(_Adding(vector))).remove
                    )
            return self.model(**inputs)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Without the vectors inside, as peft says it of its adapters."""
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

        save_interventions(
            directory,
            [
                steer(vector.detach(), 1.0, at=[f"resid_post.{i}"])
                for i, vector in self.vectors.items()
            ],
        )

    @classmethod
    def load(cls, model: Any, directory: Path) -> "SteeredModel":
        """The model with saved vectors."""
        from emlens.interventions import load_interventions

        found = {
            int(str(one.at[0]).rpartition(".")[2]): one.tensors()["vector"]
            for one in load_interventions(directory)
        }
        steered = cls(model, list(found))
        with torch.no_grad():
            for layer, vector in found.items():
                steered.vectors[str(layer)].copy_(vector)
        return steered


class _Adding(Edit):
    def __init__(self, vector: Tensor):
        self.vector = vector

    def __call__(self, activation: Any, mask: Any) -> Any:
        return activation + self.vector.to(activation.dtype)
