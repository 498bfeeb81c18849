"""Rendered rows → padded batches, longest first, under a budget of padded tokens.

The layout depends on row lengths and the budget alone, so two models given the same rows run the
identical batches.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from emlens.data.rendering import Rendered
from emlens.foundation.errors import InputError, StateError
from emlens.foundation.intervention import PaddedRows
from emlens.foundation.notebooks import Brief
from emlens.foundation.positions import RowSpans

if TYPE_CHECKING:
    from emlens.models.packing import Packing

PASS_TOKENS: Final = 64
"""What one more forward pass costs, in padded tokens: reading the weights once."""
REST_TOKENS: Final = 32
"""The same for rows whose first tokens were run: what is left of them is short, and padding it to
one length costs more of it. Measured on one core: 17 tokens (SmolLM2, float32).
"""


@dataclass(frozen=True, repr=False)
class Batch(Brief):
    """Rows padded to one length; `index[i]` is the number of row i among the planned rows.

    `shared` is how many first tokens all rows have in common and are to be run once; a model that
    cannot runs whole rows.
    `packing`: each row holds several prompts, which `index` numbers; `rows` are the first of each.
    """

    rows: tuple[Rendered, ...]
    index: tuple[int, ...]
    ids: Int[Tensor, "batch token"]
    mask: Bool[Tensor, "batch token"]
    side: Literal["left", "right"]
    shared: int = 0
    packing: "Packing | None" = None

    @property
    def spans(self) -> list[RowSpans]:
        return [row.spans for row in self.rows]

    def offset(self, row: int) -> int:
        """Padded column of the row's first token."""
        if self.side == "right":
            return 0
        return self.ids.shape[1] - len(self.rows[row].ids)

    def padded_rows(self, new_tokens: int = 0) -> PaddedRows:
        """The rows as interventions see them.

        Args:
            new_tokens: how many a generation may add on the right.
        """
        offsets = tuple(self.offset(i) for i in range(len(self.rows)))
        width = self.ids.shape[1] + new_tokens
        return PaddedRows(*_unpadded(self.rows), offsets, width, new_tokens)


def step_rows(rows: Sequence[Rendered], generated: Sequence[int], new_tokens: int) -> PaddedRows:
    """One step of a generation as interventions see it.

    It is one column, which holds token number `generated[i]` (0-based) of row i's answer.
    """
    lengths = [len(row.ids) for row in rows]
    offsets = tuple(-(length + n) for length, n in zip(lengths, generated, strict=True))
    return PaddedRows(*_unpadded(rows), offsets, 1, new_tokens)


def _unpadded(
    rows: Sequence[Rendered],
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...], tuple[RowSpans, ...]]:
    return (
        tuple(row.id for row in rows),
        tuple(row.ids for row in rows),
        tuple(row.spans for row in rows),
    )


def plan_batches(
    lengths: Sequence[int], batch_tokens: int, threshold: int | None = None
) -> list[list[int]]:
    """Row indices of each batch: longest first, padded size at most `batch_tokens` (a longer row
    goes alone).

    Of all ways to cut the sorted rows into batches, the one with the fewest padded tokens, a pass
    counted as `PASS_TOKENS` of them (dynamic programming over the cuts); of equally good ones, the
    one that leaves least for the last batch.

    Args:
        threshold: rows of more tokens share no batch with the others.

    Raises:
        InputError: `batch_tokens` below 1.
    """
    if batch_tokens < 1:
        raise InputError(f"batch_tokens={batch_tokens} must be 1 or more")
    return cut_batches(range(len(lengths)), lengths, batch_tokens, threshold)


def cut_batches(
    rows: Iterable[int],
    lengths: Sequence[int],
    batch_tokens: int,
    threshold: int | None = None,
    shared: int = 0,
) -> list[list[int]]:
    """`plan_batches` for some of the rows.

    Args:
        shared: first tokens that these rows have in common and a batch runs once; they count in the
            budget, since every row attends to them, and not in the padding.
    """
    order = sorted(rows, key=lambda i: (-lengths[i], i))
    above = 0
    if threshold is not None:
        above = sum(lengths[i] > threshold for i in order)
    parts = [order[:above], order[above:]]
    return [batch for part in parts if part for batch in _cut(part, lengths, batch_tokens, shared)]


def _cut(
    order: list[int], lengths: Sequence[int], batch_tokens: int, shared: int
) -> list[list[int]]:
    """Consecutive rows, longest first, as batches."""
    sizes = np.maximum(np.array([lengths[i] for i in order], dtype=np.int64), 1)
    pass_tokens = REST_TOKENS if shared else PASS_TOKENS
    # cost[n]: the least that the first n rows cost; start[n]: where their last batch starts
    cost = np.zeros(len(order) + 1, dtype=np.int64)
    start = np.zeros(len(order) + 1, dtype=np.int64)
    first = 0  # the earliest start whose batch fits; it never moves back, since rows get shorter
    for stop in range(1, len(order) + 1):
        while first < stop - 1 and sizes[first] * (stop - first) > batch_tokens:
            first += 1
        starts = np.arange(first, stop)
        costs = cost[starts] + (sizes[starts] - shared) * (stop - starts) + pass_tokens
        best = stop - 1 - int(costs[::-1].argmin())  # of equal costs the latest start
        cost[stop], start[stop] = costs[best - first], best
    edges = [len(order)]
    while edges[-1]:
        edges.append(int(start[edges[-1]]))
    return [order[begin:end] for begin, end in pairwise(reversed(edges))]


def pad(
    rows: Sequence[Rendered],
    index: Sequence[int],
    pad_id: int,
    side: Literal["left", "right"],
    device: torch.device,
    shared: int = 0,
) -> Batch:
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        start = width - len(row.ids) if side == "left" else 0
        ids[i, start : start + len(row.ids)] = torch.tensor(row.ids)
        mask[i, start : start + len(row.ids)] = True
    if shared and (side == "left" or bool((ids[:, :shared] != ids[:1, :shared]).any())):
        raise StateError(
            f"rows of a batch do not share their first {shared} tokens on the right-padded side"
        )
    return Batch(tuple(rows), tuple(index), ids.to(device), mask.to(device), side, shared)
