"""What a capture reads, worked out before the first pass: rows, sites, positions, batches, kept
dtype, and its size.

`read_batch` runs some rows through one model and gives what is kept of them: only the decoder runs,
only up to the deepest site, and a padded activation is reduced inside the hook. Running out of
memory is an error of its own, so that the caller can cut the batch.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from emlens.activations.batch_layout import BatchLayout
from emlens.activations.record import Key, empty_rows, place_rows
from emlens.activations.reducing import Reduction
from emlens.activations.token_rows import CaptureRows
from emlens.data.prompts import Prompt
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.foundation.positions import Position, PositionLike, parse_position
from emlens.foundation.sites import Site, resolve_sites
from emlens.models.batches import pad
from emlens.models.hooked import HookedModel
from emlens.models.passes import check_readers

Result = TypeVar("Result")
BATCH_TOKENS = 2048
"""Padded tokens a batch holds at most: enough to use an accelerator, few enough for the caches of a
processor.
"""
LARGE_BYTES = 2**33
"""A capture that keeps more than this (8 GiB) runs only where the caller said so."""


class OutOfMemory(Exception):
    """A pass did not fit into memory; caught inside this package."""


@dataclass(frozen=True)
class Reading:
    """One capture, planned; the same for every model it runs on."""

    rows: CaptureRows
    sites: tuple[Site, ...]
    positions: tuple[Position, ...]
    layout: BatchLayout
    batch_tokens: int
    dtype: torch.dtype | None
    value_bytes: int

    @property
    def keys(self) -> list[Key]:
        return [(str(site), position.name) for site in self.sites for position in self.positions]

    def count(self, position: Position | str, rows: Sequence[int]) -> int:
        """Vectors kept of these rows at one position."""
        name = position if isinstance(position, str) else position.name
        return sum(self.rows.lengths[i] for i in rows) if name == "all" else len(rows)

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes kept of each position over all sites."""
        everything = range(len(self.rows))
        return {
            p.name: self.count(p, everything) * len(self.sites) * self.value_bytes
            for p in self.positions
        }


def plan_reading(
    models: Mapping[str, HookedModel],
    prompts: Sequence[Prompt],
    *,
    sites: str | Site | Iterable[str | Site],
    layers: Sequence[int] | None,
    positions: PositionLike | Sequence[PositionLike],
    skip_first: int,
    batch_tokens: int,
    dtype: torch.dtype | None,
) -> Reading:
    """Plan one capture for several models that must read the same ids.

    Raises:
        InputError: no model, no position or one named twice, a site or layer that does not exist, a
            prompt that cannot be rendered, lacks a position or has other ids under another model.
    """
    if not models:
        raise InputError("models is empty; pass at least one")
    reference = next(iter(models.values()))
    listed = (
        [positions]
        if isinstance(positions, str | Position) or callable(positions)
        else list(positions)
    )
    wanted = [parse_position(position, skip_first) for position in listed]
    if not wanted:
        raise InputError("positions is empty; pass at least one such as 'last_prompt'")
    if len({p.name for p in wanted}) != len(wanted):
        raise InputError(f"positions holds a name twice: {[p.name for p in wanted]}")
    places = resolve_sites(sites, reference.n_layers, layers)
    for model in models.values():
        check_readers(places, model.sites, model.name, model.n_layers)
    rows = CaptureRows.of(reference, prompts)
    for other in models.values():
        rows.check_other(reference, other, prompts)
    rows.resolve(wanted)
    value_bytes = reference.d_model * (dtype or dtype_of(reference)).itemsize
    pooled = sum(p.pooled for p in wanted) * len(places) * value_bytes
    layout = BatchLayout.plan(
        rows.lengths,
        batch_tokens,
        pooled,
        (len(wanted) - sum(p.pooled for p in wanted)) * len(places) * value_bytes,
    )
    return Reading(rows, tuple(places), tuple(wanted), layout, batch_tokens, dtype, value_bytes)


def dtype_of(model: HookedModel) -> torch.dtype:
    """The dtype of a model's residual stream, as its loader recorded it."""
    found = getattr(torch, str(model.provenance.get("dtype")), torch.float32)
    return found if isinstance(found, torch.dtype) and found.is_floating_point else torch.float32


def read_rows(
    model: HookedModel, reading: Reading, index: Sequence[int], *, on_device: bool = False
) -> dict[Key, Tensor]:
    """Run these rows as one batch; kept values by site and position, rows in the order of `index`.

    They are moved to the CPU when the pass has ended, or left where they are with `on_device`.

    Raises:
        OutOfMemory: they do not fit.
    """
    kept: dict[Key, Tensor] = {}

    def reader(site: Site, reduce: Reduction) -> Callable[[Tensor], None]:
        return lambda stream: kept.update(
            {(str(site), name): value for name, value in reduce(stream).items()}
        )

    try:
        batch = pad(
            [reading.rows.rendered(i) for i in index], index, model.pad_id, "right", model.device
        )
        reduce = Reduction(batch, reading.rows, reading.positions, reading.dtype)
        model.run(batch, {site: reader(site, reduce) for site in reading.sites})
        return kept if on_device else {key: value.cpu() for key, value in kept.items()}
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(str(error)) from None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error) and "not enough memory" not in str(error):
            raise
        raise OutOfMemory(str(error)) from None


def read_shard(
    model: HookedModel,
    reading: Reading,
    layout: BatchLayout,
    shard: int,
    advance: Callable[[], Any],
) -> tuple[dict[Key, Tensor], BatchLayout]:
    """What is kept of one shard's rows, and the layout it took: a batch that does not fit is cut
    and tried again.

    Raises:
        InputError: one row alone does not fit into memory.
    """
    values: dict[Key, Tensor] = {}
    total = layout.rows_of(shard)
    place = {row: i for i, row in enumerate(total)}
    offsets = torch.tensor([0, *(reading.rows.lengths[row] for row in total)]).cumsum(0)
    for batch in layout.batches_of(shard):
        parts, layout = cutting(
            reading, layout, batch, lambda rows: read_rows(model, reading, rows)
        )
        for rows, part in parts:
            index = torch.tensor([place[row] for row in rows])
            for key, value in part.items():
                if key not in values:
                    values[key] = empty_rows(value, reading.count(key[1], total), value.shape[-1])
                place_rows(values[key], value, index, offsets if key[1] == "all" else None)
        advance()
    return values, layout


def cutting(
    reading: Reading, layout: BatchLayout, batch: int, read: Callable[[Sequence[int]], Result]
) -> tuple[list[tuple[tuple[int, ...], Result]], BatchLayout]:
    """`read` for each piece of a batch; a batch that does not fit is cut and read anew. Also the
    layout it took.

    Raises:
        InputError: one row alone does not fit into memory.
    """
    while True:
        said = ""
        try:
            return [(rows, read(rows)) for rows in layout.pieces(batch)], layout
        except OutOfMemory as error:
            said = str(error)
        # here the failed pass is gone, and what it held can be given back
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not layout.can_cut(batch):
            row = layout.pieces(batch)[0][0]
            raise InputError(
                f"prompt {one_line(reading.rows.ids[row], 60)!r} with {reading.rows.lengths[row]}"
                f" tokens does not fit into memory alone ({one_line(said, 120)});"
                " shorten it, or load the model in a smaller dtype"
            )
        layout = layout.cut(batch)
