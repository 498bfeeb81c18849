"""Where an architecture that is not in the table keeps its stream: found by its structure, proved
by one small pass.

Candidates are the direct children of a block. What counts as attention, MLP and the stream between
them is decided by additivity alone: `resid_pre + attn_out = resid_mid` and `resid_mid + mlp_out =
resid_post` in every block, or, for parallel blocks, `resid_pre + attn_out + mlp_out = resid_post`.
Whatever does not add up is refused with a description of what the search found; nothing is guessed.
Cost: one forward pass over eight tokens.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor, nn

from emlens.foundation.errors import LoadError
from emlens.models.architectures import Architecture

_TOKENS = 8
_ROUNDINGS = 16
"""Sums may differ by this many roundings of the model's own dtype: blocks add the same terms in
another order.
"""


@dataclass
class _BlockStreams:
    """Streams that went into and came out of a block and its children, in the order of the pass."""

    pre: Tensor | None = None
    post: Tensor | None = None
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)


def discover(model: nn.Module, kind: str) -> Architecture:
    """Find blocks, final norm and what the blocks add.

    Args:
        kind: the model type, for messages.

    Raises:
        LoadError: no single list of blocks, or blocks whose children do not add up; says what the
            search found.
    """
    path, blocks = _blocks(model, kind)
    parent, _, _ = path.rpartition(".")
    decoder = model.get_submodule(parent)
    streams, after_blocks = _record_streams(model, decoder, blocks, kind)
    children = ", ".join(name for name, _ in blocks[0].named_children())
    description = f"found {len(blocks)} blocks at {path!r} whose children are {children}"
    attn_out, mlp_out, mid = _roles(streams, description, kind)
    if not after_blocks:
        raise _refusal(
            kind,
            f"{description}; nothing in {parent!r} reads the last block's output,"
            " so there is no final norm",
        )
    final_norm = f"{parent}.{next(iter(after_blocks))}"
    return Architecture(parent, path, final_norm, attn_out, mlp_out, mid, discovered=True)


def _roles(
    streams: list[_BlockStreams], description: str, kind: str
) -> tuple[str, str, str | None]:
    """Names of the children that give `attn_out` and `mlp_out`, and of the one that reads
    `resid_mid` (None: parallel blocks).
    """
    outputs = _in_every_block([block.outputs for block in streams])
    inputs = _in_every_block([block.inputs for block in streams])
    attention = [name for name in outputs if "att" in name.lower()]
    if not attention:
        raise _refusal(
            kind,
            f"{description}; none of them that returns a stream is called attention in every block",
        )
    # From the first attention on, two outputs in the order of the pass: a post-norm, which gives
    # what is added, comes after its attention or MLP and need not be called so.
    candidates = outputs[outputs.index(attention[0]) :]
    for (attn, mlp), mid in product(combinations(candidates, 2), inputs):
        if all(_is_sequential(block, attn, mlp, mid) for block in streams):
            return attn, mlp, mid
    for attn, mlp in product(attention, outputs):
        if mlp not in attention and all(_is_parallel(block, attn, mlp) for block in streams):
            return attn, mlp, None
    raise _refusal(kind, f"{description}; no two of them add up to what a block adds to the stream")


def _in_every_block(blocks: list[dict[str, Tensor]]) -> list[str]:
    """Names that all blocks have, in the order of the first."""
    return [name for name in blocks[0] if all(name in block for block in blocks)]


def _refusal(kind: str, reason: str) -> LoadError:
    from emlens.models.architectures import ARCHITECTURES

    return LoadError(
        f"model type {kind!r} is not one emlens knows where to hook ({', '.join(ARCHITECTURES)}),"
        f" and a search of it failed: {reason}"
    )


def _blocks(model: nn.Module, kind: str) -> tuple[str, nn.ModuleList]:
    """Path and blocks of the one list that has as many equal modules as the model has layers."""
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(model, "get_input_embeddings"):
        children = ", ".join(name for name, _ in model.named_children()) or "none"
        raise _refusal(kind, f"it has no configuration; top modules: {children}")
    expected = getattr(config.get_text_config(), "num_hidden_layers", None)
    lists = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)
    }
    equal = {name: module for name, module in lists.items() if _is_equal(module, expected)}
    # without lists that lie inside another, such as the experts of a mixture
    outer = [name for name in equal if not any(name.startswith(f"{path}.") for path in equal)]
    if len(outer) != 1 or "." not in outer[0]:
        listed = [f"{name} ({len(module)})" for name, module in lists.items()]
        raise _refusal(
            kind,
            f"it should have one list of {expected} equal blocks inside a decoder;"
            f" found lists of modules: {', '.join(listed[:8]) or 'none'}",
        )
    return outer[0], equal[outer[0]]


def _is_equal(modules: nn.ModuleList, length: int | None) -> bool:
    return len(modules) == length and len({type(module) for module in modules}) == 1


def _record_streams(
    model: nn.Module, decoder: nn.Module, blocks: nn.ModuleList, kind: str
) -> tuple[list[_BlockStreams], dict[str, Tensor]]:
    """One pass over a few tokens.

    Returns:
        The streams of every block, and of the decoder's children those that read the last block's
        output, with their input.
    """
    streams = [_BlockStreams() for _ in blocks]
    decoder_inputs: dict[str, Tensor] = {}
    with torch.no_grad(), ExitStack() as stack:
        for block, record in zip(blocks, streams, strict=True):
            for name, child in block.named_children():
                _watch(
                    stack, child, _OnlyOnce(record.inputs, name), _OnlyOnce(record.outputs, name)
                )
            _watch(stack, block, partial(setattr, record, "pre"), partial(setattr, record, "post"))
        for name, child in decoder.named_children():
            _watch(stack, child, partial(decoder_inputs.__setitem__, name), lambda stream: None)
        try:
            decoder(input_ids=_some_tokens(model), use_cache=False)
        except Exception as error:  # a module that is not a decoder raises what it likes
            raise _refusal(
                kind,
                "its decoder does not run on token ids"
                f" ({type(error).__name__}: {str(error)[:120]})",
            ) from None
    _check_chain(streams, kind)
    last = streams[-1].post
    after_blocks = {}
    for name, stream in _of_shape(decoder_inputs, last).items():
        if last is not None and torch.equal(stream, last):
            after_blocks[name] = stream
    return streams, after_blocks


def _some_tokens(model: nn.Module) -> Tensor:
    weight = model.get_input_embeddings().weight  # type: ignore[operator]
    return torch.arange(1, _TOKENS + 1, device=weight.device)[None] % weight.shape[0]


def _watch(
    stack: ExitStack,
    module: nn.Module,
    keep_input: Callable[[Tensor], None],
    keep_output: Callable[[Tensor], None],
) -> None:
    """Copy the first stream into and out of a module, until `stack` closes."""

    def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        for value in (*args, *kwargs.values()):
            if _is_stream(value):
                keep_input(value.clone())
                break
        # a layer of transformers 5 returns a bare tensor, older ones a tuple; indexing a tensor
        # would give row 0 of the batch
        value = output[0] if isinstance(output, tuple) else output
        if _is_stream(value):
            keep_output(value.clone())

    stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)


def _is_stream(value: Any) -> bool:
    """Whether its shape can be (batch, token, d_model)."""
    return isinstance(value, Tensor) and value.ndim == 3


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
        self._streams[self._name] = stream
        if self._runs > 1:
            del self._streams[self._name]


def _check_chain(streams: list[_BlockStreams], kind: str) -> None:
    """Refuse blocks that do not pass one stream on.

    Inputs and outputs of children that have another shape than the stream are removed.
    """
    previous: Tensor | None = None
    for i, block in enumerate(streams):
        if not _continues(block, previous):
            raise _refusal(
                kind, f"block {i} does not take the stream that the block before it gives"
            )
        previous = block.post
        block.outputs = _of_shape(block.outputs, previous)
        block.inputs = _of_shape(block.inputs, previous)


def _continues(block: _BlockStreams, previous: Tensor | None) -> bool:
    if block.pre is None or block.post is None or block.pre.shape != block.post.shape:
        return False
    return previous is None or torch.equal(block.pre, previous)


def _of_shape(streams: dict[str, Tensor], like: Tensor | None) -> dict[str, Tensor]:
    return {
        name: stream
        for name, stream in streams.items()
        if like is not None and stream.shape == like.shape
    }


def _close(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return False
    limit = _ROUNDINGS * torch.finfo(b.dtype).eps * float(b.abs().max())
    return float((a - b).abs().max()) <= limit


def _is_sequential(block: _BlockStreams, attn: str, mlp: str, mid: str) -> bool:
    """Whether attention is added to the input, and the MLP to that sum, which `mid` reads."""
    stream = block.inputs[mid]
    if _close(stream, block.pre) or _close(stream, block.post):
        return False  # nothing was added before it or after it
    after_attention = _added(block.pre, block.outputs[attn])
    after_mlp = _added(stream, block.outputs[mlp])
    return _close(after_attention, stream) and _close(after_mlp, block.post)


def _is_parallel(block: _BlockStreams, attn: str, mlp: str) -> bool:
    """Whether both halves of the block read its input and are added to it together."""
    after_attention = _added(block.pre, block.outputs[attn])
    return _close(_added(after_attention, block.outputs[mlp]), block.post)


def _added(stream: Tensor | None, output: Tensor | None) -> Tensor | None:
    """The sum, or None where either was not recorded."""
    if stream is None or output is None:
        return None
    return stream + output
