"""Which rows begin with the same tokens, and which batches then run that beginning once.

Prompts under one chat template share its system turn; answers to one question share the question.
Rows of a group run in batches of their own: the shared beginning as one row, then the rest of every
row on its keys and values. Everything here follows from token ids, so that two models given the
same rows run the same batches.

Method: rows are sorted by their ids; the lengths that neighbours share form a tree of intervals
(the LCP tree of suffix arrays). Of all sets of disjoint intervals of the tree the one that saves
most tokens is taken, a group counted as `GROUP_TOKENS`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from jaxtyping import Int

from emlens.models.batches import PASS_TOKENS, cut_batches

GROUP_TOKENS: Final = 2 * PASS_TOKENS
"""What a group costs: the pass over its beginning, and batches that it shares with nobody."""

Ids = Sequence[int] | Int[np.ndarray, " _"]


@dataclass(frozen=True)
class SharedBatch:
    """Rows that run together, longest first, and how many first tokens they share."""

    rows: tuple[int, ...]
    shared: int = 0


def plan_shared_batches(
    rows: Sequence[Ids],
    batch_tokens: int,
    threshold: int | None = None,
    limits: Sequence[int] | None = None,
) -> list[SharedBatch]:
    """Batches of rows that share a beginning, and of the others; longest row first.

    Args:
        rows: token ids of each row.
        batch_tokens: padded tokens of a batch at most, the shared ones counted in every row.
        threshold: rows of more tokens are another function of their tokens, and share nothing.
        limits: first tokens that each row may share at most; None: all but its last.
    """
    lengths = [len(row) for row in rows]
    if limits is None:
        limits = [length - 1 for length in lengths]
    if threshold is not None:
        limits = [
            0 if length > threshold else limit
            for limit, length in zip(limits, lengths, strict=True)
        ]
    batches = []
    for group, shared in shared_groups(rows, limits):
        for batch in cut_batches(group, lengths, batch_tokens, threshold, shared):
            batches.append(SharedBatch(tuple(batch), shared))
    return sorted(batches, key=lambda batch: (-lengths[batch.rows[0]], batch.rows[0]))


def planned_tokens(plan: Sequence[SharedBatch], rows: Sequence[Ids]) -> int:
    """Tokens that a plan runs, padding included."""
    tokens = 0
    for batch in plan:
        longest = len(rows[batch.rows[0]])
        tokens += batch.shared + len(batch.rows) * (longest - batch.shared)
    return tokens


def planned_passes(plan: Sequence[SharedBatch]) -> int:
    """Passes of a plan: one for each batch, and one for a beginning that its rows share."""
    return sum(2 if batch.shared else 1 for batch in plan)


def shared_by_all(rows: Sequence[Ids], limits: Sequence[int]) -> int:
    """First tokens that all rows share; at most the least of the limits."""
    arrays = [np.asarray(row, dtype=np.int64) for row in rows]
    return min(min(limits), *(common_tokens(arrays[0], array) for array in arrays))


def shared_groups(
    rows: Sequence[Ids], limits: Sequence[int], group_tokens: int = GROUP_TOKENS
) -> list[tuple[list[int], int]]:
    """Row numbers of each group, ascending, with the number of its shared tokens; the rows of no
    group come last, with 0.

    Args:
        group_tokens: what a group costs.
    """
    arrays = [np.asarray(row, dtype=np.int64) for row in rows]
    order = sorted_by_ids(rows)
    common = np.zeros(max(0, len(order) - 1), dtype=np.int64)
    for place, (a, b) in enumerate(pairwise(order)):
        common[place] = min(common_tokens(arrays[a], arrays[b]), limits[a], limits[b])
    groups = []
    single = set(order)
    for first, last, shared in _best_intervals(common, group_tokens):
        members = order[first : last + 1]
        groups.append((sorted(members), shared))
        single.difference_update(members)
    if single:
        groups.append((sorted(single), 0))
    return groups


def sorted_by_ids(rows: Sequence[Ids]) -> list[int]:
    """Row numbers in the order of their ids; of equal rows the first number first."""
    # bytes in big-endian order sort as the ids do
    keys = [np.asarray(row, dtype=">i8").tobytes() for row in rows]
    return sorted(range(len(rows)), key=lambda i: (keys[i], i))


def common_tokens(a: Ids, b: Ids) -> int:
    """First tokens that two rows share."""
    length = min(len(a), len(b))
    differing = np.flatnonzero(np.asarray(a[:length]) != np.asarray(b[:length]))
    return int(differing[0]) if len(differing) else length


@dataclass
class _Interval:
    """Sorted rows `first` to `last`, which share `shared` tokens."""

    first: int
    last: int
    shared: int
    parts: "list[_Interval]"

    def saved(self, group_tokens: int) -> int:
        return self.shared * (self.last - self.first) - group_tokens


def _best_intervals(
    common: Int[np.ndarray, " pair"], group_tokens: int
) -> list[tuple[int, int, int]]:
    """First row, last row and shared tokens of the intervals that save most."""
    if not len(common):
        return []
    root = _Interval(0, len(common), int(common.min()), [])
    found, open_intervals = [root], [root]
    while open_intervals:  # a loop, since rows that grow one from another nest as deep as they are
        interval = open_intervals.pop()
        inside = common[interval.first : interval.last]
        cuts = interval.first + np.flatnonzero(inside == interval.shared)
        edges = [interval.first - 1, *cuts.tolist(), interval.last]
        for before, end in pairwise(edges):
            pairs = common[before + 1 : end]
            # nothing in it can save anything
            if not len(pairs) or int(pairs.max()) * len(pairs) <= group_tokens:
                continue
            part = _Interval(before + 1, end, int(pairs.min()), [])
            interval.parts.append(part)
            found.append(part)
            open_intervals.append(part)
    best: dict[int, tuple[int, list[_Interval]]] = {}
    for interval in reversed(found):  # parts before the interval that holds them
        saved = sum(best[id(part)][0] for part in interval.parts)
        chosen = [kept for part in interval.parts for kept in best[id(part)][1]]
        if interval.saved(group_tokens) > saved:
            saved, chosen = interval.saved(group_tokens), [interval]
        best[id(interval)] = (saved, chosen)
    chosen = sorted(best[id(root)][1], key=lambda interval: interval.first)
    return [(interval.first, interval.last, interval.shared) for interval in chosen]
