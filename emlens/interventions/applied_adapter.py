"""A model under an adapter that lies in memory only; undone when the block ends.

Edits of an adapter can be tried without writing them to disk. During a pass, a hook adds
scale · B A x to each module's output, so any rank will do and no weight is touched. Like
interventions the update belongs to one model object and to the context that opened the block:
neither other threads and tasks nor other models on the same weights see it. Captures record its
hash. Cost: a copy of the adapter on the model's device, and a hook and two thin products per module
and pass.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from emlens.foundation.errors import InputError, StateError
from emlens.foundation.provenance import hash_tensors
from emlens.interventions.lora import LoraAdapter, LoraFactors
from emlens.models.checkpoint import CheckpointModel
from emlens.models.edit_blocks import ModuleUpdate, ModuleUpdates
from emlens.models.hooked import HookedModel


@contextmanager
def applied_adapter(model: HookedModel, adapter: LoraAdapter) -> Iterator[HookedModel]:
    """The model with the adapter's update added to what it computes, inside the block.

    Raises:
        StateError: a backend without modules, or a model that has an adapter already.
        InputError: a module that the model does not have, or of another shape; an embedding.
    """
    if not isinstance(model, CheckpointModel):
        raise StateError(
            f"{model.name!r} runs on backend {model.backend!r};"
            " pass the parent that the adapter is for, loaded with backend='transformers'"
        )
    if model.adapter is not None:
        raise StateError(
            f"{model.name!r} has adapter {model.adapter!r} already;"
            " pass the parent that the adapter is for"
        )
    updates = []
    for path, factors in adapter.modules.items():
        weight = _weight_of(model, path, factors)
        # the scale goes into B once, not into every pass
        a, b = factors.a.to(weight), (factors.b * factors.scale).to(weight)
        updates.append(ModuleUpdate(path, weight, a, b))
    with model.updated(ModuleUpdates(tuple(updates), _record_of(updates))):
        yield model


def _record_of(updates: Sequence[ModuleUpdate]) -> dict[str, Any]:
    factors: dict[str, Tensor] = {}
    for update in updates:
        factors |= {f"{update.path}.a": update.a, f"{update.path}.b": update.b}
    return {"kind": "applied_adapter", "modules": len(updates), "sha256": hash_tensors(factors)}


def _weight_of(model: CheckpointModel, path: str, factors: LoraFactors) -> Tensor:
    """The weights of the module that an update is for.

    Raises:
        InputError: no such module, an embedding, or weights of another shape.
    """
    if factors.embedding:
        raise InputError(
            f"{path} is an embedding, whose update is not a product with its input;"
            " load the adapter with FineTune instead"
        )
    try:
        module: Any = model.module.get_submodule(path)
    except AttributeError:
        raise InputError(
            f"{model.name!r} has no module {path!r}; pass an adapter of this model"
        ) from None
    # PEFT wraps a linear layer it has adapted, and the weights lie one level down
    weight: Tensor = getattr(module, "base_layer", module).weight
    # a set: Conv1D keeps its weights transposed
    if set(weight.shape) != {factors.b.shape[0], factors.a.shape[1]}:
        raise InputError(
            f"{path} has weights of shape {tuple(weight.shape)},"
            f" the update is {factors.b.shape[0]} × {factors.a.shape[1]}"
        )
    return weight
