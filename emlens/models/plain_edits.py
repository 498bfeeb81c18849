"""Logits under an edit, beside those of plain transformers that makes the same edit without a hook.

Both models add one vector at one site: emlens by an intervention, the plain model in the `forward`
of its own module. Cost: two passes over a few rows for each site.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from emlens.data.prompts import PromptSet
from emlens.foundation.intervention import Edit, PaddedRows
from emlens.foundation.seeds import torch_rng
from emlens.foundation.sites import Site
from emlens.models.checkpoint import CheckpointModel
from emlens.models.loading import make_ready
from emlens.models.parity import relative_difference

_EDITED: Final = 4.0
"""Length of the added vector, in standard deviations of the stream."""


def plain_model(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The module as plain transformers loads it, without settings for generation."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    module = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager")
    module.generation_config = GenerationConfig()
    make_ready(module)
    return module


def edit_difference(model: CheckpointModel, plain: Any, prompts: PromptSet) -> float:
    """The largest relative difference of logits over edits at every place."""
    largest = 0.0
    for layer in range(model.n_layers):
        for site in _sites(model, layer):
            largest = max(largest, _difference_at(model, plain, site, prompts))
    return largest


def _sites(model: CheckpointModel, layer: int) -> list[Site]:
    sites = [Site("resid_post", layer)]
    if layer == 0:
        sites.append(Site("resid_pre", 0))
    if layer == model.n_layers - 1 and "final_norm" in model.site_kinds:
        sites.append(Site("final_norm"))
    return sites


def _vector(model: CheckpointModel) -> Tensor:
    return _EDITED * torch.randn(model.d_model, generator=torch_rng(1, "survey"))


def _difference_at(model: CheckpointModel, plain: Any, site: Site, prompts: PromptSet) -> float:
    """Logits of emlens under an added vector, beside those of the model that adds it itself."""
    with edited_alike(model, plain, site):
        logits = _last_logits(model, prompts)
        plain_logits = []
        for row in model.render(prompts):
            with torch.no_grad():
                output = plain(torch.tensor([row.ids]), use_cache=False)
            plain_logits.append(output.logits[0, -1])
    return relative_difference(logits, torch.stack(plain_logits))


def _last_logits(model: CheckpointModel, prompts: PromptSet) -> Tensor:
    """Scores after the last token of each row, in the model's own precision; one padded batch."""
    rows = model.render(prompts)
    (batch,) = model.batches(rows, 10_000)
    logits = model._logits(batch)
    last: list[Tensor] = [torch.empty(0)] * len(rows)
    for i, index in enumerate(batch.index):
        last[index] = logits[i, len(batch.rows[i].ids) - 1]
    return torch.stack(last)


@contextmanager
def edited_alike(model: CheckpointModel, plain: Any, site: Site) -> Iterator[None]:
    """Both models add the same vector at one site, inside the block."""
    vector = _vector(model)
    with model.intervene([_Added(vector, site)]), _adding(model, plain, site, vector):
        yield


@contextmanager
def _adding(model: CheckpointModel, plain: Any, site: Site, vector: Tensor) -> Iterator[None]:
    """The plain model with a module whose own `forward` adds the vector: no hook is involved."""
    path, is_input = model._place(site)
    module = plain.get_submodule(path)
    module.forward = partial(_forward_and_add, module.forward, vector, is_input)
    try:
        yield
    finally:
        del module.forward


def _forward_and_add(
    forward: Callable[..., Any], vector: Tensor, is_input: bool, *args: Any, **kwargs: Any
) -> Any:
    if is_input:
        if args:
            args = (args[0] + vector, *args[1:])
        else:
            name = next(key for key, value in kwargs.items() if isinstance(value, Tensor))
            kwargs = {**kwargs, name: kwargs[name] + vector}
        return forward(*args, **kwargs)
    output = forward(*args, **kwargs)
    if isinstance(output, tuple | list):
        return type(output)((output[0] + vector, *output[1:]))
    return output + vector


@dataclass(frozen=True, eq=False)
class _Added:
    """A vector added at one site, at every token."""

    vector: Tensor
    site: Site
    positions: Any = "all"
    by_prompt: bool = False

    @property
    def d_model(self) -> int:
        return len(self.vector)

    def targets(self, sites: Sequence[Site]) -> list[Site]:
        return [site for site in sites if site == self.site]

    def bind(self, site: Site, rows: PaddedRows) -> "_Addition":
        return _Addition(self.vector)

    def describe(self) -> dict[str, Any]:
        return {"kind": "added", "site": str(self.site)}


class _Addition(Edit):
    def __init__(self, vector: Tensor):
        self._vector = vector

    def __call__(
        self,
        activation: Float[Tensor, "batch token d_model"],
        mask: Bool[Tensor, "batch token"] | None,
    ) -> Float[Tensor, "batch token d_model"]:
        added = activation + self._vector.to(activation)
        if mask is None:
            return added
        return torch.where(mask[..., None], added, activation)
