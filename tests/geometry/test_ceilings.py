import numpy as np
import pytest
import torch

from emlens import EmlensError
from emlens.foundation.seeds import torch_rng
from emlens.geometry import split_half_ceiling, subspace_overlap, top_k_subspace


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


SHARED = rows(120, 3) @ rows(3, 40, seed=1) * 5 + rows(120, 40, seed=2)


def test_split_half_ceiling():
    high, low = (
        split_half_ceiling(x, 3, center=True, splits=20) for x in (SHARED, rows(120, 40, seed=2))
    )
    assert high.value > 0.95 and low.value < 0.35
    assert high.low <= high.value <= high.high and high.n == 120
    assert "halves of 60" in high.method
    assert split_half_ceiling(SHARED, 3, center=True, splits=20) == high
    moved = split_half_ceiling(SHARED + 1000, 1, center=False, splits=5)
    assert moved.value > 0.9999  # a common shift left in is what any two halves share


@pytest.mark.parametrize("center", [True, False, "mean", torch.ones(300, dtype=torch.float64)])
@pytest.mark.parametrize("measure", ["mean_cos2", "chordal"])
def test_coordinates_change_nothing(center, measure):
    """The same halves in all 300 dimensions, one split after the other."""
    x, rng = rows(31, 300) + 0.3, torch_rng(4, "split_half_ceiling", 31, 2)
    values = []
    for _ in range(6):
        order = torch.randperm(31, generator=rng)
        parts = (top_k_subspace(x[half], 2, center=center) for half in (order[:15], order[15:30]))
        values.append(float(subspace_overlap(*parts, measure)))
    assert split_half_ceiling(
        x, 2, center=center, measure=measure, splits=6, seed=4
    ).value == pytest.approx(np.mean(values))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: split_half_ceiling(rows(9, 5), 4, center=True),
            "k=4 is above the rank of half of 9 vectors; pass k <= 3",
        ),
        (
            lambda: split_half_ceiling(rows(2, 9, 5), 4, center=True),
            r"vectors has shape \(2, 9, 5\); pass one set",
        ),
        (
            lambda: split_half_ceiling(rows(9, 5), 1, center=True, splits=0),
            "splits=0 must be an integer of 1 or more",
        ),
        (
            lambda: split_half_ceiling(rows(20, 1) @ rows(1, 9), 2, center=False),
            "k=2 is above the rank: the 10 vectors have rank 1",
        ),
        (
            lambda: split_half_ceiling(torch.ones(20, 9), 1, center=True),
            "have rank 0 with center='mean'",
        ),
        (
            lambda: split_half_ceiling(torch.zeros(20, 9), 1, center=False),
            "have rank 0 with center='none'",
        ),
        (lambda: split_half_ceiling(rows(20, 9), 1, center="x"), "center='x' is unknown"),
    ],
)
def test_refusals(unchecked, call, message):
    with pytest.raises(EmlensError, match=message):
        call()
