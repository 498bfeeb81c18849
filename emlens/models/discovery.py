"""Where an architecture that is not in the table keeps its stream: found by its structure, proved
by a few small passes.

There are two levels. At the first, the parts of a block are known too: candidates are its direct
children, and what counts as attention, MLP and the stream between them is decided by additivity
alone: `resid_pre + attn_out = resid_mid` and `resid_mid + mlp_out = resid_post` in every block, or,
for parallel blocks, `resid_pre + attn_out + mlp_out = resid_post`. At the second, only the streams
between the blocks and the final norm are known, proved by `output_hidden_states` and by what an
edit reaches (`emlens.models.stream_proof`). What passes neither is refused with a description of
what the search found; nothing is guessed. Cost: some passes over eight tokens.
"""

from dataclasses import replace
from inspect import signature
from itertools import combinations, product
from typing import Any

from torch import Tensor, nn

from emlens.foundation.errors import LoadError
from emlens.foundation.files import one_line
from emlens.models.architectures import Architecture, stream_width
from emlens.models.stream_proof import breaks_causality, matching_hidden_states
from emlens.models.stream_recording import BlockStreams, Recorded, close, record, same


def discover(model: nn.Module, kind: str) -> Architecture:
    """Find blocks, final norm and, where they add up, what the blocks add.

    Args:
        kind: the model type, for messages.

    Raises:
        LoadError: no list of blocks that pass one stream on, or streams that `output_hidden_states`
            or an edit contradicts; says what the search found.
    """
    decoder, layers, recorded = _chain(model, kind)
    blocks: Any = model.get_submodule(layers)
    children = ", ".join(
        dict.fromkeys(name for block in blocks for name, _ in block.named_children())
    )
    description = f"found {len(blocks)} blocks at {layers!r} whose children are {children}"
    final_norm = next(iter(recorded.after), None)
    width = stream_width(model)
    if final_norm is not None and recorded.after[final_norm].shape[-1] != width:
        raise _refusal(
            kind,
            f"{description}; {final_norm!r} gives the last block's output another width than"
            f" hidden_size, {width}",
        )
    architecture = Architecture(decoder, layers, final_norm, None, None, None, discovered=True)
    attn_out, mlp_out, mid, missing = _roles(recorded.blocks)
    hidden_states, reason = matching_hidden_states(model, recorded, final_norm)
    if reason:
        raise _refusal(kind, f"{description}; {missing or 'they add up'}; {reason}")
    edited = sorted({0, len(blocks) // 2, len(blocks) - 1})
    reason = breaks_causality(model, decoder, layers, edited)
    if reason:
        raise _refusal(kind, f"{description}; {reason}")
    return replace(
        architecture,
        attn_out=attn_out,
        mlp_out=mlp_out,
        mid=mid,
        hidden_states=hidden_states,
        missing=missing,
    )


def _roles(blocks: list[BlockStreams]) -> tuple[str | None, str | None, str | None, str]:
    """Names of the children that give `attn_out` and `mlp_out`, of the one that reads `resid_mid`
    (None: parallel blocks), and why there are none.
    """
    outputs = _in_every_block([block.outputs for block in blocks])
    inputs = _in_every_block([block.inputs for block in blocks])
    attention = [name for name in outputs if "att" in name.lower()]
    if not attention:
        kinds = {tuple(block.outputs) for block in blocks}
        if len(kinds) > 1:
            return None, None, None, f"its blocks are of {len(kinds)} kinds with other parts"
        return None, None, None, "no part that returns a stream is called attention in every block"
    # From the first attention on, two outputs in the order of the pass: a post-norm, which gives
    # what is added, comes after its attention or MLP and need not be called so.
    candidates = outputs[outputs.index(attention[0]) :]
    for (attn, mlp), mid in product(combinations(candidates, 2), inputs):
        if all(_is_sequential(block, attn, mlp, mid) for block in blocks):
            return attn, mlp, mid, ""
    for attn, mlp in product(attention, outputs):
        if mlp not in attention and all(_is_parallel(block, attn, mlp) for block in blocks):
            return attn, mlp, None, ""
    return None, None, None, "no two parts of a block add up to what it adds to the stream"


def _in_every_block(blocks: list[dict[str, Tensor]]) -> list[str]:
    """Names that all blocks have, in the order of the first."""
    return [name for name in blocks[0] if all(name in block for block in blocks)]


def _refusal(kind: str, reason: str) -> LoadError:
    return LoadError(
        f"model type {kind!r} is not one emlens knows where to hook,"
        f" and a search of it failed: {reason}"
    )


def _chain(model: nn.Module, kind: str) -> tuple[str, str, Recorded]:
    """Decoder, path of the blocks, and a pass through them.

    Of all lists of modules, the longest whose modules run once each and hand one stream on.
    """
    if getattr(model, "config", None) is None or not hasattr(model, "get_input_embeddings"):
        children = ", ".join(name for name, _ in model.named_children()) or "none"
        raise _refusal(kind, f"it has no configuration; top modules: {children}")
    lists = _lists(model)
    if not lists:
        raise _refusal(kind, "it has no list of blocks")
    chains, reasons = [], []
    for layers in lists:
        decoder = _decoder(model, layers)
        try:
            recorded = record(model, decoder, layers)
        except Exception as error:  # a module that is not a decoder raises what it likes
            reasons.append(
                f"{decoder or type(model).__name__!r} does not run on token ids"
                f" ({type(error).__name__}: {one_line(str(error), 120)})"
            )
            continue
        reason = _broken(recorded.blocks, stream_width(model))
        if reason:
            reasons.append(f"{layers!r}: {reason}")
        else:
            chains.append((decoder, layers, recorded))
    if not chains:
        raise _refusal(kind, "; ".join(reasons[:3]))
    longest = max(len(recorded.blocks) for _, _, recorded in chains)
    fitting = [chain for chain in chains if len(chain[2].blocks) == longest]
    if len(fitting) > 1:
        paths = ", ".join(layers for _, layers, _ in fitting)
        raise _refusal(kind, f"several lists of modules hand a stream on: {paths}")
    return fitting[0]


def _lists(model: nn.Module) -> list[str]:
    """Paths of the lists of modules that do not lie inside another, the longest first.

    Lists inside a block, such as the experts of a mixture, are no candidates.
    """
    lengths: dict[str, int] = {}
    for path, module in model.named_modules():
        is_inner = any(path.startswith(f"{outer}.") for outer in lengths)
        if isinstance(module, nn.ModuleList) and len(module) > 0 and not is_inner:
            lengths[path] = len(module)
    return sorted(lengths, key=lambda path: -lengths[path])


def _decoder(model: nn.Module, layers: str) -> str:
    """The innermost module around the blocks that takes token ids."""
    path = layers
    while "." in path:
        path, _, _ = path.rpartition(".")
        if "input_ids" in signature(model.get_submodule(path).forward).parameters:
            return path
    return ""


def _broken(blocks: list[BlockStreams], width: int) -> str:
    """Why blocks do not pass one stream of this width on; empty where they do."""
    previous: Tensor | None = None
    for i, block in enumerate(blocks):
        if block.runs != 1:
            return f"block {i} runs {block.runs} times in one pass"
        if block.pre is None or block.post is None:
            return f"what enters block {i} is of shape {block.shape}, not (row, token, d_model)"
        if block.pre.shape[-1] != width:
            return (
                f"what enters block {i} is {block.pre.shape[-1]} wide and hidden_size is {width}:"
                " it is not one stream"
            )
        if block.pre.shape != block.post.shape:
            return f"block {i} changes the width of the stream"
        if previous is not None and not same(block.pre, previous):
            return f"block {i} does not take the stream that the block before it gives"
        previous = block.post
    return ""


def _is_sequential(block: BlockStreams, attn: str, mlp: str, mid: str) -> bool:
    """Whether attention is added to the input, and the MLP to that sum, which `mid` reads."""
    stream = block.inputs[mid]
    if close(stream, block.pre) or close(stream, block.post):
        return False  # nothing was added before it or after it
    after_attention = _added(block.pre, block.outputs[attn])
    after_mlp = _added(stream, block.outputs[mlp])
    return close(after_attention, stream) and close(after_mlp, block.post)


def _is_parallel(block: BlockStreams, attn: str, mlp: str) -> bool:
    """Whether both halves of the block read its input and are added to it together."""
    after_attention = _added(block.pre, block.outputs[attn])
    return close(_added(after_attention, block.outputs[mlp]), block.post)


def _added(stream: Tensor | None, output: Tensor | None) -> Tensor | None:
    """The sum, or None where either was not recorded."""
    if stream is None or output is None:
        return None
    return stream + output
