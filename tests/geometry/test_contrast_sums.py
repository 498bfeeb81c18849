import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from emlens.foundation import InputError
from emlens.geometry import mean_difference_direction
from emlens.geometry.contrast_sums import ContrastSums, deal_blocks


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


UP, DOWN = rows(12, 5, seed=1) + 1, rows(9, 5, seed=2)
UP_UNITS = [f"q{i % 4}" for i in range(12)]
DOWN_UNITS = [f"q{2 + i % 3}" for i in range(9)]
SUMS = ContrastSums.from_rows(UP, DOWN, positive_units=UP_UNITS, negative_units=DOWN_UNITS)


def by_hand(left_out: set[str]) -> torch.Tensor:
    up = UP[[u not in left_out for u in UP_UNITS]]
    down = DOWN[[u not in left_out for u in DOWN_UNITS]]
    return up.mean(0) - down.mean(0)


def test_the_whole_is_the_difference_of_means():
    torch.testing.assert_close(SUMS.difference, UP.mean(0) - DOWN.mean(0))
    torch.testing.assert_close(SUMS.negative_mean, DOWN.mean(0))
    direction = SUMS.direction("resid_post.1", "last", {"positive": ["a"]}, {"x": 1})
    plain = mean_difference_direction(UP, DOWN, site="resid_post.1", position="last")
    torch.testing.assert_close(direction.vector, plain.vector)
    torch.testing.assert_close(direction.baseline, plain.baseline)
    assert (direction.site, direction.position, direction.ids, direction.provenance) == (
        plain.site,
        "last",
        {"positive": ("a",)},
        {"x": 1},
    )
    assert (SUMS.blocks, SUMS.d_model) == (5, 5)


def test_a_unit_is_left_out_with_its_rows_of_both_classes():
    dealt = deal_blocks([*UP_UNITS, *DOWN_UNITS])
    left = SUMS.leave_one_out()
    assert len(left) == 5
    for unit, block in dealt.items():
        torch.testing.assert_close(left[block], by_hand({unit}))


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 40), st.integers(2, 9), st.integers(0, 99))
def test_blocks_are_as_even_as_units_allow_and_no_unit_is_parted(
    units: int, blocks: int, seed: int
):
    names = [f"u{i}" for i in range(units)]
    dealt = deal_blocks([*names, *names[::-1]], blocks, seed)
    assert dealt == deal_blocks(sorted(names), blocks, seed) and set(dealt) == set(names)
    sizes = np.bincount(list(dealt.values()))
    assert len(sizes) == min(units, blocks) and sizes.max() - sizes.min() <= 1


def test_bootstrap_and_halves_agree_with_a_loop_over_blocks():
    n = len(SUMS.positive)
    rng = torch.Generator()
    draws = SUMS.bootstrap(300, seed=3)
    assert torch.equal(draws, SUMS.bootstrap(300, seed=3)) and not torch.equal(
        draws, SUMS.bootstrap(300, seed=4)
    )
    spread = torch.stack(
        [
            SUMS.differences(
                torch.bincount(torch.randint(n, (n,), generator=rng), minlength=n).double()[None]
            )[0]
            for _ in range(600)
        ]
    )
    spread = spread[torch.isfinite(spread).all(1)]
    torch.testing.assert_close(draws.std(0), spread.std(0), rtol=0.25, atol=0)
    first, second = SUMS.halves(50)
    dealt = deal_blocks([*UP_UNITS, *DOWN_UNITS])
    for a, b in zip(first[:8], second[:8], strict=True):
        sides = [
            {unit for unit, block in dealt.items() if not (mask >> block) & 1}
            for mask in range(2**n)
        ]  # units left out by every choice of blocks
        matches = [left for left in sides if 0 < len(left) < n and _close(by_hand(left), a)]
        assert len(matches) == 1 and _close(by_hand(set(dealt) - matches[0]), b)


def _close(x: torch.Tensor, y: torch.Tensor) -> bool:
    return bool(torch.isfinite(x).all()) and torch.allclose(x, y, atol=1e-12)


def test_rows_without_units_are_units_themselves():
    alone = ContrastSums.from_rows(UP, DOWN, blocks=100)
    assert alone.blocks == 21
    torch.testing.assert_close(
        alone.leave_one_out().sum(0) / 21, alone.difference, rtol=0.05, atol=0.05
    )


def test_refusals(unchecked):
    two = torch.ones(2, dtype=torch.float64)
    with pytest.raises(InputError, match="units names 1 unit; resampling needs at least 2"):
        deal_blocks(["q", "q"])
    with pytest.raises(InputError, match="blocks=1 must be an integer of 2 or more"):
        deal_blocks(["q", "r"], 1)
    with pytest.raises(
        InputError,
        match="positive rows lie in 1 block; resampling needs rows of each class in at least 2",
    ):
        ContrastSums.from_rows(UP, DOWN, positive_units=["q"] * 12, negative_units=DOWN_UNITS)
    with pytest.raises(
        InputError,
        match=(
            r"negative sums have shape \(3, 5\) and weights \(2,\);"
            r" pass \(block, d\) and \(block,\)"
        ),
    ):
        ContrastSums(two, rows(2, 5), two, rows(3, 5))
    with pytest.raises(
        InputError, match="negative_units has 2 entries for 9 rows; pass one per row"
    ):
        ContrastSums.from_rows(UP, DOWN, negative_units=["a", "b"])
    with pytest.raises(InputError, match="positive has 5 coordinates and negative has 4"):
        ContrastSums.from_rows(UP, rows(3, 4))
    with pytest.raises(InputError, match="same mean"):
        ContrastSums.from_rows(UP, UP.clone()).direction("resid_post.1")
