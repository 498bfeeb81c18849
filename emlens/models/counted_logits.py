"""Logits at the positions that are read, and at no others.

The output layer is a matrix of d_model × vocabulary: of a small model it is a good part of a pass,
and its logits at prompt tokens and padding are made to be thrown away. Here only the positions that
count reach it. Memory: counted positions × vocabulary, and not rows × tokens × vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


def counted_logits(
    model: nn.Module, inputs: dict[str, Tensor], counted: Bool[Tensor, "row token"]
) -> Float[Tensor, "counted vocab"]:
    """Logits of a pass at the counted positions, row by row, in float32 or wider.

    A model whose output layer cannot be found, or which gives it something else than the stream of
    every token, computes all logits; the counted ones are returned.
    """
    with only_counted(model, counted) as selected:
        logits: Tensor = model(**inputs).logits
    at_counted = selected.of(logits)
    return at_counted if at_counted.dtype == torch.float64 else at_counted.float()


@contextmanager
def only_counted(model: nn.Module, counted: Bool[Tensor, "row token"]) -> Iterator["Selected"]:
    """The output layer reads only the counted positions in a pass inside."""
    selected = Selected(counted)
    head = output_layer(model)
    if head is None:
        yield selected
        return
    handle = head.register_forward_pre_hook(selected)
    try:
        yield selected
    finally:
        handle.remove()


def output_layer(model: nn.Module) -> nn.Module | None:
    """The layer that gives the logits of the language model inside a module, under an adapter or
    whatever else was put around it; None where none says that it is.
    """
    for module in model.modules():
        get: Any = getattr(module, "get_output_embeddings", None)
        if get is None:
            continue
        try:
            head = get()
        except (NotImplementedError, AttributeError):  # transformers defines it on every model
            continue
        if isinstance(head, nn.Module):
            return head
    return None


class Selected:
    """A hook before the output layer, which keeps the counted positions as one row."""

    def __init__(self, counted: Tensor):
        self.counted = counted
        self.applied = False

    def __call__(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        stream = args[0] if args else None
        if not isinstance(stream, Tensor) or stream.shape[:-1] != self.counted.shape:
            return None
        self.applied = True
        return (stream[self.counted.to(stream.device)][None], *args[1:])

    def of(self, logits: Tensor) -> Float[Tensor, "counted vocab"]:
        """The counted positions of what the pass gave."""
        # a module around two models may give the logits of the one whose output layer has no hook
        if self.applied and logits.shape[:-1] == (1, int(self.counted.sum())):
            return logits[0]
        return logits[self.counted.to(logits.device)]
