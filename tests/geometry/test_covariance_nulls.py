import math

import numpy as np
import pytest
import torch
from scipy import stats

from emlens import EmlensError
from emlens.geometry import covariance_overlap_null, overlap_null, subspace_overlap, top_k_subspace

ALPHA = 1e-4  # chance that a true distributional test fails; seeds are fixed


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def power_law(d: int) -> torch.Tensor:
    return torch.diag(1 / torch.arange(1, d + 1, dtype=torch.float64))


def test_covariance_null_of_a_power_law():
    """Independent sets of 150 vectors, eigenvalues ∝ 1/i, d = 128: .71 in the top 8, against .063
    when isotropic.
    """
    null = covariance_overlap_null(power_law(128), 150, 150, 8, center=True, draws=60)
    assert null.mean == pytest.approx(0.705, abs=0.02)
    assert overlap_null(128, 8, 8, draws=10).mean == pytest.approx(0.0625)
    loop = []
    for seed in range(25):
        x = rows(300, 128, seed=seed) @ power_law(128).sqrt()
        loop.append(
            float(
                subspace_overlap(
                    *(top_k_subspace(part, 8, center=True) for part in (x[:150], x[150:]))
                )
            )
        )
    assert np.mean(loop) == pytest.approx(null.mean, abs=5 * null.sd / math.sqrt(25))
    assert stats.ks_2samp(loop, null.draws).pvalue > ALPHA


# fewer rows than dimensions, more, about as many
@pytest.mark.parametrize(("n_a", "n_b"), [(9, 9), (9, 40), (13, 12)])
@pytest.mark.parametrize("center", [False, True])
def test_draws_equal_samples_of_rows(n_a, n_b, center):
    """The null draws no rows where n > d and takes no mean out: a loop over samples of rows does
    both.
    """
    null = covariance_overlap_null(power_law(12), n_a, n_b, 2, center=center, draws=1000)
    a, b = (rows(1000, n, 12, seed=n) @ power_law(12).sqrt() for n in (n_a, n_b + 100))
    loop = subspace_overlap(
        *(top_k_subspace(x[:, :n], 2, center=center) for x, n in ((a, n_a), (b, n_b)))
    ).numpy()
    assert stats.ks_2samp(loop, null.draws).pvalue > ALPHA
    other = covariance_overlap_null(
        power_law(12), max(3, n_a // 3), n_b, 2, center=center, draws=1000
    )
    assert stats.ks_2samp(loop, other.draws).pvalue < ALPHA  # it can tell another number of rows


def test_taking_the_mean_out_costs_one_vector():
    """Of two centred vectors one direction is left: the difference."""
    null, uncentred = (
        covariance_overlap_null(power_law(12), 2, 2, 1, center=c, draws=2000).draws
        for c in (True, False)
    )
    a, b = (rows(2000, 2, 12, seed=s) @ power_law(12).sqrt() for s in (1, 2))
    loop = torch.nn.functional.cosine_similarity(a[:, 0] - a[:, 1], b[:, 0] - b[:, 1]).square()
    assert stats.ks_2samp(loop, null).pvalue > ALPHA
    assert stats.ks_2samp(loop, uncentred).pvalue < ALPHA  # it can tell two vectors from one


def test_covariance_null_of_the_identity_is_the_isotropic_one():
    matched = covariance_overlap_null(torch.eye(16), 40, 40, 3, center=False, draws=800).draws
    assert stats.ks_2samp(matched, overlap_null(16, 3, 3, draws=800).draws).pvalue > ALPHA


def test_covariance_null_ignores_rotation_and_scale_and_reads_vectors():
    turn = torch.linalg.qr(rows(20, 20)).Q
    plain = covariance_overlap_null(power_law(20), 15, 30, 4, center=True, draws=200)
    turned = covariance_overlap_null(
        7 * turn @ power_law(20) @ turn.T, 15, 30, 4, center=True, draws=200
    )
    np.testing.assert_allclose(turned.draws, plain.draws, atol=1e-6)
    x = rows(50, 20) @ power_law(20).sqrt() + 9
    from_vectors = covariance_overlap_null(x, 15, 30, 4, center=True, draws=50)
    from_covariance = covariance_overlap_null(torch.cov(x.T), 15, 30, 4, center=True, draws=50)
    np.testing.assert_allclose(from_vectors.draws, from_covariance.draws, atol=1e-6)


def test_second_moments_of_vectors_hold_their_mean():
    x = rows(50, 20) @ power_law(20).sqrt() + 9
    from_vectors = covariance_overlap_null(x, 15, 30, 4, center=False, about="zero", draws=50)
    from_moment = covariance_overlap_null(x.T @ x / 50, 15, 30, 4, center=False, draws=50)
    np.testing.assert_allclose(from_vectors.draws, from_moment.draws, atol=1e-6)
    shifted = rows(50, 20, seed=1) + 9
    values = [
        covariance_overlap_null(shifted, 15, 30, 1, center=False, about=x, draws=50).mean
        for x in ("zero", "mean")
    ]
    assert values[0] > 0.95 and values[1] < 0.5  # a common mean is found by both sides


def test_covariance_null_is_calibrated_where_the_isotropic_one_is_not():
    """Under anisotropy alone its p-values are uniform; the isotropic null calls every pair
    shared.
    """
    d, n, k = 24, 30, 3
    matched = covariance_overlap_null(power_law(d), n, n, k, center=True, draws=500)
    isotropic = overlap_null(d, k, k, draws=500)
    x = rows(2, 200, n, d, seed=9) @ power_law(d).sqrt()
    observed = subspace_overlap(*(top_k_subspace(side, k, center=True) for side in x))
    assert stats.kstest(matched.p_values(observed), "uniform").pvalue > 1e-3
    assert np.mean(isotropic.p_values(observed) <= 0.05) > 0.95


def test_null_rises_with_what_it_should():
    means = [
        covariance_overlap_null(power_law(60), n, n, 4, center=True, draws=30).mean
        for n in (10, 40, 400)
    ]
    # finite samples blur shared axes; many samples find the same ones
    assert means[0] < means[1] < means[2]


def test_a_long_spectrum_keeps_its_weak_components():
    """Eigenvalues fourteen orders apart: the third component of a sample lies below the rounding of
    a Gram matrix.
    """
    scale = torch.diag(torch.tensor([1.0, 1e-8, 1e-13, 1e-15], dtype=torch.float64))
    null = covariance_overlap_null(scale, 40, 3, 3, center=False, draws=40)
    assert 0.9 < null.mean < 1  # axes this far apart are found by any sample of three rows or more


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: covariance_overlap_null(torch.eye(9), 4, 9, 4, center=True),
            (
                "k=4 is above the rank of a sample: the covariance has rank 9, n_a=4, n_b=9,"
                " center=True; pass k <= 3"
            ),
        ),
        (
            lambda: covariance_overlap_null(torch.eye(9), 9, 9, 2, center="mean"),
            "center='mean' must be True or False here",
        ),
        (
            lambda: covariance_overlap_null(torch.eye(9), 9, 9, 2, center=True, about="0"),
            "about='0' is unknown; pass 'mean' or 'zero'",
        ),
        (
            lambda: covariance_overlap_null(torch.eye(9), 9, 9, 2, center=True, about="zero"),
            (
                "about='zero' is for vectors, and covariance_or_vectors is a covariance;"
                " pass their second moment"
            ),
        ),
        (
            lambda: covariance_overlap_null(-torch.eye(9), 9, 9, 2, center=True),
            "is symmetric with eigenvalue -1; a covariance has none",
        ),
        (
            lambda: covariance_overlap_null(torch.zeros(4, 9), 9, 9, 2, center=True),
            r"of shape \(4, 9\) has no variance",
        ),
        (
            lambda: covariance_overlap_null(torch.ones(1, 9), 9, 9, 2, center=True),
            "has 1 rows; pass at least 2 vectors",
        ),
        (
            lambda: covariance_overlap_null(torch.ones(9), 9, 9, 2, center=True),
            r"has shape \(9,\); pass a covariance",
        ),
        (
            lambda: covariance_overlap_null(
                rows(20, 9), 9, 9, 2, center=True, tested=[rows(20, 9)]
            ),
            "covariance_or_vectors holds 20 of the tested vectors among its 20 rows",
        ),
    ],
)
def test_refusals(unchecked, call, message):
    with pytest.raises(EmlensError, match=message):
        call()
