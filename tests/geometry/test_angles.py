import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings, strategies as st

from emlens import EmlensError
from emlens.geometry import principal_angles, top_k_subspace

ANGLE = 1e-13  # float64 arithmetic on orthonormal bases of a few thousand coordinates


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def planted(angles: list[float], d: int, extra: int = 0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal bases whose principal angles are known; b has `extra` directions orthogonal to all of a."""
    k = len(angles)
    frame = torch.linalg.qr(rows(d, 2 * k + extra, seed=seed)).Q
    a, across = frame[:, :k], frame[:, k : 2 * k]
    theta = torch.tensor(angles, dtype=torch.float64)
    return a, torch.cat([a * torch.cos(theta) + across * torch.sin(theta), frame[:, 2 * k :]], dim=1)


def mixed(basis: torch.Tensor, seed: int) -> torch.Tensor:
    """Another basis of the same span, of condition number 10, with columns of different length."""
    k = basis.shape[1]
    u, v = torch.linalg.qr(rows(k, k, seed=seed)).Q, torch.linalg.qr(rows(k, k, seed=seed + 1)).Q
    return basis @ u @ torch.diag(torch.logspace(0, 1, k, dtype=torch.float64)) @ v


@pytest.mark.parametrize(("d", "extra"), [(32, 0), (32, 5), (2048, 3)])
def test_planted_angles_over_twelve_orders(d, extra):
    angles = [1e-12, 1e-9, 1e-6, 1e-3, 0.5, math.pi / 4, 1.2, math.pi / 2 - 1e-9, math.pi / 2 - 1e-12]
    a, b = planted(angles, d, extra)
    found = principal_angles(a, b)
    np.testing.assert_allclose(found, sorted(angles), atol=ANGLE, rtol=0)
    np.testing.assert_allclose(principal_angles(mixed(a, 5), mixed(b, 7)), sorted(angles), atol=10 * ANGLE, rtol=0)
    by_cosine = torch.acos(torch.linalg.svdvals(a.T @ b).clamp(max=1)).sort().values
    assert (by_cosine - torch.tensor(sorted(angles))).abs().max() > 1e3 * ANGLE  # what the arc cosine alone would give


@pytest.mark.parametrize(("k_a", "k_b", "d"), [(3, 3, 10), (2, 7, 30), (7, 2, 30), (6, 7, 10), (1, 1, 2), (4, 4, 4)])
def test_agrees_with_scipy(k_a, k_b, d):
    a, b = rows(d, k_a, seed=1), rows(d, k_b, seed=2)
    found = principal_angles(a, b)
    assert found.shape == (min(k_a, k_b),)
    assert (found.diff() >= 0).all()
    forced = max(0, k_a + k_b - d)  # intersections that dimension alone forces; scipy 1.17 puts them at 1e-8
    assert (found[:forced] < ANGLE).all()
    expected = np.sort(scipy.linalg.subspace_angles(a.numpy(), b.numpy()))
    np.testing.assert_allclose(found[forced:], expected[forced:], atol=ANGLE)
    np.testing.assert_allclose(expected[:forced], 0, atol=1e-7)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 5))
def test_symmetric_and_invariant_to_bases_lengths_and_rotations(seed, k_a, k_b):
    a, b = rows(12, k_a, seed=seed), rows(12, k_b, seed=seed + 1)
    angles = principal_angles(a, b)
    turn = torch.linalg.qr(rows(12, 12, seed=seed + 2)).Q
    orthonormal = torch.linalg.qr(a).Q
    for other in (
        principal_angles(b, a),
        principal_angles(turn @ a, turn @ b),
        principal_angles(mixed(orthonormal, seed + 3), b),
        principal_angles(a * torch.logspace(-150, 150, k_a, dtype=torch.float64), -b),
    ):
        torch.testing.assert_close(other, angles, atol=1e-11, rtol=0)
    bent = principal_angles(a * torch.linspace(1, 9, 12, dtype=torch.float64)[:, None], b)
    assert (bent - angles).abs().max() > 1e-6  # a map that is no rotation does move them


def test_identical_and_orthogonal():
    frame = torch.linalg.qr(rows(20, 8)).Q
    assert principal_angles(frame[:, :4], mixed(frame[:, :4], 3)).max() < ANGLE
    torch.testing.assert_close(
        principal_angles(frame[:, :4], frame[:, 4:]),
        torch.full((4,), math.pi / 2, dtype=torch.float64),
        atol=ANGLE,
        rtol=0,
    )


def test_subspaces_batches_and_dtypes():
    x = rows(3, 30, 9)
    spaces = top_k_subspace(x, 2, center=True)
    one = top_k_subspace(x[1], 2, center=True)
    angles = principal_angles(spaces, one)
    assert angles.shape == (3, 2)
    assert angles[1].max() < 1e-7
    torch.testing.assert_close(angles[0], principal_angles(spaces.basis[0], one.basis))
    assert principal_angles(x[0].float(), x[1].float()).dtype == torch.float32
    assert principal_angles(x[0].float(), x[1]).dtype == torch.float64
    assert principal_angles(x[0].float(), x[0].float()).max() < ANGLE  # float32 bases are made orthonormal in float64


def test_refusals(unchecked):
    good = rows(6, 2)
    repeated = torch.cat([good, good[:, :1]], dim=1)
    with pytest.raises(EmlensError, match="a has 3 columns in 6 dimensions and rank 2; pass independent columns"):
        principal_angles(repeated, good)
    with pytest.raises(EmlensError, match=r"b has 3 columns in 6 dimensions and rank 2 at batch index \(1,\)"):
        principal_angles(good, torch.stack([rows(6, 3), repeated]))
    with pytest.raises(EmlensError, match="b has 9 columns in 6 dimensions and rank 6"):
        principal_angles(good, rows(6, 9))
    with pytest.raises(EmlensError, match="a has 1 columns in 6 dimensions and rank 0"):
        principal_angles(torch.zeros(6, 1), good)
    with pytest.raises(
        EmlensError, match="a lies in 5 dimensions and b in 6; pass subspaces of one stream, bases as columns"
    ):
        principal_angles(rows(5, 2), good)
    with pytest.raises(EmlensError, match=r"a has shape \(6, 0\) and so no column"):
        principal_angles(torch.ones(6, 0), good)
    with pytest.raises(EmlensError, match=r"a has shape \(6,\); pass a matrix of shape \(d, k\)"):
        principal_angles(torch.ones(6), good)
    with pytest.raises(EmlensError, match="a is a list; pass a Subspace or a matrix"):
        principal_angles([1.0], good)
