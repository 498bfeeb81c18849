"""What went into and came out of every block, and every part of it, in one small pass.

The hooks here only read and copy. Streams are told from other tensors by their shape alone:
(1, token, d_model), with as many tokens as went in.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from emlens.models.block_outputs import stream_of

TOKENS: Final = 8
_ROUNDINGS: Final = 16
"""Sums may differ by this many roundings of the model's own dtype: blocks add the same terms in
another order.
"""


@dataclass
class BlockStreams:
    """Streams of a block and its children, in the order of the pass.

    Args:
        runs: how often the block ran.
        shape: of the first tensor that went in, whether it can be a stream or not.
    """

    pre: Tensor | None = None
    post: Tensor | None = None
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    runs: int = 0
    shape: tuple[int, ...] = ()


@dataclass
class Recorded:
    """One pass.

    Args:
        blocks: of the one list that was watched.
        after: modules outside the blocks that read the last block's output, with what they gave,
            in the order of the pass.
    """

    blocks: list[BlockStreams]
    after: dict[str, Tensor]


def some_tokens(model: nn.Module, tokens: int = TOKENS) -> Tensor:
    """(1, token) ids that differ from each other where the vocabulary is large enough."""
    weight = model.get_input_embeddings().weight  # type: ignore[operator]
    # not the first ids, which are padding and other special tokens of most models
    return torch.arange(5, 5 + tokens, device=weight.device)[None] % weight.shape[0]


def record(model: nn.Module, decoder: str, layers: str) -> Recorded:
    """Run the decoder over a few tokens.

    Args:
        decoder, layers: paths in `model`; modules inside the decoder but outside the blocks are
            watched too.
    """
    root = model.get_submodule(decoder)
    blocks: Any = model.get_submodule(layers)
    streams = [BlockStreams() for _ in blocks]
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    with torch.no_grad(), ExitStack() as stack:
        for block, streams_of_block in zip(blocks, streams, strict=True):
            _watch_block(stack, block, streams_of_block)
        for path, module in _outside(model, decoder, layers):
            # one that runs twice, such as a norm that also reads the embeddings, is no place
            _watch(stack, module, _OnlyOnce(inputs, path), _OnlyOnce(outputs, path))
        root(input_ids=some_tokens(model), use_cache=False)
    for streams_of_block in streams:
        streams_of_block.outputs = _of_shape(streams_of_block.outputs, streams_of_block.post)
        streams_of_block.inputs = _of_shape(streams_of_block.inputs, streams_of_block.post)
    return Recorded(streams, _after(inputs, outputs, streams[-1].post))


def _outside(model: nn.Module, decoder: str, layers: str) -> Iterator[tuple[str, nn.Module]]:
    """Modules inside the decoder that are not, and do not hold, the blocks."""
    for path, module in model.named_modules():
        is_inside = not decoder or path.startswith(f"{decoder}.")
        is_of_blocks = f"{path}.".startswith(f"{layers}.") or f"{layers}.".startswith(f"{path}.")
        if path and is_inside and not is_of_blocks:
            yield path, module


def _after(
    inputs: dict[str, Tensor], outputs: dict[str, Tensor], last: Tensor | None
) -> dict[str, Tensor]:
    """Modules that read the last block's output; one that changes nothing is passed over."""
    after = {}
    for path, stream in inputs.items():
        if last is None or path not in outputs or not same(stream, last):
            continue
        if not same(outputs[path], last):
            after[path] = outputs[path]
    return after


def _watch_block(stack: ExitStack, block: nn.Module, streams: BlockStreams) -> None:
    for name, child in block.named_children():
        _watch(stack, child, _OnlyOnce(streams.inputs, name), _OnlyOnce(streams.outputs, name))

    def count(_module: nn.Module, args: Any, kwargs: Any) -> None:
        streams.runs += 1
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.is_floating_point():
                streams.shape = tuple(value.shape)
                return

    stack.callback(block.register_forward_pre_hook(count, with_kwargs=True).remove)
    _watch(stack, block, partial(setattr, streams, "pre"), partial(setattr, streams, "post"))


def _watch(
    stack: ExitStack,
    module: nn.Module,
    keep_input: Callable[[Tensor], None],
    keep_output: Callable[[Tensor], None],
) -> None:
    """Copy the first stream into and out of a module, until `stack` closes."""

    def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
        # before the module runs: some change their input in place
        for value in (*args, *kwargs.values()):
            if is_stream(value):
                keep_input(value.clone())
                break

    def after(_module: nn.Module, _args: Any, output: Any) -> None:
        value = stream_of(output)
        if is_stream(value):
            keep_output(value.clone())

    stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
    stack.callback(module.register_forward_hook(after).remove)


def is_stream(value: Any) -> bool:
    """Whether its shape can be (1, token, d_model)."""
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.ndim == 3
        and value.shape[:2] == (1, TOKENS)
    )


class _OnlyOnce:
    """Stores a stream under a name, and removes it where its module runs twice in a block.

    A dropout that a block uses in two places has no stream of its own.
    """

    def __init__(self, streams: dict[str, Tensor], name: str):
        self._streams = streams
        self._name = name
        self._runs = 0

    def __call__(self, stream: Tensor) -> None:
        self._runs += 1
        if self._runs == 1:
            self._streams[self._name] = stream
        else:
            self._streams.pop(self._name, None)


def _of_shape(streams: dict[str, Tensor], like: Tensor | None) -> dict[str, Tensor]:
    return {
        name: stream
        for name, stream in streams.items()
        if like is not None and stream.shape == like.shape
    }


def same(a: Tensor | None, b: Tensor | None) -> bool:
    """Equal to the last bit, on whatever devices they are."""
    if a is None or b is None or a.shape != b.shape:
        return False
    return torch.equal(a, b.to(a.device))


def close(a: Tensor | None, b: Tensor | None) -> bool:
    """Equal up to rounding."""
    if a is None or b is None or a.shape != b.shape:
        return False
    limit = _ROUNDINGS * torch.finfo(b.dtype).eps * float(b.abs().max())
    return float((a - b.to(a.device)).abs().max()) <= limit
