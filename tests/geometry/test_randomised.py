import numpy as np
import pytest
import torch

from benchmarks import randomised_svd
from emlens import EmlensError
from emlens.geometry import subspace_overlap, top_k_subspace
from emlens.geometry.randomised import _angle_bound


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sketched(x: torch.Tensor, k: int, **how):
    return top_k_subspace(x, k, **({"center": False, "method": "randomised"} | how))


def sine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.linalg.matrix_norm(a - b @ (b.T @ a), 2))


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("tolerance", [0.1, 1e-4, 1e-8])
def test_the_bound_holds_and_reaches_the_tolerance(power, tolerance):
    matrix, truth = randomised_svd.known_matrix(90, 120, randomised_svd.spectrum(90, power), seed=3)
    x, axes = torch.from_numpy(matrix), torch.from_numpy(truth)
    for seed in range(3):
        space = sketched(x, 8, tolerance=tolerance, seed=seed)
        assert sine(space.basis, axes) <= float(space.angle_bound) <= tolerance
    # the planted vectors are the exact ones
    assert sine(top_k_subspace(x, 8, center=False).basis, axes) < 1e-12


def test_agrees_with_exact_in_every_field():
    x = rows(80, 60) * torch.linspace(4, 1, 60) + 3
    for center in (True, False, rows(60, seed=5)):
        exact, fast = (
            top_k_subspace(x, 5, center=center),
            sketched(x, 5, center=center, tolerance=1e-9),
        )
        torch.testing.assert_close(fast.basis, exact.basis, atol=1e-8, rtol=0)
        torch.testing.assert_close(fast.singular_values, exact.singular_values[:5])
        torch.testing.assert_close(fast.explained_variance_ratio, exact.explained_variance_ratio)
        torch.testing.assert_close(fast.mean, exact.mean)
        assert (fast.n, fast.center) == (exact.n, exact.center) and 5 <= fast.rank <= exact.rank
        assert exact.angle_bound is None
        assert (fast.singular_values <= exact.singular_values[:5] * (1 + 1e-12)).all()


def test_one_seed_one_result_and_seeds_differ():
    x = rows(60, 50)
    first, again, other = (sketched(x, 2, tolerance=0.01, seed=seed).basis for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_batches_and_dtypes():
    x = (rows(2, 3, 30, 20) * torch.linspace(3, 1, 20)).float()
    spaces = sketched(x, 3)
    assert spaces.basis.shape == (2, 3, 20, 3) and spaces.basis.dtype == torch.float32
    assert spaces.angle_bound.shape == (2, 3) and spaces.angle_bound.dtype == torch.float32
    one = top_k_subspace(x[1, 2], 3, center=False)
    assert float(subspace_overlap(spaces.basis[1, 2], one)) == pytest.approx(1, abs=1e-6)


def test_repeated_singular_values_are_seen():
    values = torch.cat([torch.full((14,), 2.0), torch.full((6,), 1.0)]).double()
    x = torch.linalg.qr(rows(40, 20)).Q * values @ torch.linalg.qr(rows(30, 20, seed=1)).Q.T
    assert sine(sketched(x, 14).basis, top_k_subspace(x, 14, center=False).basis) < 1e-12
    assert sketched(x, 20).rank == 20
    with pytest.raises(
        EmlensError,
        match=(
            r"the top 3 directions are known to a sine of inf only .* singular values 3 and 4 are 2"
            r" and 2; pass a k"
        ),
    ):
        sketched(x, 3)


COUNT = torch.arange(1, 31, dtype=torch.float64)


@pytest.mark.parametrize(("values", "k"), [(COUNT**-8, 12), (10.0 ** (1 - COUNT), 10)])
def test_directions_far_below_the_first_are_found(values, k):
    """Singular values of 1e-9 of the first: their squares are lost in rounding."""
    right = torch.linalg.qr(rows(50, 30, seed=1)).Q
    x = torch.linalg.qr(rows(60, 30)).Q * values @ right.T
    space = sketched(x, k, tolerance=1e-3)
    assert sine(space.basis, right[:, :k]) <= float(space.angle_bound) <= 1e-3
    torch.testing.assert_close(
        space.basis.T @ space.basis, torch.eye(k, dtype=torch.float64), atol=1e-13, rtol=0
    )
    torch.testing.assert_close(space.singular_values, values[:k], rtol=1e-6, atol=0)


def test_the_bound_is_wedins_with_its_margins():
    singular, residuals = (
        torch.tensor([5.0, 2.0, 1.0], dtype=torch.float64),
        torch.tensor([0.03, 0.04, 0.3], dtype=torch.float64),
    )
    # the third may lie above its estimate by its residual
    assert _angle_bound(singular, residuals, 2, 0.0) == pytest.approx(0.05 / (2 - 1.3))
    # never below rounding
    assert _angle_bound(singular, torch.zeros(3).double(), 2, 0.0) == pytest.approx(
        64 * 2.0**-52 * 5, abs=0
    )
    # nothing follows
    assert _angle_bound(singular[:2], residuals[:2], 2, 0.0) == pytest.approx(0.05 / 2)
    assert _angle_bound(singular, residuals + 1, 2, 0.0) == float("inf")  # no gap left


@pytest.mark.parametrize("shape", [(30, 12), (12, 30)])
def test_rank_is_found_and_a_k_above_it_refused(shape):
    low = rows(shape[0], 4) @ rows(4, shape[1], seed=1)
    assert sketched(low, 4).rank == 4
    assert sketched(low.float(), 4).rank == 4
    with pytest.raises(
        EmlensError,
        match="k=5 is above the rank: the .* vectors have rank 4 with center='none'; pass k <= 4",
    ):
        sketched(low, 5)
    with pytest.raises(
        EmlensError, match="k=13 is above the rank: the .* vectors have rank 12 with center='none'"
    ):
        sketched(rows(*shape), 13)
    with pytest.raises(
        EmlensError, match="k=1 is above the rank: the 4 vectors have rank 0 with center='mean'"
    ):
        sketched(torch.ones(4, 9), 1, center=True)
    full = sketched(rows(*shape), 12)
    assert full.rank == 12 and float(full.angle_bound) < 1e-12


def test_a_spectrum_without_a_gap_is_refused(unchecked):
    almost = torch.diag(torch.tensor([3.0, 2.0, 2.0 - 1e-9, *[1.0] * 60], dtype=torch.float64))
    with pytest.raises(
        EmlensError,
        match=(
            "singular values 2 and 3 are 2 and 2; pass a k with a gap after it,"
            " a larger tolerance, or method='exact'"
        ),
    ):
        sketched(almost, 2)
    assert float(sketched(almost, 3).angle_bound) < 1e-6


def test_refusals(unchecked):
    for k in (0.9, "elbow", 0, True):
        with pytest.raises(
            EmlensError,
            match=f"k={k!r} needs the whole spectrum; pass a count of 1 or more, or method='exact'",
        ):
            sketched(rows(9, 9), k)
    for tolerance in (0.0, 1.0, float("nan")):
        with pytest.raises(
            EmlensError,
            match=f"tolerance={tolerance!r} must lie between 0 and 1: it bounds the sine",
        ):
            sketched(rows(9, 9), 2, tolerance=tolerance)


def test_miniature_of_the_measurement():
    result = randomised_svd.compare(60, 80, 1.0, with_exact=True, rounds=2)
    assert result["bound_holds"] and result["one_less_overlap"] <= 1e-6 and result["speed_up"] > 0
    without = randomised_svd.compare(60, 80, 0.5, with_exact=False, rounds=1)
    assert np.isnan(without["speed_up"]) and without["one_less_overlap"] <= 1e-6
    written = randomised_svd.summary([result, without], 2)
    assert (
        written["speed_up_of_the_largest_timed"] == result["speed_up"]
        and written["cells"][1]["exact_seconds"] is None
    )
    bound = randomised_svd.bound_violations(1, n=20, d=25)
    assert (
        bound["runs"] == 35
        and bound["violated"] == 0
        and bound["refused"] == 0
        and 0 < bound["largest_sine_over_bound"] <= 1
    )
    values = randomised_svd.spectrum(20, 1.0)
    assert values[7] / values[8] == pytest.approx(1.2) and values[3] == pytest.approx(1 / 4)
