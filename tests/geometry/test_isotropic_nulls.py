import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.linalg import subspace_angles

from emlens import EmlensError
from emlens.geometry import overlap_null, subspace_overlap
from emlens.geometry.isotropic_nulls import bartlett, overlap_moments, random_cosines
from emlens.geometry.overlap import MEASURES

ALPHA = 1e-4  # chance that a true distributional test fails; seeds are fixed


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("d", "k_a", "k_b"), [(40, 3, 3), (40, 2, 9), (40, 9, 2), (12, 8, 7), (5, 5, 2), (1, 1, 1)]
)
def test_isotropic_moments_are_the_theorem_and_the_draws_follow_them(d, k_a, k_b):
    null = overlap_null(d, k_a, k_b, draws=6000)
    assert null.mean == pytest.approx(max(k_a, k_b) / d)
    error = null.sd / math.sqrt(6000)
    assert abs(null.draws.mean() - null.mean) <= 5 * error + 1e-12
    assert null.draws.std() == pytest.approx(null.sd, rel=0.08, abs=1e-7)


@pytest.mark.parametrize(("d", "k_a", "k_b"), [(2, 1, 1), (3, 1, 1), (7, 1, 4), (7, 4, 1)])
def test_moments_of_one_squared_cosine_are_those_of_a_beta(d, k_a, k_b):
    law = stats.beta(max(k_a, k_b) / 2, (d - max(k_a, k_b)) / 2)
    assert overlap_moments(d, k_a, k_b) == (pytest.approx(law.mean()), pytest.approx(law.std()))


def test_moments_of_all_but_one_dimension_are_those_of_the_one_left_out():
    """tr P_a P_b = k_a − |P_a u|² where u spans what b leaves out."""
    mean, sd = overlap_moments(4, 2, 3)
    assert (mean, sd) == (pytest.approx((2 - 2 / 4) / 2), pytest.approx(stats.beta(1, 1).std() / 2))


@pytest.mark.parametrize(("d", "k_a", "k_b"), [(9, 1, 1), (9, 1, 4), (300, 2, 1)])
@pytest.mark.parametrize("measure", ["mean_cos", "min_cos"])
def test_moments_of_one_cosine_are_those_of_a_root_of_a_beta(measure, d, k_a, k_b):
    q = max(k_a, k_b)
    law = stats.beta(q / 2, (d - q) / 2)
    mean, sd = overlap_moments(d, k_a, k_b, measure)
    assert mean == pytest.approx(law.expect(np.sqrt), rel=1e-8)
    assert sd == pytest.approx(math.sqrt(law.mean() - law.expect(np.sqrt) ** 2), rel=1e-6)
    null = overlap_null(d, k_a, k_b, measure, draws=4000)
    assert null.mean == mean and abs(null.draws.mean() - mean) < 5 * sd / math.sqrt(4000)


def test_moments_without_a_closed_form_are_none_and_come_from_the_draws():
    assert (
        overlap_moments(9, 2, 2, "mean_cos") is None and overlap_moments(9, 1, 1, "chordal") is None
    )
    null = overlap_null(9, 2, 2, "mean_cos", draws=50)
    assert null.mean == null.draws.mean() and null.sd == null.draws.std(ddof=1)
    assert overlap_moments(4, 4, 1, "min_cos") == (1.0, 0.0)


def test_moments_agree_with_qr_draws_and_scipy_angles():
    """Independent of the Wishart route: orthonormal bases of Gaussian matrices, angles by scipy."""
    d, k_a, k_b, draws = 15, 3, 5, 1500
    rng = np.random.default_rng(0)
    result = np.empty(draws)
    for i in range(draws):
        a, b = (np.linalg.qr(rng.standard_normal((d, k)))[0] for k in (k_a, k_b))
        result[i] = (np.cos(subspace_angles(a, b)) ** 2).mean()
    mean, sd = overlap_moments(d, k_a, k_b)
    assert abs(result.mean() - mean) < 4 * sd / math.sqrt(draws)
    assert result.std() == pytest.approx(sd, rel=4 * math.sqrt(0.5 / draws))
    assert stats.ks_2samp(result, overlap_null(d, k_a, k_b, draws=1500).draws).pvalue > ALPHA
    # it can tell a wrong one
    assert abs(result.mean() - overlap_moments(d + 1, k_a, k_b)[0]) > 4 * sd / math.sqrt(draws)


def test_bartlett_factors_are_wishart():
    factors = bartlett(4000, 3, 7, np.random.default_rng(0))
    grams = factors.mT @ factors
    assert torch.equal(factors, factors.triu())
    torch.testing.assert_close(
        grams.mean(0), 7 * torch.eye(3, dtype=torch.float64), atol=0.35, rtol=0
    )
    x = rows(4000, 7, 3, seed=4)
    assert stats.ks_2samp(torch.linalg.det(grams), torch.linalg.det(x.mT @ x)).pvalue > ALPHA


def test_one_dimension_is_a_beta_distribution():
    null = overlap_null(10, 1, 1, draws=4000)
    assert stats.kstest(null.draws, stats.beta(0.5, 4.5).cdf).pvalue > ALPHA
    # the test can tell a wrong one
    assert stats.kstest(null.draws, stats.beta(0.5, 3.5).cdf).pvalue < ALPHA


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(("d", "k_a", "k_b"), [(12, 3, 3), (12, 2, 5), (9, 6, 5)])
def test_draws_equal_the_obvious_loop(measure, d, k_a, k_b):
    fast = overlap_null(d, k_a, k_b, measure=measure, draws=2000).draws
    a, b = rows(600, d, k_a, seed=1), rows(600, d, k_b, seed=2)
    slow = subspace_overlap(a, b, measure).numpy()
    assert stats.ks_2samp(fast, slow).pvalue > ALPHA
    assert (
        stats.ks_2samp(
            fast, overlap_null(d + 3, k_a, k_b, measure=measure, draws=2000).draws
        ).pvalue
        < ALPHA
    )


def test_forced_intersections_are_exact():
    cosines = random_cosines(9, 6, 5, 50, np.random.default_rng(0))
    assert cosines.shape == (50, 5)
    assert (cosines[:, :2] == 1).all() and (cosines[:, 2:] < 1).all()
    whole = overlap_null(6, 6, 2, draws=20)
    # all there is holds every subspace, whatever rounding says
    assert whole.p_value(1 - 1e-15) == 1.0


def test_cost_does_not_depend_on_width():
    null = overlap_null(10**9, 8, 8, draws=100)
    assert null.mean == pytest.approx(8e-9)


def test_many_cells_share_one_null():
    a, b = rows(4, 3, 30, 2, seed=1), rows(4, 3, 30, 2, seed=2)
    null = overlap_null(30, 2, 2, draws=500)
    values = subspace_overlap(a, b)
    p = null.p_values(values)
    assert p.shape == (4, 3)
    assert p[1, 2] == null.p_value(float(values[1, 2]))


def test_seeds():
    assert (overlap_null(30, 4, 4, draws=20).draws == overlap_null(30, 4, 4, draws=20).draws).all()
    assert (
        overlap_null(30, 4, 4, draws=20).draws != overlap_null(30, 4, 4, draws=20, seed=1).draws
    ).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: overlap_null(4, 5, 1), "k_a=5 and k_b=1 must be at most d_model=4"),
        (lambda: overlap_null(4, 0, 1), "k_a=0 must be an integer of 1 or more"),
        (lambda: overlap_null(4, 1, 1, draws=2.5), "draws=2.5 must be an integer of 1 or more"),
        (lambda: overlap_null(4, 1, 1, measure="x"), "measure='x' is unknown"),
        (lambda: overlap_moments(4, 5, 1), "k_a=5 and k_b=1 must be at most d_model=4"),
    ],
)
def test_refusals(unchecked, call, message):
    with pytest.raises(EmlensError, match=message):
        call()
