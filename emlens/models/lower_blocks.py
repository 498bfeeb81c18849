"""The blocks below the lowest edit: an edit leaves them as they are, so they are run once.

A vector added after block 20 changes nothing in blocks 0 to 20. The first pass over some rows under
such an edit keeps what leaves these blocks, and passes over the same rows under other doses and
other vectors start there. It holds for passes over whole rows that keep no cache, such as those
over token trees (`emlens.models.token_trees`). Before it is used it is proved for each model and
block on two short rows. An edit of the first block, or of every block, has nothing below it.
"""

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from emlens.foundation.sites import Site
from emlens.models.batches import pad
from emlens.models.block_outputs import stream_of, with_stream
from emlens.models.cache_proof import equal_scores, proof_rows
from emlens.models.edit_blocks import SiteEdit
from emlens.models.pass_counts import uncounted_passes
from emlens.models.trunks import forwards_replaced, without_values

if TYPE_CHECKING:
    from emlens.models.checkpoint import CheckpointModel
    from emlens.models.hooked import HookedModel

ROOM: Final = 2**28
"""Bytes of streams that are kept at most."""

Key = tuple[int, str | None, int, bytes]
"""A module, its adapter, the first block that is run, and what the pass goes through."""


@dataclass(eq=False)
class LowerStreams:
    """What left the blocks below an edit, by pass; those used last are kept.

    Args:
        room: bytes at most.
    """

    room: int = ROOM
    outputs: OrderedDict[Key, tuple[Any, Tensor]] = field(default_factory=OrderedDict)
    """What a block returns, with nothing in it, and the stream."""
    modules: list[Any] = field(default_factory=list)
    """Kept, so that none of them gives its place in memory to another."""

    def keep(self, key: Key, model: "CheckpointModel", output: Any) -> None:
        if not any(module is model.module for module in self.modules):
            self.modules.append(model.module)
        self.outputs[key] = without_values(output), stream_of(output).clone()
        while self.outputs and self._size() > self.room:
            self.outputs.popitem(last=False)

    def _size(self) -> int:
        return sum(stream.nbytes for _, stream in self.outputs.values())


_KEPT: ContextVar[LowerStreams | None] = ContextVar("streams below edits", default=None)


@contextmanager
def keeping_lower_blocks(kept: LowerStreams) -> Iterator[None]:
    """Inside, passes under an edit start above what earlier ones left in `kept`.

    For a block in which no weight changes.
    """
    token = _KEPT.set(kept)
    try:
        yield
    finally:
        _KEPT.reset(token)


def start_above(model: "HookedModel") -> int:
    """The first block that passes have to run under the active edits; 0: all of them."""
    from emlens.models.transformers_backend import TransformersModel

    edits = model.edit_blocks.active
    if _KEPT.get() is None or not edits or not isinstance(model, TransformersModel):
        return 0
    blocks = []
    for edit in edits:
        if not isinstance(edit, SiteEdit):  # an adapter in memory may change any block
            return 0
        blocks += [_first_changed(site, model.n_layers) for site in edit.sites]
    start = min(blocks, default=0)
    if start == 0 or model.no_sharing is not None:
        return 0
    if start not in model.lower_blocks_proved:
        with uncounted_passes():
            model.lower_blocks_proved[start] = _is_proved(copy.copy(model), start)
    return start if model.lower_blocks_proved[start] else 0


def _first_changed(site: Site, n_layers: int) -> int:
    """The first block whose weights see what an edit at a site does."""
    if site.layer is None:
        return n_layers
    return site.layer + 1 if site.kind == "resid_post" else site.layer


@contextmanager
def lower_blocks_left_out(model: "CheckpointModel", inputs: Mapping[str, Any]) -> Iterator[None]:
    """One pass on these inputs starts above what was kept, or keeps it."""
    start = 0
    if "past_key_values" not in inputs:
        start = start_above(model)
    kept = _KEPT.get()
    if not start or kept is None:
        yield
        return
    with _started(model, kept, start, inputs):
        yield


@contextmanager
def _started(
    model: "CheckpointModel", kept: LowerStreams, start: int, inputs: Mapping[str, Any]
) -> Iterator[None]:
    key = (id(model.module), model.adapter_name, start, _digest(inputs))
    blocks = list(model.architecture.module(model.module, model.architecture.layers))[:start]
    if key in kept.outputs:
        kept.outputs.move_to_end(key)
        form, stream = kept.outputs[key]

        def hand_on(*_args: Any, **_options: Any) -> Any:
            return with_stream(form, stream)

        with forwards_replaced(model, dict.fromkeys(blocks, hand_on)):
            yield
        return
    forward = blocks[-1].forward

    def run_and_keep(*args: Any, **options: Any) -> Any:
        output = forward(*args, **options)
        kept.keep(key, model, output)
        return output

    with forwards_replaced(model, {blocks[-1]: run_and_keep}):
        yield


def _digest(inputs: Mapping[str, Any]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(inputs):
        value = inputs[name]
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            # as bytes: numpy knows no bfloat16, in which a mask may be
            flat = value.contiguous().cpu().flatten()
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.digest()


@torch.no_grad()
def _is_proved(model: "CheckpointModel", start: int) -> bool:
    """Whether a pass that starts there gives the scores of a whole one.

    Args:
        model: a copy, on which no edit is active.
    """
    rows = proof_rows(model)
    # other rows in between: what a block may have left elsewhere is then not of the first rows
    orders = [rows, rows[::-1], rows]
    kept = LowerStreams()
    scores = []
    try:
        for asked in orders:
            batch = pad(asked, range(len(asked)), model.pad_id, "right", model.device)
            inputs = model._inputs(batch)
            with _started(model, kept, start, inputs):
                output = model._called("model", inputs, model._pass(batch.padded_rows(), {}))
            scores.append(output.logits[batch.mask])
    except Exception:  # a model whose blocks read more than the stream raises what it likes
        return False
    return len(kept.outputs) == 2 and equal_scores(model, scores[2:], scores[:1])
