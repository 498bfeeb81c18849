"""The difference of two class means, and its uncertainty, from sums over blocks of units.

No row is needed after summing. Answers to one question are alike, so what is resampled is not the
answer but the unit (a question). Units are assigned to a few blocks, each block holds the summed
weight and the weighted rows of both classes, and any resampling of blocks is a matrix product:
leave one out, bootstrap, halves. Memory: 2 · blocks · d numbers, however many rows were summed.
float64: many small terms are added.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.notebooks import Brief
from emlens.foundation.seeds import numpy_rng, torch_rng
from emlens.foundation.shapes import as_float64, require_same_width
from emlens.foundation.sites import Site
from emlens.geometry.contrasts import mean_difference
from emlens.geometry.directions import Direction
from emlens.stats.samples import labels_in_order, require_count

BLOCKS = 32
"""Blocks by default: enough for an interval, few enough for 50 layers of 5,000 coordinates."""


def deal_blocks(units: Sequence[str], blocks: int = BLOCKS, seed: int = 0) -> dict[str, int]:
    """Unit → block: distinct units in seeded random order, assigned to blocks in turn.

    At most as many blocks as units. The order of `units` and their repeats do not matter.

    Raises:
        InputError: fewer than 2 distinct units or blocks.
    """
    distinct = sorted(set(units))
    if len(distinct) < 2:
        raise InputError(
            f"units names {len(distinct)} unit; resampling needs at least 2,"
            " such as one per question"
        )
    count = min(require_count(blocks, "blocks", 2), len(distinct))
    order = numpy_rng(seed, "deal_blocks").permutation(len(distinct))
    return {distinct[unit]: i % count for i, unit in enumerate(order)}


@dataclass(frozen=True, eq=False, repr=False)
class ContrastSums(Brief):
    """Sums of two classes over blocks, at one site and position.

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
        blocks = len(self.positive)
        _require_sums("positive", self.positive_weight, self.positive, blocks)
        _require_sums("negative", self.negative_weight, self.negative, blocks)

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
        """From rows in memory.

        A unit that occurs in both classes (a question) is one unit. Without units every row is a
        unit of its own.

        Raises:
            InputError: units that do not fit the rows, other widths, values that are not finite.
        """
        up_units = _unit_names("positive", len(positive), positive_units)
        up = as_float64(positive, "positive")
        down_units = _unit_names("negative", len(negative), negative_units)
        down = as_float64(negative, "negative")
        block_of = deal_blocks([*up_units, *down_units], blocks, seed)
        count = max(block_of.values()) + 1
        up_weight, up_sums = _block_sums(up, [block_of[unit] for unit in up_units], count)
        down_weight, down_sums = _block_sums(down, [block_of[unit] for unit in down_units], count)
        return cls(up_weight, up_sums, down_weight, down_sums)

    @property
    def blocks(self) -> int:
        """Blocks that hold rows; the number of independent units behind every interval."""
        return int(((self.positive_weight > 0) | (self.negative_weight > 0)).sum())

    @property
    def d_model(self) -> int:
        """Width of the rows."""
        return self.positive.shape[1]

    @property
    def difference(self) -> Float[Tensor, " d"]:
        """Weighted mean of the positive class minus that of the negative one, (d,)."""
        return self.differences(torch.ones(1, len(self.positive), dtype=torch.float64))[0]

    @property
    def positive_mean(self) -> Float[Tensor, " d"]:
        """Weighted mean of the positive class, (d,)."""
        return self.positive.sum(0) / self.positive_weight.sum()

    @property
    def negative_mean(self) -> Float[Tensor, " d"]:
        """Weighted mean of the negative class, (d,)."""
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
        """The difference with each block counted `counts` times.

        A draw without rows of a class is not finite.
        """
        up = (counts @ self.positive) / (counts @ self.positive_weight)[:, None]
        down = (counts @ self.negative) / (counts @ self.negative_weight)[:, None]
        return up - down

    def leave_one_out(self) -> Float[Tensor, "block d"]:
        """The difference without each block that holds rows, in turn."""
        return self.differences(left_out(self))

    def bootstrap(self, draws: int = 500, seed: int = 0) -> Float[Tensor, "draw d"]:
        """The difference on blocks drawn with replacement, (draw, d).

        Draws that lack a class are drawn again. The same seed and number of blocks draw the same
        blocks, so contrasts of two models on the same units resample together.

        Raises:
            InputError: no draw.
        """
        n = len(self.positive)
        rng = torch_rng(seed, "bootstrap", n)

        def draw(k: int) -> Tensor:
            blocks = torch.randint(n, (k, n), generator=rng)
            ones = torch.ones(k, n, dtype=torch.float64)
            # how often each block was drawn
            return torch.zeros(k, n, dtype=torch.float64).scatter_add_(1, blocks, ones)

        count = require_count(draws, "draws")
        return self.differences(self._usable_draws(draw, count, both_halves=False))

    def halves(
        self, splits: int = 200, seed: int = 0
    ) -> tuple[Float[Tensor, "split d"], Float[Tensor, "split d"]]:
        """The difference on random halves of the blocks, and on the complementary halves.

        Raises:
            InputError: no split.
        """
        n = len(self.positive)
        rng = torch_rng(seed, "halves", n)

        def draw(k: int) -> Tensor:
            # the order of uniform numbers is a random permutation
            ranks = torch.rand(k, n, dtype=torch.float64, generator=rng).argsort(dim=1)
            return (ranks < n // 2).double()

        half = self._usable_draws(draw, require_count(splits, "splits"), both_halves=True)
        return self.differences(half), self.differences(1 - half)

    def _usable_draws(
        self, draw: Callable[[int], Tensor], count: int, *, both_halves: bool
    ) -> Tensor:
        """The first `count` draws that have rows of both classes (in both halves)."""
        usable: list[Tensor] = []
        # each class lies in 2 blocks or more, so a share of the draws is always usable
        while sum(map(len, usable)) < count:
            counts = draw(count)
            has_both = self._has_both_classes(counts)
            if both_halves:
                has_both &= self._has_both_classes(1 - counts)
            usable.append(counts[has_both])
        return torch.cat(usable)[:count]

    def _has_both_classes(self, counts: Tensor) -> Tensor:
        return (counts @ self.positive_weight > 0) & (counts @ self.negative_weight > 0)


def _require_sums(name: str, weight: Tensor, sums: Tensor, blocks: int) -> None:
    """Raises:
    InputError: shapes that do not fit, or rows in fewer than 2 blocks.
    """
    if sums.ndim != 2 or weight.shape != sums.shape[:1] or len(sums) != blocks:
        raise InputError(
            f"{name} sums have shape {tuple(sums.shape)} and weights {tuple(weight.shape)};"
            " pass (block, d) and (block,)"
        )
    occupied = int((weight > 0).sum())
    if occupied < 2:
        raise InputError(
            f"{name} rows lie in {occupied} block;"
            " resampling needs rows of each class in at least 2"
        )


def _unit_names(name: str, rows: int, units: Sequence[str] | None) -> list[str]:
    """One unit per row; without units each row is one of its own.

    Raises:
        InputError: another number of units than rows.
    """
    if units is None:
        return [f"{name} {i}" for i in range(rows)]
    labels = labels_in_order(units, f"{name}_units")
    if len(labels) != rows:
        raise InputError(
            f"{name}_units has {len(labels)} entries for {rows} rows; pass one per row"
        )
    return [str(label) for label in labels]


def _block_sums(rows: Tensor, block_of_row: list[int], count: int) -> tuple[Tensor, Tensor]:
    """Number of rows (block,) and sum of rows (block, d) in each block."""
    index = torch.tensor(block_of_row)
    ones = torch.ones(len(rows), dtype=torch.float64)
    weight = torch.zeros(count, dtype=torch.float64).index_add_(0, index, ones)
    sums = torch.zeros(count, rows.shape[1], dtype=torch.float64).index_add_(0, index, rows)
    return weight, sums


def left_out(*contrasts: ContrastSums) -> Float[Tensor, "left_out block"]:
    """Counts that leave out, in turn, each block in which any of the contrasts has rows.

    The same block is left out of all of them.
    """
    occupied = torch.stack([(c.positive_weight > 0) | (c.negative_weight > 0) for c in contrasts])
    blocks = occupied.any(0).nonzero()[:, 0]
    counts = torch.ones(len(blocks), len(contrasts[0].positive), dtype=torch.float64)
    counts[torch.arange(len(blocks)), blocks] = 0
    return counts
