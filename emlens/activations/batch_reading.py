"""Runs rows of a plan through a model and gives what is kept of them.

Only the decoder runs, only up to the deepest site, and a padded activation is reduced inside the
hook. A batch that does not fit into memory is cut and tried again.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch import Tensor

from emlens.activations.batch_layout import BatchLayout
from emlens.activations.capture_plan import CapturePlan
from emlens.activations.memory import Key, empty_rows, place_rows
from emlens.activations.reducing import Reduction
from emlens.activations.shared_trunk import TrunkPasses
from emlens.data.rendering import Rendered
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.foundation.sites import Site
from emlens.models.batches import pad
from emlens.models.finite import is_finite
from emlens.models.hooked import HookedModel
from emlens.models.shared_passes import keeping_beginnings

Result = TypeVar("Result")
_CPU_MEMORY_ERRORS = ("can't allocate memory", "not enough memory")
"""What torch's allocators for the CPU write into a plain RuntimeError."""


class OutOfMemory(Exception):
    """A pass did not fit into memory; caught inside this package."""


def read_rows(
    model: HookedModel,
    plan: CapturePlan,
    index: Sequence[int],
    *,
    on_device: bool = False,
    trunk: TrunkPasses | None = None,
) -> dict[Key, Tensor]:
    """Run these rows as one batch; kept values by site and position, rows in the order of `index`.

    They are moved to the CPU when the pass has ended, or left where they are with `on_device`.

    Raises:
        OutOfMemory: they do not fit.
        NotFiniteError: NaN or an infinite value; names the prompt and the first site of the model
            that has one.
    """
    try:
        return _read_batch(model, plan, index, on_device, trunk)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(str(error)) from None
    except RuntimeError as error:
        if not any(text in str(error) for text in _CPU_MEMORY_ERRORS):
            raise
        raise OutOfMemory(str(error)) from None


def _read_batch(
    model: HookedModel,
    plan: CapturePlan,
    index: Sequence[int],
    on_device: bool,
    trunk: TrunkPasses | None,
) -> dict[Key, Tensor]:
    rows = [plan.rows.rendered(i) for i in index]
    shared = plan.layout.shared_by(index[0])
    batch = pad(rows, index, model.pad_id, "right", model.device, shared)
    known = None
    if trunk is not None:
        known = trunk.known(batch, plan.keys)
    values: dict[Key, Tensor] = dict(known or {})
    reduction = Reduction(batch, plan.rows, plan.positions, plan.dtype)

    def reader(site: Site) -> Callable[[Tensor], None]:
        def keep(stream: Tensor) -> None:
            for position, value in reduction(stream).items():
                values[str(site), position] = value

        return keep

    known_sites = {site for site, _ in values}
    readers = {site: reader(site) for site in plan.sites if str(site) not in known_sites}
    with ExitStack() as stack:
        stack.enter_context(model.computing_in(plan.compute_dtype))
        if trunk is not None:
            stack.enter_context(trunk.running(model, from_start=known is not None))
        if readers:
            model.run(batch, readers)
    if trunk is not None:
        trunk.keep(batch, values)
    if not on_device:
        # after the pass: a copy inside a hook would make the device wait at every site
        values = {key: value.cpu() for key, value in values.items()}
    for key, value in values.items():
        if not is_finite(value):
            row = _first_row_not_finite(value, rows, pooled=key[1] != "all")
            model.refuse_not_finite(row, " at ".join(key), kept=plan.dtype)
    return values


def _first_row_not_finite(value: Tensor, rows: Sequence[Rendered], *, pooled: bool) -> Rendered:
    """The prompt of the first kept vector that is not finite."""
    vector = int((~value.isfinite()).any(-1).int().argmax())
    if pooled:
        return rows[vector]
    ends = torch.tensor([len(row.ids) for row in rows]).cumsum(0)
    return rows[int(torch.searchsorted(ends, vector, right=True))]


def read_shard(
    model: HookedModel,
    plan: CapturePlan,
    layout: BatchLayout,
    shard: int,
    advance: Callable[[], Any],
    trunk: TrunkPasses | None = None,
) -> tuple[dict[Key, Tensor], BatchLayout]:
    """What is kept of one shard's rows, and the layout that ran.

    Raises:
        InputError: one row alone does not fit into memory.
    """
    with model.computing_in(plan.compute_dtype), keeping_beginnings():  # once for all batches
        if trunk is not None:
            trunk.begin_shard()
        return _read_batches(model, plan, layout, shard, advance, trunk)


def _read_batches(
    model: HookedModel,
    plan: CapturePlan,
    layout: BatchLayout,
    shard: int,
    advance: Callable[[], Any],
    trunk: TrunkPasses | None,
) -> tuple[dict[Key, Tensor], BatchLayout]:
    values: dict[Key, Tensor] = {}
    shard_rows = layout.rows_of(shard)
    place = {row: i for i, row in enumerate(shard_rows)}
    lengths = [plan.rows.lengths[row] for row in shard_rows]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    for batch in layout.batches_of(shard):
        pieces, layout = read_cutting(
            plan, layout, batch, lambda rows: read_rows(model, plan, rows, trunk=trunk)
        )
        for rows, piece in pieces:
            index = torch.tensor([place[row] for row in rows])
            _place_piece(values, piece, index, plan, shard_rows, offsets)
        advance()
    return values, layout


def _place_piece(
    values: dict[Key, Tensor],
    piece: Mapping[Key, Tensor],
    index: Tensor,
    plan: CapturePlan,
    shard_rows: Sequence[int],
    offsets: Tensor,
) -> None:
    for key, value in piece.items():
        _, position = key
        if key not in values:
            count = plan.vector_count(position, shard_rows)
            values[key] = empty_rows(value, count, value.shape[-1])
        place_rows(values[key], value, index, offsets if position == "all" else None)


def read_cutting(
    plan: CapturePlan, layout: BatchLayout, batch: int, read: Callable[[Sequence[int]], Result]
) -> tuple[list[tuple[tuple[int, ...], Result]], BatchLayout]:
    """`read` for each piece of a batch, cutting a batch that does not fit until it does.

    Returns:
        The rows of each piece with what was read of them, and the layout that ran.

    Raises:
        InputError: one row alone does not fit into memory.
    """
    while True:
        try:
            return [(rows, read(rows)) for rows in layout.pieces(batch)], layout
        except OutOfMemory as error:
            message = str(error)
        # Only after the except block are the error and with it the frames of the failed pass gone,
        # so that the allocator can give back what they held.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not layout.can_cut(batch):
            row = layout.pieces(batch)[0][0]
            raise InputError(
                f"prompt {one_line(plan.rows.ids[row], 60)!r} with {plan.rows.lengths[row]} tokens"
                f" does not fit into memory alone ({one_line(message, 120)});"
                " shorten it, or load the model in a smaller dtype"
            )
        layout = layout.with_cut(batch)
