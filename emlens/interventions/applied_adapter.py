"""A model under an adapter that lies in memory only: edits of an adapter are tried without writing
it, and undone when the block ends.

Each module's output gets scale · B A x added by a hook, so any rank will do and no weight is
touched. Cost: the adapter once more on the model's device, and two thin products a module and pass.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from emlens.foundation.errors import InputError, StateError
from emlens.interventions.lora import LoraAdapter
from emlens.models.checkpoint import CheckpointModel
from emlens.models.hooked import HookedModel


@contextmanager
def applied_adapter(model: HookedModel, adapter: LoraAdapter) -> Iterator[HookedModel]:
    """The model with the adapter's update added to what it computes, inside the block.

    Raises:
        StateError: a backend without modules, or a model that wears an adapter already.
        InputError: a module that the model does not have, or of another shape; an embedding.
    """
    if not isinstance(model, CheckpointModel) or model.adapter is not None:
        what = (
            f"wears {model.adapter!r}"
            if isinstance(model, CheckpointModel)
            else f"runs on backend {model.backend!r}"
        )
        raise StateError(
            f"{model.name!r} {what}; pass the parent that the adapter is for,"
            " loaded with backend='transformers'"
        )
    with ExitStack() as stack:
        for path, factors in adapter.modules.items():
            if factors.embedding:
                raise InputError(
                    f"{path} is an embedding, whose update is no product with its input;"
                    " load the adapter with FineTune instead"
                )
            try:
                module: Any = model.module.get_submodule(path)
            except AttributeError:
                raise InputError(
                    f"{model.name!r} has no module {path!r}; pass an adapter of this model"
                ) from None
            weight: Tensor = getattr(module, "base_layer", module).weight
            if set(weight.shape) != {factors.b.shape[0], factors.a.shape[1]}:
                raise InputError(
                    f"{path} has weights of shape {tuple(weight.shape)},"
                    f" the update is {factors.b.shape[0]} × {factors.a.shape[1]}"
                )
            a, b = factors.a.to(weight), (factors.b * factors.scale).to(weight)
            handle = module.register_forward_hook(_adding(a, b))
            stack.callback(handle.remove)
        yield model


def _adding(a: Tensor, b: Tensor) -> Any:
    def add(module: Any, inputs: Any, output: Tensor) -> Tensor:
        return output + (inputs[0] @ a.T) @ b.T

    return add
