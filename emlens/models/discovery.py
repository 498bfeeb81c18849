"""Where an architecture that is not in the table keeps its stream: searched by structure, proved by
one small pass.

Candidates are the direct children of a block. What counts as attention, MLP and the stream between
them is decided by additivity alone: `resid_pre + attn_out = resid_mid` and `resid_mid + mlp_out =
resid_post` in every block, or, for parallel blocks, `resid_pre + attn_out + mlp_out = resid_post`.
Whatever does not add up is refused with what was found; nothing is guessed. Cost: one forward pass
over eight tokens.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
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
class _Seen:
    """Streams that went into and came out of a block's children, in the order of the pass."""

    pre: Tensor | None = None
    post: Tensor | None = None
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)


def discover(model: nn.Module, kind: str) -> Architecture:
    """Find blocks, final norm and what the blocks add.

    Raises:
        LoadError: no single list of blocks, or blocks whose parts do not add up; says what was
            found.
    """
    path, blocks = _blocks(model, kind)
    parent, _, _ = path.rpartition(".")
    decoder = model.get_submodule(parent)
    seen, after = _watch(model, decoder, blocks, kind)
    shared = set.intersection(*({*s.outputs} for s in seen))
    outputs = [name for name in seen[0].outputs if name in shared]
    inputs = [name for name in seen[0].inputs if all(name in s.inputs for s in seen)]
    found = (
        f"found {len(blocks)} blocks at {path!r} whose children are"
        f" {', '.join(name for name, _ in blocks[0].named_children())}"
    )
    attention = [name for name in outputs if "att" in name.lower()]
    if not attention:
        raise _refusal(
            kind, f"{found}; none of them that returns a stream is called attention in every block"
        )
    first = outputs.index(attention[0])
    for attn, mlp in product(outputs[first:], repeat=2):
        if outputs.index(mlp) <= outputs.index(attn):
            continue
        for mid in inputs:
            if all(_sequential(s, attn, mlp, mid) for s in seen):
                return Architecture(
                    parent,
                    path,
                    _norm(decoder, parent, after, found, kind),
                    attn,
                    mlp,
                    mid,
                    discovered=True,
                )
    for attn, mlp in product(attention, outputs):
        if mlp not in attention and all(_parallel(s, attn, mlp) for s in seen):
            return Architecture(
                parent,
                path,
                _norm(decoder, parent, after, found, kind),
                attn,
                mlp,
                None,
                discovered=True,
            )
    raise _refusal(kind, f"{found}; no two of them add up to what a block adds to the stream")


def _refusal(kind: str, found: str) -> LoadError:
    from emlens.models.architectures import ARCHITECTURES

    return LoadError(
        f"model type {kind!r} is not one emlens knows where to hook ({', '.join(ARCHITECTURES)}),"
        f" and a search of it failed: {found}"
    )


def _blocks(model: nn.Module, kind: str) -> tuple[str, nn.ModuleList]:
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(model, "get_input_embeddings"):
        raise _refusal(
            kind,
            "it has no configuration; top modules:"
            f" {', '.join(name for name, _ in model.named_children()) or 'none'}",
        )
    expected = getattr(config.get_text_config(), "num_hidden_layers", None)
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
    ]
    fitting = [
        (name, module)
        for name, module in lists
        if len(module) == expected and len({type(block) for block in module}) == 1
    ]
    outer = [
        (name, module)
        for name, module in fitting
        if not any(name.startswith(f"{other}.") for other, _ in fitting)
    ]
    if len(outer) != 1 or "." not in outer[0][0]:
        known = ", ".join(f"{name} ({len(module)})" for name, module in lists[:8]) or "none"
        raise _refusal(
            kind,
            f"it should have one list of {expected} equal blocks inside a decoder;"
            f" found lists of modules: {known}",
        )
    return outer[0]


def _watch(
    model: nn.Module, decoder: nn.Module, blocks: nn.ModuleList, kind: str
) -> tuple[list[_Seen], dict[str, Tensor]]:
    """One pass over a few tokens; what every block, its children, and the decoder's children after
    the blocks saw.
    """
    embeddings = model.get_input_embeddings()  # type: ignore[operator]
    ids = (
        torch.arange(1, _TOKENS + 1, device=embeddings.weight.device)[None]
        % embeddings.weight.shape[0]
    )
    seen = [_Seen() for _ in blocks]
    after: dict[str, Tensor] = {}
    with torch.no_grad(), ExitStack() as stack:

        def watch(module: nn.Module, into: Any, out: Any) -> None:
            def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                streams = [
                    value
                    for value in (*args, *kwargs.values())
                    if isinstance(value, Tensor) and value.ndim == 3
                ]
                if streams:
                    into(streams[0].clone())
                first = output[0] if isinstance(output, tuple) else output
                if isinstance(first, Tensor) and first.ndim == 3:
                    out(first.clone())

            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)

        def once(into: dict[str, Tensor], name: str) -> Callable[[Tensor], None]:
            """Keep what passed, and nothing of a module that runs twice in a block (a shared
            dropout).
            """
            ran: list[int] = []

            def keep(x: Tensor) -> None:
                ran.append(1)
                into[name] = x
                if len(ran) > 1:
                    del into[name]

            return keep

        for block, s in zip(blocks, seen, strict=True):
            for name, child in block.named_children():
                watch(child, once(s.inputs, name), once(s.outputs, name))
            watch(block, lambda x, s=s: setattr(s, "pre", x), lambda x, s=s: setattr(s, "post", x))
        for name, child in decoder.named_children():
            watch(child, lambda x, n=name: after.update({n: x}), lambda x: None)
        try:
            decoder(input_ids=ids, use_cache=False)
        except Exception as error:  # a module that is no decoder raises what it likes
            raise _refusal(
                kind,
                f"its decoder does not run on token ids ({type(error).__name__}:"
                f" {str(error)[:120]})",
            ) from None
    previous: Tensor | None = None
    for i, s in enumerate(seen):
        if (
            s.pre is None
            or s.post is None
            or s.pre.shape != s.post.shape
            or (previous is not None and not torch.equal(s.pre, previous))
        ):
            raise _refusal(
                kind, f"block {i} does not take the stream that the block before it gives"
            )
        s.outputs = {name: x for name, x in s.outputs.items() if x.shape == s.post.shape}
        s.inputs = {name: x for name, x in s.inputs.items() if x.shape == s.post.shape}
        previous = s.post
    return seen, {
        name: x
        for name, x in after.items()
        if previous is not None and x.shape == previous.shape and torch.equal(x, previous)
    }


def _norm(decoder: nn.Module, parent: str, after: dict[str, Tensor], found: str, kind: str) -> str:
    """The decoder's child that reads the last block's output."""
    if not after:
        raise _refusal(
            kind,
            f"{found}; nothing in {parent!r} reads the last block's output,"
            " so there is no final norm",
        )
    return f"{parent}.{next(iter(after))}"


def _close(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return False
    limit = _ROUNDINGS * torch.finfo(b.dtype).eps * float(b.abs().max())
    return float((a - b).abs().max()) <= limit


def _sequential(s: _Seen, attn: str, mlp: str, mid: str) -> bool:
    stream = s.inputs[mid]
    adds = not _close(stream, s.pre) and not _close(stream, s.post)
    if not adds:
        return False
    after_attention = _added(s.pre, s.outputs[attn])
    after_mlp = _added(stream, s.outputs[mlp])
    return _close(after_attention, stream) and _close(after_mlp, s.post)


def _parallel(s: _Seen, attn: str, mlp: str) -> bool:
    """Whether both halves of the block read its input and are added to it together."""
    return _close(_added(_added(s.pre, s.outputs[attn]), s.outputs[mlp]), s.post)


def _added(stream: Tensor | None, output: Tensor | None) -> Tensor | None:
    """The sum, or None where either was not seen."""
    return None if stream is None or output is None else stream + output
