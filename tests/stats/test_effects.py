import math

import numpy as np
import pytest
from scipy import stats

from emlens import EmlensError
from emlens.stats import cohens_d_interval
from emlens.stats.effects import cohens_d, rank_biserial

RNG = np.random.default_rng(0)
A, B = RNG.normal(0.8, 1, size=14), RNG.normal(0.0, 1, size=20)


@pytest.mark.parametrize("paired", [False, True])
def test_the_ends_of_d_are_where_the_observed_t_is_at_the_edge(paired):
    """The defining property, by scipy's noncentral t: at either end the observed t has a tail of
    .025.
    """
    b = B[:14] if paired else B
    estimate = cohens_d_interval(A, b, paired=paired)
    if paired:
        t, freedom, scale = stats.ttest_rel(A, b).statistic, 13, 1 / math.sqrt(14)
    else:
        t, freedom, scale = stats.ttest_ind(A, b).statistic, 32, math.sqrt(1 / 14 + 1 / 20)
        assert estimate.value == pytest.approx(cohens_d(A, b))
    assert estimate.value == pytest.approx(t * scale)
    assert stats.nct.sf(t, freedom, estimate.low / scale) == pytest.approx(0.025, abs=1e-5)
    assert stats.nct.cdf(t, freedom, estimate.high / scale) == pytest.approx(0.025, abs=1e-5)


def test_d_has_no_unit_changes_sign_with_the_order_and_is_finite_far_out():
    estimate, moved = cohens_d_interval(A, B), cohens_d_interval(5 * A + 3, 5 * B + 3)
    assert (moved.low, moved.high) == (pytest.approx(estimate.low), pytest.approx(estimate.high))
    assert cohens_d_interval(B, A).low == pytest.approx(-estimate.high, rel=1e-5)
    assert estimate.low > cohens_d_interval(A, B, level=0.99).low
    far = cohens_d_interval(A + 1000, B)
    assert far.low < far.value < far.high and math.isfinite(far.high) and far.value > 500
    # on either side of where scipy's tails end
    near, over = (cohens_d_interval(A + shift, B) for shift in (9.9, 11.5))
    assert over.high - over.value == pytest.approx(near.high - near.value, rel=0.25)


def test_rank_biserial_counts_pairs_and_does_not_change_under_increasing_maps():
    wins = np.sign(A[:, None] - B).mean()
    estimate = rank_biserial(A, B)
    assert estimate.value == pytest.approx(wins) and estimate.low < wins < estimate.high
    u = stats.mannwhitneyu(A, B).statistic
    assert estimate.value == pytest.approx(2 * u / (len(A) * len(B)) - 1)
    assert rank_biserial(np.exp(A), np.exp(B)) == estimate
    assert rank_biserial(B, A).low == pytest.approx(-estimate.high)
    ties = rank_biserial([1.0, 2, 2, 3], [2.0, 2, 0, 5])
    assert ties.value == pytest.approx(
        np.sign(np.array([1.0, 2, 2, 3])[:, None] - np.array([2.0, 2, 0, 5])).mean()
    )
    signs = np.sign(A[:, None] - B)
    parts = signs.mean(1).var(ddof=1) / 14, signs.mean(0).var(ddof=1) / 20
    assert abs(stats.brunnermunzel(A, B).statistic) == pytest.approx(wins / math.sqrt(sum(parts)))
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 13 + parts[1] ** 2 / 19)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(sum(parts)) / (1 - wins**2)
    assert (np.arctanh(estimate.low), np.arctanh(estimate.high)) == (
        pytest.approx(np.arctanh(wins) - half),
        pytest.approx(np.arctanh(wins) + half),
    )


def test_rank_biserial_without_spread_has_no_interval():
    apart = rank_biserial([3.0, 4.0], [1.0, 2.0])
    assert apart.value == 1 and math.isnan(apart.low) and "no interval" in apart.method


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cohens_d_interval([1.0, 1], [2.0, 2]), "there is no spread to test against"),
        (
            lambda: cohens_d_interval([1.0, 2], [2.0, 3], paired=True),
            "there is no spread to test against",
        ),
        (
            lambda: cohens_d_interval([1.0, 2], [2.0, 4], level=95),
            "level=95 must lie strictly between",
        ),
        (lambda: rank_biserial([1.0], [2.0, 4]), "a has 1 values; pass at least 2"),
    ],
)
def test_refusals(unchecked, call, message):
    with pytest.raises(EmlensError, match=message):
        call()
