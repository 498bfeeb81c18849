"""A pass over rows that begin alike: the beginning once, then the rest of every row on its cache.

Interventions are bound to whole rows, and see the columns of the beginning and of the rest apart.
Where they touch the shared tokens of two rows differently (positions counted from the end, prompts
that are told apart), these rows run a beginning each; the rest runs as before. Every value is that
of a whole pass but for the order of summation.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from emlens.foundation.intervention import PaddedRows
from emlens.foundation.sites import Site
from emlens.models.batches import Batch
from emlens.models.likelihoods import AllLogits
from emlens.models.packing import Packing, mask_of
from emlens.models.pass_counts import note_pass
from emlens.models.passes import Reader
from emlens.models.prefix_cache import PrefixCache
from emlens.models.row_cache import RowCache
from emlens.models.trunks import beginning_key, rest_key, run_decoder

if TYPE_CHECKING:
    from emlens.models.checkpoint import CheckpointModel
    from emlens.models.hooked import HookedModel


@dataclass(frozen=True)
class _Beginnings:
    """Which rows stand for the others in the pass over the shared tokens.

    Args:
        rows: numbers in the batch.
        of_row: for each row of the batch, which of `rows` stands for it.
    """

    rows: tuple[int, ...]
    of_row: Int[Tensor, " row"]


_Run = tuple[RowCache, dict[Site, Tensor]]
_KEPT: ContextVar[dict[Any, _Run] | None] = ContextVar("kept beginnings", default=None)


@contextmanager
def keeping_beginnings() -> Iterator[None]:
    """Inside, a beginning that several batches share is run once.

    For a block in which no weight changes. It is run as one row wherever it is run, so values do
    not depend on it. Models under an edit run theirs for every batch.
    """
    token = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(token)


def read_shared(model: "CheckpointModel", batch: Batch, readers: Mapping[Site, Reader]) -> None:
    """Call each reader with the activation of all tokens of the batch at its site."""
    beginnings = _beginnings(model, batch)
    cache, streams = _run_beginnings(model, batch, beginnings, frozenset(readers))

    def reader(site: Site) -> Reader:
        def whole(rest: Tensor) -> None:
            beginning = streams[site].index_select(0, beginnings.of_row.to(rest.device))
            readers[site](torch.cat([beginning, rest], 1))

        return whole

    _note_rest(batch, 0)
    run_decoder(
        model,
        rest_key(batch),
        _rest_of(batch),
        {site: reader(site) for site in readers},
        _rest_inputs(batch, beginnings, cache),
        stop_early=True,
    )


Rest = Callable[[PaddedRows, Mapping[str, Any]], Tensor]
"""Runs the rest of the rows, as interventions see them, on inputs."""


def run_rest(model: "CheckpointModel", batch: Batch, logits: int, call: Rest) -> Tensor:
    """`call` for the pass over the rest, after the shared tokens were run.

    Args:
        logits: tokens at which it computes logits.
    """
    beginnings = _beginnings(model, batch)
    cache, _ = _run_beginnings(model, batch, beginnings, frozenset())
    _note_rest(batch, logits)
    return call(_rest_of(batch), _rest_inputs(batch, beginnings, cache))


def all_logits_of_parts(model: "CheckpointModel", batch: Batch, call: Rest) -> AllLogits:
    """Logits of both passes: `call` runs the shared tokens, then the rest of the rows."""
    beginnings = _beginnings(model, batch)
    cache = RowCache()
    rows = _only(batch.padded_rows(), beginnings.rows, batch.shared)
    inputs = _beginning_inputs(batch, beginnings, cache)
    tokens = inputs["input_ids"].numel()
    note_pass(tokens, tokens, tokens)
    of_beginnings = call(rows, inputs)
    _note_rest(batch, batch.ids[:, batch.shared :].numel())
    rest = call(_rest_of(batch), _rest_inputs(batch, beginnings, cache))
    return AllLogits(rest, of_beginnings, beginnings.of_row)


def note_all_logits(model: "HookedModel", batch: Batch) -> tuple[int, int]:
    """Count what `all_logits_of_parts` would run, and run nothing; for rehearsals.

    Returns:
        How many beginnings it would run, and tokens of each.
    """
    distinct = len(_beginnings(model, batch).rows)
    tokens = distinct * batch.shared
    note_pass(tokens, tokens, tokens)
    _note_rest(batch, batch.ids[:, batch.shared :].numel())
    return distinct, batch.shared


def note_shared_pass(
    model: "HookedModel", batch: Batch, sites: frozenset[Site], logits: int = 0
) -> None:
    """Count what `read_shared` or `run_rest` would run, and run nothing; for rehearsals.

    Args:
        logits: tokens at which logits would be computed.
    """
    beginnings = _beginnings(model, batch)
    kept = _KEPT.get()
    key = _key(model, batch, sites)
    if kept is None or model.edit_blocks.active or key not in kept:
        tokens = len(beginnings.rows) * batch.shared
        note_pass(tokens, tokens)
        if kept is not None and not model.edit_blocks.active:
            kept[key] = RowCache(), {}
    _note_rest(batch, logits)


def _note_rest(batch: Batch, logits: int) -> None:
    rest = batch.mask[:, batch.shared :]
    note_pass(int(rest.sum()), rest.numel(), logits)


def _key(model: "HookedModel", batch: Batch, sites: frozenset[Site]) -> Any:
    """Of a beginning that several batches may share."""
    return id(model), sites, batch.rows[0].ids[: batch.shared]


def _beginnings(model: "HookedModel", batch: Batch) -> _Beginnings:
    interventions = model.interventions
    count = len(batch.rows)
    if any(intervention.by_prompt for intervention in interventions):
        return _Beginnings(tuple(range(count)), torch.arange(count))
    rows = batch.padded_rows()
    positions = {intervention.positions for intervention in interventions} - {"all"}
    touched = torch.zeros(count, 0, dtype=torch.bool)
    for position in positions:
        touched = torch.cat([touched, rows.mask(position)[:, : batch.shared]], 1)
    first: dict[tuple[bool, ...], int] = {}
    of_row = []
    for row, key in enumerate(map(tuple, touched.tolist())):
        first.setdefault(key, row)
        of_row.append(list(first).index(key))
    return _Beginnings(tuple(first.values()), torch.tensor(of_row))


def _run_beginnings(
    model: "CheckpointModel", batch: Batch, beginnings: _Beginnings, sites: frozenset[Site]
) -> _Run:
    """Keys and values of the shared tokens, and their activations at the sites."""
    kept = _KEPT.get()
    if kept is None or model.edit_blocks.active:
        return _run_now(model, batch, beginnings, sites)
    key = _key(model, batch, sites)
    if key not in kept:
        kept[key] = _run_now(model, batch, beginnings, sites)
    return kept[key]


def _run_now(
    model: "CheckpointModel", batch: Batch, beginnings: _Beginnings, sites: frozenset[Site]
) -> _Run:
    streams: dict[Site, Tensor] = {}

    def keep(site: Site) -> Reader:
        def clone(stream: Tensor) -> None:
            streams[site] = stream.clone()

        return clone

    cache = RowCache()
    inputs = _beginning_inputs(batch, beginnings, cache)
    rows = _only(batch.padded_rows(), beginnings.rows, batch.shared)
    tokens = inputs["input_ids"].numel()
    note_pass(tokens, tokens)
    run_decoder(
        model,
        beginning_key(batch, beginnings.rows),
        rows,
        {site: keep(site) for site in sites},
        inputs,
        stop_early=bool(sites),
    )
    return cache, streams


def _beginning_inputs(batch: Batch, beginnings: _Beginnings, cache: RowCache) -> dict[str, Any]:
    ids = batch.ids[list(beginnings.rows), : batch.shared]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "past_key_values": cache,
        "use_cache": True,
    }


def _only(rows: PaddedRows, numbers: Sequence[int], width: int) -> PaddedRows:
    """Some of the rows, in their first `width` columns."""

    def of(values: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(values[number] for number in numbers)

    return replace(
        rows,
        ids=of(rows.ids),
        tokens=of(rows.tokens),
        spans=of(rows.spans),
        offsets=of(rows.offsets),
        width=width,
    )


def _rest_of(batch: Batch) -> PaddedRows:
    """The rows as interventions see them in the pass over the rest."""
    if batch.packing is not None:
        return batch.packing.rows(batch.shared)
    rows = batch.padded_rows()
    offsets = tuple(offset - batch.shared for offset in rows.offsets)
    return replace(rows, offsets=offsets, width=rows.width - batch.shared)


def _rest_inputs(batch: Batch, beginnings: _Beginnings, cache: RowCache) -> dict[str, Any]:
    inputs: dict[str, Any] = {
        "input_ids": batch.ids[:, batch.shared :],
        "attention_mask": batch.mask.long(),
        "past_key_values": PrefixCache(cache, beginnings.of_row),
        "use_cache": True,
    }
    if batch.packing is not None:
        dtype = cache.layers[0].keys.dtype
        inputs |= packed_inputs(batch, batch.packing, dtype)
    return inputs


def packed_inputs(batch: Batch, packing: Packing, dtype: torch.dtype) -> dict[str, Any]:
    """Mask and positions of the columns after the shared ones, of rows with several prompts."""
    device, start = batch.ids.device, batch.shared
    return {
        "attention_mask": mask_of(packing.sees()[:, start:], dtype).to(device),
        "position_ids": packing.positions()[:, start:].to(device),
    }
