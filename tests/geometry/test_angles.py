import math

import numpy as np
import pytest
import scipy.linalg
import torch

from benchmarks import geometry_accuracy
from emlens import EmlensError
from emlens.geometry import principal_angles, subspace_overlap, top_k_subspace

ANGLE = 1e-13  # float64 arithmetic on orthonormal bases of a few thousand coordinates


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def planted(
    angles: list[float], d: int, extra: int = 0, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal bases whose principal angles are known; b has `extra` directions orthogonal to
    all of a.
    """
    k = len(angles)
    frame = torch.linalg.qr(rows(d, 2 * k + extra, seed=seed)).Q
    a, across = frame[:, :k], frame[:, k : 2 * k]
    theta = torch.tensor(angles, dtype=torch.float64)
    return a, torch.cat(
        [a * torch.cos(theta) + across * torch.sin(theta), frame[:, 2 * k :]], dim=1
    )


def mixed(basis: torch.Tensor, seed: int) -> torch.Tensor:
    """Another basis of the same span, of condition number 10, with columns of different length."""
    k = basis.shape[1]
    u, v = torch.linalg.qr(rows(k, k, seed=seed)).Q, torch.linalg.qr(rows(k, k, seed=seed + 1)).Q
    return basis @ u @ torch.diag(torch.logspace(0, 1, k, dtype=torch.float64)) @ v


@pytest.mark.parametrize(("d", "extra"), [(32, 0), (32, 5), (2048, 3)])
def test_planted_angles_over_twelve_orders(d, extra):
    angles = [
        1e-12,
        1e-9,
        1e-6,
        1e-3,
        0.5,
        math.pi / 4,
        1.2,
        math.pi / 2 - 1e-9,
        math.pi / 2 - 1e-12,
    ]
    a, b = planted(angles, d, extra)
    result = principal_angles(a, b)
    np.testing.assert_allclose(result, sorted(angles), atol=ANGLE, rtol=0)
    np.testing.assert_allclose(
        principal_angles(mixed(a, 5), mixed(b, 7)), sorted(angles), atol=10 * ANGLE, rtol=0
    )
    by_cosine = torch.acos(torch.linalg.svdvals(a.T @ b).clamp(max=1)).sort().values
    # what the arc cosine alone would give
    assert (by_cosine - torch.tensor(sorted(angles))).abs().max() > 1e3 * ANGLE


@pytest.mark.parametrize(
    ("k_a", "k_b", "d"), [(3, 3, 10), (2, 7, 30), (7, 2, 30), (6, 7, 10), (1, 1, 2), (4, 4, 4)]
)
def test_agrees_with_scipy(k_a, k_b, d):
    a, b = rows(d, k_a, seed=1), rows(d, k_b, seed=2)
    angles = principal_angles(a, b)
    assert angles.shape == (min(k_a, k_b),)
    assert (angles.diff() >= 0).all()
    # intersections that dimension alone forces; scipy 1.17 puts them at 1e-8
    forced = max(0, k_a + k_b - d)
    assert (angles[:forced] < ANGLE).all()
    expected = np.sort(scipy.linalg.subspace_angles(a.numpy(), b.numpy()))
    np.testing.assert_allclose(angles[forced:], expected[forced:], atol=ANGLE)
    np.testing.assert_allclose(expected[:forced], 0, atol=1e-7)


@pytest.mark.parametrize(("d", "k_a", "k_b"), [(64, 8, 8), (64, 16, 5), (512, 8, 40)])
@pytest.mark.parametrize("stretch", [1, 8])
def test_exactly_planted_angles(d, k_a, k_b, stretch):
    """Dense float matrices that hold integers, whose angles are known without any rounding of the
    construction.
    """
    a, b, tangents = geometry_accuracy.planted_pair(d, k_a, k_b, stretch=stretch, seed=1)
    assert (a == a.round()).all() and (b == b.round()).all() and float(b.abs().max()) <= 2**53
    assert float((a == 0).double().mean()) < 0.5 and int(torch.linalg.matrix_rank(b)) == k_b
    true = geometry_accuracy.true_angles(tangents)
    assert float(true[0]) < 1e-12 < 1e-11 and float(math.pi / 2 - true[-1]) < 1e-12
    for result in (principal_angles(a, b), principal_angles(b, a)):
        assert geometry_accuracy.largest_error(result.numpy(), true) < ANGLE / 10
    assert geometry_accuracy.largest_error(geometry_accuracy.arc_cosines(a, b), true) > 10 * ANGLE


@pytest.mark.parametrize(
    ("d", "k_a", "k_b", "condition"), [(16, 4, 4, 1.0), (10, 6, 7, 10.0), (12, 2, 5, 1000.0)]
)
def test_random_matrices_agree_with_fifty_digits(d, k_a, k_b, condition):
    a, b = geometry_accuracy.tilted_pair(d, k_a, k_b, condition, seed=0)
    true = geometry_accuracy.reference_angles(a, b)
    result = principal_angles(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    assert geometry_accuracy.largest_error(result, true) < ANGLE / 100 * max(1, condition / 10)


def test_miniature_of_the_measurement():
    result = geometry_accuracy.measure(
        cells=((32, 4, 6), (64, 1, 1)),
        stretches=(1, 8),
        seeds=1,
        dimensions=(24,),
        conditions=(1.0,),
    )
    assert result["worst_planted"] < ANGLE < result["worst_planted_arc_cosine"]
    assert result["worst_against_mpmath_condition_10"] == result["worst_against_mpmath"] < ANGLE
    assert len(result["planted"]) == 4 and len(result["against_mpmath"]) == 4
    with pytest.raises(
        SystemExit, match="is no float64 integer; not measuring rounding of the construction"
    ):
        geometry_accuracy.planted_pair(32, 16, 16, stretch=512, seed=0)


def test_identical_and_orthogonal():
    frame = torch.linalg.qr(rows(20, 8)).Q
    assert principal_angles(frame[:, :4], mixed(frame[:, :4], 3)).max() < ANGLE
    torch.testing.assert_close(
        principal_angles(frame[:, :4], frame[:, 4:]),
        torch.full((4,), math.pi / 2, dtype=torch.float64),
        atol=ANGLE,
        rtol=0,
    )


def test_layers_and_positions_are_batch_axes():
    a, b = rows(3, 2, 10, 4), rows(2, 10, 3, seed=5)
    angles = principal_angles(a, b)
    assert angles.shape == (3, 2, 3)
    for i in range(3):
        for j in range(2):
            torch.testing.assert_close(
                angles[i, j], principal_angles(a[i, j], b[j]), atol=ANGLE, rtol=0
            )
            torch.testing.assert_close(
                principal_angles(b, a)[i, j], angles[i, j], atol=ANGLE, rtol=0
            )


def test_columns_of_any_length_span_the_same():
    a, b = rows(20, 4), rows(20, 3, seed=1)
    lengths = torch.tensor([1e-300, 1e-150, 1e150, 1e300], dtype=torch.float64)
    torch.testing.assert_close(
        principal_angles(a * lengths, b), principal_angles(a, b), atol=ANGLE, rtol=0
    )
    assert principal_angles(a * lengths, a).max() < ANGLE


def test_subspaces_batches_and_dtypes():
    x = rows(3, 30, 9)
    spaces = top_k_subspace(x, 2, center=True)
    one = top_k_subspace(x[1], 2, center=True)
    angles = principal_angles(spaces, one)
    assert angles.shape == (3, 2)
    assert angles[1].max() < 1e-7
    torch.testing.assert_close(angles[0], principal_angles(spaces.basis[0], one.basis))
    assert principal_angles(x[0].float(), x[1].float()).dtype == torch.float64
    assert principal_angles(x[0].float(), x[1]).dtype == torch.float64
    # float32 bases are made orthonormal in float64
    assert principal_angles(x[0].float(), x[0].float()).max() < ANGLE


def test_float32_bases_are_compared_as_exactly_as_float64_ones():
    """The stated 1e-13 holds for the columns that came in, whatever their type."""
    first = top_k_subspace(rows(40, 30).float(), 4, center=True)
    second = top_k_subspace(rows(40, 30, seed=1).float(), 4, center=True)
    assert first.basis.dtype == torch.float32
    expected = scipy.linalg.subspace_angles(first.basis.double(), second.basis.double())[::-1]
    angles = principal_angles(first, second)
    np.testing.assert_allclose(angles, expected, rtol=0, atol=ANGLE)
    overlap = subspace_overlap(first, second)
    assert float(overlap) == pytest.approx((np.cos(expected) ** 2).mean(), abs=ANGLE)


def test_refusals(unchecked):
    good = rows(6, 2)
    repeated = torch.cat([good, good[:, :1]], dim=1)
    with pytest.raises(
        EmlensError, match="a has 3 columns in 6 dimensions and rank 2; pass independent columns"
    ):
        principal_angles(repeated, good)
    with pytest.raises(
        EmlensError, match=r"b has 3 columns in 6 dimensions and rank 2 at batch index \(1,\)"
    ):
        principal_angles(good, torch.stack([rows(6, 3), repeated]))
    with pytest.raises(EmlensError, match="b has 9 columns in 6 dimensions and rank 6"):
        principal_angles(good, rows(6, 9))
    with pytest.raises(EmlensError, match="a has 1 columns in 6 dimensions and rank 0"):
        principal_angles(torch.zeros(6, 1), good)
    with pytest.raises(
        EmlensError,
        match="a lies in 5 dimensions and b in 6; pass subspaces of one stream, bases as columns",
    ):
        principal_angles(rows(5, 2), good)
    with pytest.raises(EmlensError, match=r"a has shape \(6, 0\) and so no column"):
        principal_angles(torch.ones(6, 0), good)
    with pytest.raises(EmlensError, match=r"a has shape \(6,\); pass a matrix of shape \(d, k\)"):
        principal_angles(torch.ones(6), good)
    with pytest.raises(EmlensError, match="a is a list; pass a Subspace or a matrix"):
        principal_angles([1.0], good)
