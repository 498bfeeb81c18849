"""Is what was found the residual stream? Two proofs that need no parts of a block.

`output_hidden_states` of the bare model, which knows no hooks of ours, must hold the very streams
that were found between the blocks. And an edit of one block's output must reach what comes after,
and nothing that comes before: no earlier block, and no earlier token. Cost: a handful of passes
over eight tokens.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from emlens.models.block_outputs import stream_of, with_stream
from emlens.models.stream_recording import (
    TOKENS,
    BlockStreams,
    Recorded,
    close,
    record,
    some_tokens,
)

_EDITED_FROM: Final = TOKENS // 2
"""The first token that the causal check edits."""


def matching_hidden_states(
    model: nn.Module, found: Recorded, final_norm: str | None
) -> tuple[Literal["before", "after"], str]:
    """Whether `output_hidden_states` holds the input or the output of every block.

    Returns:
        Which of the two, and why it is neither; the reason is empty where it is one.
    """
    with torch.no_grad():
        output: Any = model(
            input_ids=some_tokens(model), use_cache=False, output_hidden_states=True
        )
    states = getattr(output, "hidden_states", None)
    if not states:
        return "before", "the model returns no hidden states to compare with"
    blocks = found.blocks
    if len(states) != len(blocks) + 1:
        return "before", f"the model returns {len(states)} hidden states for {len(blocks)} blocks"
    last = blocks[-1].post
    if final_norm is not None:
        last = found.after[final_norm]
    if not close(states[-1], last):
        return "before", (
            "the last hidden state is not what comes of the last block's output"
            f" ({final_norm or 'no norm that runs once'} after it)"
        )
    if all(close(state, block.post) for state, block in zip(states, blocks, strict=False)):
        return "after", ""
    for i, (state, block) in enumerate(zip(states, blocks, strict=False)):
        if not close(state, block.pre):
            return "before", f"hidden state {i} is not the input of block {i}"
    return "before", ""


def breaks_causality(model: nn.Module, decoder: str, layers: str, blocks: Iterable[int]) -> str:
    """What an edit of a block's output reaches that it should not, or does not reach that it
    should; empty where all is right.

    Args:
        blocks: those to edit, one after the other.
    """
    plain = record(model, decoder, layers)
    for i in blocks:
        edited = _with_edit(model, decoder, layers, i)
        for j, (before, after) in enumerate(zip(plain.blocks, edited.blocks, strict=True)):
            reason = _reached(i, j, before, after)
            if reason:
                return reason
        for path in plain.after:
            if path in edited.after and _differs(plain.after[path], edited.after[path]) == (0, 0):
                return f"an edit after block {i} does not reach {path!r}"
    return ""


def _with_edit(model: nn.Module, decoder: str, layers: str, block: int) -> Recorded:
    """A recorded pass in which later tokens of one block's output are changed."""

    def change(_module: nn.Module, _args: Any, output: Any) -> Any:
        stream = stream_of(output)
        changed = stream.clone()
        # another value in every coordinate: norms take out what all coordinates share
        steps = torch.linspace(-1, 1, stream.shape[-1], device=stream.device, dtype=stream.dtype)
        changed[:, _EDITED_FROM:] += stream.abs().max() * steps
        return with_stream(output, changed)

    blocks: Any = model.get_submodule(layers)
    with ExitStack() as stack:
        stack.callback(blocks[block].register_forward_hook(change).remove)
        return record(model, decoder, layers)


def _reached(edited: int, block: int, before: BlockStreams, after: BlockStreams) -> str:
    """What is wrong at a block where the output of block `edited` was changed."""
    if before.pre is None or after.pre is None or before.post is None or after.post is None:
        return f"block {block} has no stream"
    streams = [("input", before.pre, after.pre), ("output", before.post, after.post)]
    for name, a, b in streams:
        earlier, later = _differs(a, b)
        if earlier:
            return (
                f"an edit after block {edited} at later tokens changes the {name} of block {block}"
                " at earlier tokens: the model looks ahead"
            )
        # the output of the edited block was recorded after the edit
        is_after = block > edited or (block == edited and name == "output")
        if later and not is_after:
            return f"an edit after block {edited} changes the {name} of block {block} before it"
        if not later and is_after:
            return f"an edit after block {edited} does not reach the {name} of block {block}"
    return ""


def _differs(a: Tensor, b: Tensor) -> tuple[bool, bool]:
    """Whether tokens before the first edited one differ, and those from it on."""
    earlier = not close(a[:, :_EDITED_FROM], b[:, :_EDITED_FROM])
    later = not close(a[:, _EDITED_FROM:], b[:, _EDITED_FROM:])
    return earlier, later
