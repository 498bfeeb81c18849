"""The trunk of two models of one parent: the blocks below the first that is not the same in both.

There they compute the same stream, so one pass serves both: the passes of the first model keep what
enters a block, and the second model starts there. Its lower blocks are left out of its passes,
which are otherwise as always: the same batches, cache, masks and positions. Before it is used, it
is proved for each pair on two short rows.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from emlens.foundation.intervention import PaddedRows
from emlens.foundation.sites import Site
from emlens.models.adapter_files import plain_name
from emlens.models.batches import Batch, pad
from emlens.models.block_outputs import with_stream
from emlens.models.cache_proof import proof_rows
from emlens.models.passes import Reader
from emlens.models.row_cache import RowCache

if TYPE_CHECKING:
    from emlens.models.checkpoint import CheckpointModel
    from emlens.models.hooked import HookedModel

ROOM = 2**30
"""Bytes of streams that are kept at most; passes beyond it run whole."""


@dataclass(eq=False)
class KeptStreams:
    """What entered some blocks of the first model, by pass and block.

    Args:
        room: bytes at most.
    """

    room: int = ROOM
    bytes: int = 0
    streams: dict[tuple[Hashable, int], Float[Tensor, "row token d_model"]] = field(
        default_factory=dict
    )
    caches: dict[Hashable, RowCache] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget everything, as before the next rows."""
        self.bytes = 0
        self.streams.clear()
        self.caches.clear()

    def keep(self, key: tuple[Hashable, int], stream: Tensor) -> None:
        """Keep a copy where there is room."""
        size = stream.numel() * stream.element_size()
        if key not in self.streams and self.bytes + size <= self.room:
            self.bytes += size
            self.streams[key] = stream.clone()

    def serves(self, batch: Batch, block: int) -> bool:
        """Whether all passes over a batch can start at a block."""
        keys = [whole_key(batch)]
        if batch.shared:
            keys = [rest_key(batch), beginning_key(batch, (0,))]
        return all((key, block) in self.streams for key in keys)


def whole_key(batch: Batch) -> Hashable:
    """Of the pass over whole rows."""
    return "whole", tuple(row.ids for row in batch.rows)


def beginning_key(batch: Batch, rows: tuple[int, ...]) -> Hashable:
    """Of the pass over the shared tokens of some rows."""
    return "beginning", tuple(batch.rows[row].ids[: batch.shared] for row in rows)


def rest_key(batch: Batch) -> Hashable:
    """Of the pass over what follows the shared tokens."""
    return "rest", batch.shared, tuple(row.ids for row in batch.rows)


@dataclass(frozen=True, eq=False)
class _Active:
    """What the passes of one model do: keep what enters `kept_at`, or start at `start`."""

    model: "CheckpointModel"
    streams: KeptStreams
    kept_at: frozenset[int] = frozenset()
    start: int | None = None


_ACTIVE: ContextVar[_Active | None] = ContextVar("active trunk", default=None)


@contextmanager
def keeping_streams(
    model: "HookedModel", streams: KeptStreams, blocks: frozenset[int]
) -> Iterator[None]:
    """Inside, passes of the model keep what enters these blocks."""
    with _active(_Active(model, streams, kept_at=blocks)):  # type: ignore[arg-type]
        yield


@contextmanager
def starting_at(model: "HookedModel", streams: KeptStreams, block: int) -> Iterator[None]:
    """Inside, passes of the model start at a block where the stream that enters it was kept.

    Sites below that block are not reached.
    """
    with _active(_Active(model, streams, start=block)):  # type: ignore[arg-type]
        yield


@contextmanager
def _active(active: _Active) -> Iterator[None]:
    token = _ACTIVE.set(active)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def run_decoder(
    model: "CheckpointModel",
    key: Hashable,
    rows: PaddedRows,
    readers: Mapping[Site, Reader],
    inputs: Mapping[str, Any],
    *,
    stop_early: bool,
) -> None:
    """One pass of the decoder, which keeps streams or starts from them where a block says so.

    Args:
        key: of this pass. stop_early: end after the deepest reader.
    """
    active = _ACTIVE.get()
    if active is None or active.model is not model:
        model._called("decoder", inputs, model._pass(rows, readers, stop_early=stop_early))
        return
    cache = inputs.get("past_key_values")
    deepest = None
    if stop_early:
        deepest = max(readers, default=None)
    readers = dict(readers)
    for block in active.kept_at:
        site = Site("resid_pre", block)
        if deepest is None or not deepest < site:
            readers[site] = _keeping(active.streams, (key, block), readers.get(site))
    passing = model._pass(rows, readers, stop_early=stop_early)
    with _left_out(active, key):
        model._called("decoder", inputs, passing)
    if not isinstance(cache, RowCache):
        return
    if active.start is None:
        active.streams.caches[key] = cache
    elif key in active.streams.caches:
        # the lower blocks left nothing, and the next pass counts columns by the first of them
        cache.layers[: active.start] = active.streams.caches[key].layers[: active.start]


def _keeping(streams: KeptStreams, key: tuple[Hashable, int], reader: Reader | None) -> Reader:
    def keep(stream: Tensor) -> None:
        streams.keep(key, stream)
        if reader is not None:
            reader(stream)

    return keep


@contextmanager
def _left_out(active: _Active, key: Hashable) -> Iterator[None]:
    """The blocks below the start hand on what was kept, and compute nothing."""
    start = active.start
    if start is None or (key, start) not in active.streams.streams:
        yield
        return
    model = active.model
    blocks = model.architecture.module(model.module, model.architecture.layers)
    form = model.trunk_forms[model.architecture.layers]
    stream = active.streams.streams[key, start]

    def hand_on(*_args: Any, **_options: Any) -> Any:
        return with_stream(form, stream)

    with forwards_replaced(model, dict.fromkeys(blocks[:start], hand_on)):
        yield


@contextmanager
def forwards_replaced(
    model: "CheckpointModel", forwards: Mapping[Any, Callable[..., Any]]
) -> Iterator[None]:
    """Inside, these blocks of the model compute something else."""
    # whoever wrapped a block's forward, as accelerate does, keeps what it has there
    own = {block: block.__dict__.get("forward") for block in forwards}
    # other threads run these blocks too
    with model.bank.selected(model.adapter):
        try:
            for block, forward in forwards.items():
                block.forward = forward
            yield
        finally:
            for block, forward in own.items():
                if forward is None:
                    del block.forward
                else:
                    block.forward = forward


def trunk_of(first: "HookedModel", second: "HookedModel") -> int | str:
    """The first block that the second model must run itself, or why it must run all of them."""
    from emlens.models.transformers_backend import TransformersModel

    for model in (first, second):
        if not isinstance(model, TransformersModel):
            return f"backend {model.backend!r} runs whole passes"
        if model.no_sharing is not None:
            return model.no_sharing
        if model.edit_blocks.active:
            return f"an edit is active on {model.name!r}"
    assert isinstance(first, TransformersModel)
    assert isinstance(second, TransformersModel)
    block = _first_unlike(first, second)
    if isinstance(block, str):
        return block
    key = (id(first.module), first.adapter_name, second.adapter_name, block)
    if key not in second.trunks_proved:
        second.trunks_proved[key] = _is_proved(first, second, block)
    if not second.trunks_proved[key]:
        return f"started at block {block}, it does not give what a whole pass gives"
    return block


def _first_unlike(first: "CheckpointModel", second: "CheckpointModel") -> int | str:
    """The first block whose weights or active adapters are not the same in both models."""
    layers = first.architecture.layers + "."
    if layers != second.architecture.layers + "." or first.n_layers != second.n_layers:
        return "its architecture is another one"
    weights, others = _weights(first), _weights(second)
    lowest = first.n_layers
    for name in {*weights, *others}:
        if _is_same(weights.get(name), others.get(name)):
            continue
        if name.startswith(layers):
            lowest = min(lowest, int(name.removeprefix(layers).partition(".")[0]))
        elif not _is_after_blocks(first, name):
            return f"it has {name.rpartition('.')[0]} of its own"
    # where the blocks are all alike, the last one is run again: a pass reads behind some block
    lowest = min(lowest, first.n_layers - 1)
    if lowest == 0:
        return "its first block is not that of the other model"
    return lowest


def _weights(model: "CheckpointModel") -> dict[str, nn.Parameter]:
    """The weights that a pass of the model uses: of the base, and of the adapter that is on."""
    idle = set(model.bank.names.values()) - {model.adapter_name}
    weights = {}
    for name, weight in model.module.named_parameters(remove_duplicate=False):
        parts = name.split(".")
        if not idle.intersection(parts):
            if model.adapter_name not in parts:
                name = plain_name(name)
            weights[name] = weight
    return weights


def _is_same(a: nn.Parameter | None, b: nn.Parameter | None) -> bool:
    return a is not None and b is not None and (a is b or a.data_ptr() == b.data_ptr())


def _is_after_blocks(model: "CheckpointModel", name: str) -> bool:
    """Whether a weight belongs to the final norm or the output layer alone."""
    norm = model.architecture.final_norm
    if norm is not None and name.startswith(f"{norm}."):
        return True
    return not name.startswith(f"{model.architecture.decoder}.")


@torch.no_grad()
def _is_proved(first: "CheckpointModel", second: "CheckpointModel", block: int) -> bool:
    """Whether a pass that starts at the block gives the last stream of a whole one."""
    rows = proof_rows(second)
    batch = pad(rows, range(len(rows)), second.pad_id, "right", second.device)
    last = Site("resid_post", second.n_layers - 1)
    streams = KeptStreams()
    forms: list[Any] = []
    blocks = second.architecture.module(second.module, second.architecture.layers)
    handle = blocks[0].register_forward_hook(lambda _module, _args, output: forms.append(output))
    try:
        expected = _read(second, batch, last)
    finally:
        handle.remove()
    second.trunk_forms[second.architecture.layers] = without_values(forms[0])
    with keeping_streams(first, streams, frozenset({block})):
        _read(first, batch, Site("resid_pre", block))
    with starting_at(second, streams, block):
        found = _read(second, batch, last)
    # the same arithmetic on the same shapes, so this is far above what a right start differs by
    limit = 1e-2
    if expected.dtype in (torch.float32, torch.float64):
        limit = 1e-4
    gaps = (found.float() - expected.float()).norm(dim=-1)
    return bool((gaps <= limit * expected.float().norm(dim=-1)).all())


def without_values(output: Any) -> Any:
    """What a block returns, with nothing in it: `with_stream` puts a stream there."""
    if isinstance(output, tuple | list):
        return type(output)([None] * len(output))
    return None


def _read(model: "CheckpointModel", batch: Batch, site: Site) -> Tensor:
    values: list[Tensor] = []
    run_decoder(
        model,
        whole_key(batch),
        batch.padded_rows(),
        {site: lambda stream: values.append(stream[batch.mask].clone())},
        model._inputs(batch),
        stop_early=True,
    )
    return values[0]
