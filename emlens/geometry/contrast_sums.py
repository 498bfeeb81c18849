"""The difference of two class means from sums over blocks of units, so that its uncertainty needs
no row.

Answers to one question are alike, so what is resampled is not the answer but the unit (a question).
Units are dealt into a few blocks, each block keeps its summed weight and weighted rows of both
classes, and any resampling of blocks is a matrix product: leave one out, bootstrap, halves. Memory:
2 · blocks · d numbers, however many rows passed by. float64.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.seeds import numpy_rng, torch_rng
from emlens.foundation.shapes import as_float64, require_same_width
from emlens.foundation.sites import Site
from emlens.geometry.contrasts import mean_difference
from emlens.geometry.directions import Direction
from emlens.stats.samples import require_count

BLOCKS = 32
"""Blocks kept where nobody says otherwise: enough for an interval, few enough for 50 layers of
5,000 coordinates.
"""


def deal_blocks(units: Sequence[str], blocks: int = BLOCKS, seed: int = 0) -> dict[str, int]:
    """Unit → block: distinct units in seeded random order, dealt out one by one; at most as many
    blocks as units.

    The order of `units` and their repeats do not matter.

    Raises:
        InputError: fewer than 2 distinct units or blocks.
    """
    distinct = sorted(set(units))
    if len(distinct) < 2:
        raise InputError(
            f"units names {len(distinct)} unit; resampling needs at least 2,"
            " such as one for each question"
        )
    count = min(require_count(blocks, "blocks", 2), len(distinct))
    order = numpy_rng(seed, "deal_blocks").permutation(len(distinct))
    return {distinct[unit]: i % count for i, unit in enumerate(order)}


@dataclass(frozen=True, eq=False)
class ContrastSums:
    """Sums of two classes over blocks at one place.

    Args:
        positive_weight, negative_weight: summed weight of the rows in each block, 0 where a class
            has none there.
        positive, negative: summed weight × row.

    Raises:
        InputError: shapes that do not fit, or a class that lies in fewer than 2 blocks.
    """

    positive_weight: Float[Tensor, " block"]
    positive: Float[Tensor, "block d"]
    negative_weight: Float[Tensor, " block"]
    negative: Float[Tensor, "block d"]

    def __post_init__(self) -> None:
        require_same_width(self.positive, self.negative, "positive", "negative")
        for name, weight, sums in (
            ("positive", self.positive_weight, self.positive),
            ("negative", self.negative_weight, self.negative),
        ):
            if sums.ndim != 2 or weight.shape != sums.shape[:1] or len(sums) != len(self.positive):
                raise InputError(
                    f"{name} sums have shape {tuple(sums.shape)} and weights {tuple(weight.shape)};"
                    " pass (block, d) and (block,)"
                )
            if int((weight > 0).sum()) < 2:
                raise InputError(
                    f"{name} rows lie in {int((weight > 0).sum())} block;"
                    " resampling needs rows of each class in at least 2"
                )

    @classmethod
    def from_rows(
        cls,
        positive: Float[Tensor, "pos d"],
        negative: Float[Tensor, "neg d"],
        *,
        positive_units: Sequence[str] | None = None,
        negative_units: Sequence[str] | None = None,
        blocks: int = BLOCKS,
        seed: int = 0,
    ) -> "ContrastSums":
        """From rows in memory; a unit that is in both classes (a question) is one unit. Without
        units every row is its own.

        Raises:
            InputError: units that do not fit the rows, other widths, values that are not finite.
        """
        sides = []
        for name, rows, given in (
            ("positive", positive, positive_units),
            ("negative", negative, negative_units),
        ):
            units = (
                [f"{name} {i}" for i in range(len(rows))]
                if given is None
                else [str(unit) for unit in given]
            )
            if len(units) != len(rows):
                raise InputError(
                    f"{name}_units has {len(units)} entries for {len(rows)} rows; pass one a row"
                )
            sides.append((as_float64(rows, name), units))
        dealt = deal_blocks([unit for _, units in sides for unit in units], blocks, seed)
        count = max(dealt.values()) + 1
        tables: list[Tensor] = []
        for rows, units in sides:
            index = torch.tensor([dealt[unit] for unit in units])
            tables.append(
                torch.zeros(count, dtype=torch.float64).index_add_(
                    0, index, torch.ones(len(rows), dtype=torch.float64)
                )
            )
            tables.append(
                torch.zeros(count, rows.shape[1], dtype=torch.float64).index_add_(0, index, rows)
            )
        return cls(*tables)

    @property
    def blocks(self) -> int:
        """Blocks that hold rows; the number of independent units behind every interval."""
        return int(((self.positive_weight > 0) | (self.negative_weight > 0)).sum())

    @property
    def d_model(self) -> int:
        return self.positive.shape[1]

    @property
    def difference(self) -> Float[Tensor, " d"]:
        """Weighted mean of the positive class minus that of the negative one."""
        return self.differences(torch.ones(1, len(self.positive), dtype=torch.float64))[0]

    @property
    def positive_mean(self) -> Float[Tensor, " d"]:
        return self.positive.sum(0) / self.positive_weight.sum()

    @property
    def negative_mean(self) -> Float[Tensor, " d"]:
        return self.negative.sum(0) / self.negative_weight.sum()

    def direction(
        self,
        site: str | Site,
        position: str | None = None,
        ids: Mapping[str, Sequence[str]] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> Direction:
        """The difference as a `Direction`, with the negative mean as its baseline.

        Raises:
            InputError: the two means agree to rounding.
        """
        down = self.negative_mean
        difference = mean_difference(self.positive_mean, down)
        return Direction(
            difference, Site.parse(site), position, down, ids or {}, dict(provenance or {})
        )

    def differences(self, counts: Float[Tensor, "draw block"]) -> Float[Tensor, "draw d"]:
        """The difference with each block taken so many times; a draw without rows of a class is not
        finite.
        """
        up = (counts @ self.positive) / (counts @ self.positive_weight)[:, None]
        return up - (counts @ self.negative) / (counts @ self.negative_weight)[:, None]

    def leave_one_out(self) -> Float[Tensor, "block d"]:
        """The difference without each block that holds rows, in turn."""
        return self.differences(left_out(self))

    def bootstrap(self, draws: int = 500, seed: int = 0) -> Float[Tensor, "draw d"]:
        """The difference on blocks drawn with replacement; draws that lack a class are drawn again.

        The same seed and number of blocks draw the same blocks, so contrasts of two models on the
        same units resample together.

        Raises:
            InputError: no draw.
        """
        n = len(self.positive)
        rng = torch_rng(seed, "bootstrap", n)

        def draw(k: int) -> Tensor:
            picked = torch.randint(n, (k, n), generator=rng)
            return torch.zeros(k, n, dtype=torch.float64).scatter_add_(
                1, picked, torch.ones(k, n, dtype=torch.float64)
            )

        return self.differences(
            self._redrawn(draw, require_count(draws, "draws"), both_halves=False)
        )

    def halves(
        self, splits: int = 200, seed: int = 0
    ) -> tuple[Float[Tensor, "split d"], Float[Tensor, "split d"]]:
        """The difference on random halves of the blocks, and on the other halves.

        Raises:
            InputError: no split.
        """
        n = len(self.positive)
        rng = torch_rng(seed, "halves", n)

        def draw(k: int) -> Tensor:
            ranks = torch.rand(k, n, dtype=torch.float64, generator=rng).argsort(dim=1)
            return (ranks < n // 2).double()

        chosen = self._redrawn(draw, require_count(splits, "splits"), both_halves=True)
        return self.differences(chosen), self.differences(1 - chosen)

    def _redrawn(self, draw: Callable[[int], Tensor], count: int, *, both_halves: bool) -> Tensor:
        kept: list[Tensor] = []
        # each class lies in 2 blocks or more, so a share of the draws is always usable
        while sum(map(len, kept)) < count:
            counts = draw(count)
            usable = torch.ones(count, dtype=torch.bool)
            for side in (counts, 1 - counts) if both_halves else (counts,):
                usable &= (side @ self.positive_weight > 0) & (side @ self.negative_weight > 0)
            kept.append(counts[usable])
        return torch.cat(kept)[:count]


def left_out(*contrasts: ContrastSums) -> Float[Tensor, "left_out block"]:
    """Counts that leave out, in turn, each block in which any of the contrasts holds rows; the same
    block for all of them.
    """
    held = (
        torch.stack([(c.positive_weight > 0) | (c.negative_weight > 0) for c in contrasts])
        .any(0)
        .nonzero()[:, 0]
    )
    counts = torch.ones(len(held), len(contrasts[0].positive), dtype=torch.float64)
    counts[torch.arange(len(held)), held] = 0
    return counts
