"""Rendered rows → padded batches, longest first, under a budget of padded tokens.

The layout depends on row lengths and the budget alone, so two models given the same rows run the identical batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from emlens.data.rendering import Rendered
from emlens.foundation.errors import InputError
from emlens.foundation.intervention import TokenScope
from emlens.foundation.positions import RowSpans


@dataclass(frozen=True)
class Batch:
    """Rows padded to one length. `index[i]` is where row i stood in the rows that were planned."""

    rows: tuple[Rendered, ...]
    index: tuple[int, ...]
    ids: Int[Tensor, "batch token"]
    mask: Bool[Tensor, "batch token"]
    side: Literal["left", "right"]

    @property
    def spans(self) -> list[RowSpans]:
        return [row.spans for row in self.rows]

    def offset(self, row: int) -> int:
        """Padded column of the row's first token."""
        return self.ids.shape[1] - len(self.rows[row].ids) if self.side == "left" else 0

    def scope_mask(self, scope: TokenScope) -> Bool[Tensor, "batch token"]:
        """Tokens an intervention of this scope touches; padding is never one."""
        if scope == "all":
            return self.mask
        in_prompt = torch.zeros_like(self.mask)
        for i, row in enumerate(self.rows):
            start = self.offset(i)
            in_prompt[i, start : start + row.prompt_end] = True
        return in_prompt if scope == "prompt" else self.mask & ~in_prompt


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Row indices of each batch: longest first, padded size at most `batch_tokens` (a longer row goes alone)."""
    if batch_tokens < 1:
        raise InputError(f"batch_tokens={batch_tokens} must be 1 or more")
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def pad(
    rows: Sequence[Rendered], index: Sequence[int], pad_id: int, side: Literal["left", "right"], device: torch.device
) -> Batch:
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        start = width - len(row.ids) if side == "left" else 0
        ids[i, start : start + len(row.ids)] = torch.tensor(row.ids)
        mask[i, start : start + len(row.ids)] = True
    return Batch(tuple(rows), tuple(index), ids.to(device), mask.to(device), side)
