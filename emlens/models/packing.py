"""Prompts of one row: what they share once, then the rest of each, which sees none of the others.

The answers to one question, or the metrics by which a judge is asked about one answer, share all
but their ends. Such a group is one row of a batch: a tree of tokens, with a mask for each query and
a position for each column. Interventions see every prompt as if it had a row of its own; a group
whose shared tokens they touch in different ways is not packed.

It needs a model that takes a mask for each query (`emlens.models.continuation_tree.why_no_masks`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from emlens.data.rendering import Rendered
from emlens.foundation.intervention import Intervention, PaddedRows, Touched
from emlens.models.batches import REST_TOKENS, Batch, cut_batches, pad
from emlens.models.prefix_plan import (
    plan_shared_batches,
    planned_tokens,
    shared_by_all,
    shared_groups,
)

TOGETHER: Final = 8
"""Prompts of one row at most: every column is weighed against all of its row, and those of other
prompts are masked.
"""
GROUP_TOKENS: Final = 16
"""What a group has to save."""


@dataclass(frozen=True)
class PackedRows(PaddedRows):
    """Rows that hold several prompts each, as interventions see them.

    Args:
        prompts: each in a row of its own.
        row_of: the row of each prompt.
        places: columns of each prompt's tokens, in the whole row.
        start: the first column that the pass goes through.
    """

    prompts: PaddedRows | None = None
    row_of: tuple[int, ...] = ()
    places: tuple[Int[Tensor, " token"], ...] = ()
    start: int = 0

    def mask(self, positions: Touched) -> Bool[Tensor, "row column"]:
        assert self.prompts is not None
        touched = self.prompts.mask(positions)
        columns = torch.zeros(len(self.ids), self.start + self.width, dtype=torch.bool)
        for number, (row, places) in enumerate(zip(self.row_of, self.places, strict=True)):
            columns[row, places] |= touched[number, : len(places)]
        return columns[:, self.start :]


@dataclass(frozen=True, eq=False)
class Packing:
    """Groups of prompts as the rows of a batch; prompts are numbered group by group.

    Args:
        groups: prompts of each row.
        own: first tokens that the prompts of each row share.
    """

    groups: Sequence[Sequence[Rendered]]
    own: Sequence[int]

    @cached_property
    def prompts(self) -> list[Rendered]:
        return [prompt for group in self.groups for prompt in group]

    @cached_property
    def row_of(self) -> list[int]:
        """The row of each prompt."""
        return [row for row, group in enumerate(self.groups) for _ in group]

    @cached_property
    def places(self) -> list[Int[Tensor, " token"]]:
        """Columns of each prompt's tokens: those of what its group shares, then its own."""
        places = []
        for group, own in zip(self.groups, self.own, strict=True):
            start = own
            for prompt in group:
                stop = start + len(prompt.ids) - own
                places.append(torch.tensor([*range(own), *range(start, stop)]))
                start = stop
        return places

    @cached_property
    def width(self) -> int:
        return max(int(places[-1]) + 1 for places in self.places)

    def ids(self, pad_id: int) -> Int[Tensor, "row column"]:
        ids = torch.full((len(self.groups), self.width), pad_id, dtype=torch.long)
        for row, prompt, places in zip(self.row_of, self.prompts, self.places, strict=True):
            ids[row, places] = torch.tensor(prompt.ids)
        return ids

    def positions(self) -> Int[Tensor, "row column"]:
        """Number of each column's token in its prompt; 0 for padding."""
        positions = torch.zeros(len(self.groups), self.width, dtype=torch.long)
        for row, places in zip(self.row_of, self.places, strict=True):
            positions[row, places] = torch.arange(len(places))
        return positions

    def filled(self) -> Bool[Tensor, "row column"]:
        """Columns that are no padding."""
        filled = torch.zeros(len(self.groups), self.width, dtype=torch.bool)
        for row, places in zip(self.row_of, self.places, strict=True):
            filled[row, places] = True
        return filled

    def sees(self) -> Bool[Tensor, "row column seen"]:
        """Which columns each column attends to; padding sees itself."""
        sees = torch.eye(self.width, dtype=torch.bool).repeat(len(self.groups), 1, 1)
        for row, places in zip(self.row_of, self.places, strict=True):
            earlier = torch.ones(len(places), len(places), dtype=torch.bool).tril()
            sees[row, places[:, None], places[None]] = earlier
        return sees

    def rows(self, start: int) -> PackedRows:
        """As interventions see them in a pass over the columns from `start` on."""
        firsts = pad_of([group[0] for group in self.groups])
        return PackedRows(
            firsts.ids,
            firsts.tokens,
            firsts.spans,
            firsts.offsets,
            self.width - start,
            prompts=pad_of(self.prompts),
            row_of=tuple(self.row_of),
            places=tuple(self.places),
            start=start,
        )


def pad_of(prompts: Sequence[Rendered]) -> PaddedRows:
    """Prompts in rows of their own."""
    return pad(prompts, range(len(prompts)), 0, "right", torch.device("cpu")).padded_rows()


def mask_of(
    sees: Bool[Tensor, "row column seen"], dtype: torch.dtype
) -> Float[Tensor, "row 1 column seen"]:
    """What is added to the attention of each column: nothing where it sees, else the least."""
    mask = torch.zeros(sees.shape, dtype=dtype)
    mask.masked_fill_(~sees, torch.finfo(dtype).min)
    return mask[:, None]


@dataclass(frozen=True)
class PackedPlan:
    """Groups of row numbers, in batches.

    Args:
        shared: first tokens of all rows that are run once.
        batches: groups of each batch. own: first tokens that the rows of each group share.
    """

    shared: int
    batches: Sequence[Sequence[tuple[list[int], int]]]
    padded: int
    """Tokens that it runs, padding included."""

    @property
    def passes(self) -> int:
        return len(self.batches) + (self.shared > 0)

    @property
    def packs(self) -> bool:
        """Whether some row holds several prompts."""
        return any(len(group) > 1 for batch in self.batches for group, _ in batch)


def plan_packing(
    rows: Sequence[Rendered],
    batch_tokens: int,
    limits: Sequence[int],
    interventions: Sequence[Intervention] = (),
) -> PackedPlan:
    """Groups of rows that share more than all rows do, and batches of groups.

    Args:
        batch_tokens: padded tokens of a batch at most, the shared ones counted in every row.
        limits: first tokens that each row may share at most.
        interventions: those that are active.
    """
    shared = shared_by_all([row.ids for row in rows], limits)
    groups = list(_groups(rows, shared, limits, interventions))
    if shared * (len(groups) - 1) <= REST_TOKENS:
        # a pass of its own would cost more than it saves
        shared = 0
        groups = list(_groups(rows, shared, limits, interventions))
    widths = [own + sum(len(rows[i].ids) - own for i in group) for group, own in groups]
    batches, padded = [], shared
    for chosen in cut_batches(range(len(groups)), widths, batch_tokens, shared=shared):
        batches.append([groups[number] for number in chosen])
        padded += len(chosen) * (max(widths[number] for number in chosen) - shared)
    return PackedPlan(shared, batches, padded)


def _groups(
    rows: Sequence[Rendered],
    shared: int,
    limits: Sequence[int],
    interventions: Sequence[Intervention],
) -> Iterator[tuple[list[int], int]]:
    """Row numbers of each group, and how many first tokens it shares."""
    rest = [row.ids[shared:] for row in rows]
    rest_limits = [limit - shared for limit in limits]
    for members, of_group in shared_groups(rest, rest_limits, group_tokens=GROUP_TOKENS):
        step = TOGETHER if of_group else 1
        for start in range(0, len(members), step):
            group = members[start : start + step]
            own = shared + of_group
            if of_group and not _touched_alike([rows[i] for i in group], own, interventions):
                yield from (([i], shared) for i in group)
                continue
            yield group, own if len(group) > 1 else shared


def _touched_alike(
    rows: Sequence[Rendered], own: int, interventions: Sequence[Intervention]
) -> bool:
    """Whether interventions do the same to the first `own` tokens of all rows."""
    if any(intervention.by_prompt for intervention in interventions):
        return False
    padded = pad_of(rows)
    for positions in {intervention.positions for intervention in interventions} - {"all"}:
        touched = padded.mask(positions)[:, :own]
        if bool((touched != touched[:1]).any()):
            return False
    return True


def packed_batches(
    rows: Sequence[Rendered],
    batch_tokens: int,
    limits: Sequence[int],
    interventions: Sequence[Intervention],
    pad_id: int,
    device: torch.device,
) -> list[Batch] | None:
    """Batches of `plan_packing`; None where batches of single rows run no more tokens."""
    plan = plan_packing(rows, batch_tokens, limits, interventions)
    ids = [row.ids for row in rows]
    single = planned_tokens(plan_shared_batches(ids, batch_tokens, limits=limits), ids)
    if not plan.packs or plan.padded >= single:
        return None
    return [packed_batch(rows, groups, plan.shared, pad_id, device) for groups in plan.batches]


def packed_batch(
    rows: Sequence[Rendered],
    groups: Sequence[tuple[list[int], int]],
    shared: int,
    pad_id: int,
    device: torch.device,
) -> Batch:
    """Groups of rows as a batch; `index` numbers the rows, group by group."""
    packing = Packing([[rows[i] for i in group] for group, _ in groups], [own for _, own in groups])
    return Batch(
        tuple(group[0] for group in packing.groups),
        tuple(i for group, _ in groups for i in group),
        packing.ids(pad_id).to(device),
        packing.filled().to(device),
        "right",
        shared,
        packing,
    )
