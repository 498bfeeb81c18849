"""Prompts of one row as a tree of tokens: what any of them share with another is run once.

The reference answers to some questions, or some texts under one chat template, are few tokens and
share many: the system turn, then each question. Such prompts are one row of a batch, or a few rows.
Its columns are the tokens of the tree; a mask lets each see those before it in its own prompt, and
each has the position that it has there. So there is no padding, and one pass in place of several.
Interventions see every prompt as if it had a row of its own; tokens that they touch in different
ways are not shared.

Method: prompts are sorted by their ids, and each shares with the one before it. It needs a model
that takes a mask for each query (`emlens.models.continuation_tree.why_no_masks`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from emlens.data.rendering import Rendered
from emlens.foundation.intervention import Intervention
from emlens.models.batches import REST_TOKENS, Batch, cut_batches
from emlens.models.lower_blocks import start_above
from emlens.models.packing import Packing, pad_of, plan_packing
from emlens.models.prefix_plan import (
    common_tokens,
    plan_shared_batches,
    planned_passes,
    planned_tokens,
    sorted_by_ids,
)

if TYPE_CHECKING:
    from emlens.models.hooked import HookedModel

ROW_TOKENS: Final = 256
"""Columns of a row: every column is weighed against its whole row, and those of other prompts are
masked. A prompt that shares more than it adds may still join, up to twice the longest prompt.
"""


@dataclass(frozen=True, eq=False)
class TokenTree(Packing):
    """Trees of tokens as the rows of a batch.

    Args:
        columns: of each prompt's tokens, in order of `prompts`.
    """

    columns: Sequence[Int[Tensor, " token"]] = ()

    @property
    def places(self) -> list[Int[Tensor, " token"]]:
        return list(self.columns)

    @property
    def width(self) -> int:
        return 1 + max(int(columns.max()) for columns in self.columns)


@dataclass
class _Row:
    """A row that is being filled: its prompts, their columns, and how many columns there are."""

    members: list[int]
    columns: list[Int[np.ndarray, " token"]]
    width: int
    longest: int

    def add(self, number: int, length: int, shared: int) -> None:
        own = np.arange(self.width, self.width + length - shared)
        self.columns.append(np.concatenate([self.columns[-1][:shared], own]))
        self.members.append(number)
        self.width += len(own)
        self.longest = max(self.longest, length)

    def has_room(self, length: int, shared: int) -> bool:
        own = length - shared
        limit = 2 * max(self.longest, length) if shared > own else 0
        return self.width + own <= max(ROW_TOKENS, limit)


def plan_rows(
    rows: Sequence[Rendered], limits: Sequence[int], interventions: Sequence[Intervention] = ()
) -> list[_Row]:
    """Trees that hold all prompts.

    Args:
        limits: first tokens that each prompt may share at most.
        interventions: those that are active; none may depend on the prompt.
    """
    order = sorted_by_ids([row.ids for row in rows])
    common = _shared_with_next(rows, order, limits, interventions)
    trees: list[_Row] = []
    for place, number in enumerate(order):
        length = len(rows[number].ids)
        shared = common[place - 1] if place else 0
        if trees and trees[-1].has_room(length, shared):
            trees[-1].add(number, length, shared)
        else:
            trees.append(_Row([number], [np.arange(length)], length, length))
    return trees


def _shared_with_next(
    rows: Sequence[Rendered],
    order: Sequence[int],
    limits: Sequence[int],
    interventions: Sequence[Intervention],
) -> list[int]:
    """First tokens that each prompt, in this order, shares with the next one."""
    touched = []
    if rows:
        padded = pad_of(rows)
        positions = {intervention.positions for intervention in interventions} - {"all"}
        touched = [padded.mask(position) for position in positions]
    shared = []
    for a, b in pairwise(order):
        common = min(common_tokens(rows[a].ids, rows[b].ids), limits[a], limits[b])
        for mask in touched:
            unlike = (mask[a, :common] != mask[b, :common]).nonzero()
            if len(unlike):
                common = int(unlike[0])
        shared.append(common)
    return shared


def tree_batches(
    model: "HookedModel",
    rows: Sequence[Rendered],
    batch_tokens: int,
    limits: Sequence[int],
    *,
    packed: bool = True,
) -> list[Batch] | None:
    """Batches of trees; None where the model cannot run them, or other batches cost less.

    Args:
        batch_tokens: columns of a batch at most.
        limits: first tokens that each prompt may share at most.
        packed: whether the batches of `plan_packing` are one of the other ways.
    """
    interventions = model.interventions
    if not rows or any(intervention.by_prompt for intervention in interventions):
        return None
    if model.why_not_packed(max(len(row.ids) for row in rows)) is not None:
        return None
    trees = plan_rows(rows, limits, interventions)
    widths = [tree.width for tree in trees]
    batches = cut_batches(range(len(trees)), widths, batch_tokens)
    tokens = sum(len(chosen) * widths[chosen[0]] for chosen in batches)
    # a pass over whole rows need not run the blocks below an edit again
    if not start_above(model):
        ids = [row.ids for row in rows]
        plan = plan_shared_batches(ids, batch_tokens, limits=limits)
        least = planned_tokens(plan, ids) + REST_TOKENS * planned_passes(plan)
        if packed:
            groups = plan_packing(rows, batch_tokens, limits, interventions)
            least = min(least, groups.padded + REST_TOKENS * groups.passes)
        if tokens + REST_TOKENS * len(batches) >= least:
            return None
    return [_batch(model, rows, [trees[i] for i in chosen]) for chosen in batches]


def _batch(model: "HookedModel", rows: Sequence[Rendered], trees: Sequence[_Row]) -> Batch:
    """Trees as a batch; `index` numbers the prompts, tree by tree."""
    groups = [[rows[number] for number in tree.members] for tree in trees]
    columns = [torch.from_numpy(places) for tree in trees for places in tree.columns]
    tree = TokenTree(groups, [0] * len(groups), columns)
    return Batch(
        tuple(group[0] for group in groups),
        tuple(number for each in trees for number in each.members),
        tree.ids(model.pad_id).to(model.device),
        tree.filled().to(model.device),
        "right",
        0,
        tree,
    )
