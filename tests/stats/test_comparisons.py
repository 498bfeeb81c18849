import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import ttost_ind, ttost_paired

from emlens import EmlensError
from emlens.stats import (
    cohens_d_interval,
    paired_test,
    permutation_test,
    signed_rank_test,
    tost,
    welch_test,
)
from emlens.stats.effects import cohens_d

RNG = np.random.default_rng(0)
A, B = RNG.normal(1.0, 1, size=30), RNG.normal(0.0, 3, size=45)
FIRST = RNG.normal(size=25)
SECOND = FIRST - 0.3 + RNG.normal(scale=0.5, size=25)


@pytest.mark.parametrize("side", ["two-sided", "greater", "less"])
def test_welch_agrees_with_scipy(side):
    result, expected = (
        welch_test(A, B, side=side),
        stats.ttest_ind(A, B, equal_var=False, alternative=side),
    )
    assert (result.statistic, result.p) == (
        pytest.approx(expected.statistic),
        pytest.approx(expected.pvalue),
    )
    interval = stats.ttest_ind(A, B, equal_var=False).confidence_interval()
    assert (result.estimate.low, result.estimate.high) == (
        pytest.approx(interval.low),
        pytest.approx(interval.high),
    )
    assert result.n == 75 and side in result.method
    assert result.to_record()["estimate"]["value"] == pytest.approx(A.mean() - B.mean())


def test_cohens_d_is_the_planted_one_and_changes_sign():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.8, 1, size=20_000), rng.normal(0, 1, size=30_000)
    assert cohens_d(a, b) == pytest.approx(0.8, abs=0.05)
    assert cohens_d(b, a) == -cohens_d(a, b)
    assert cohens_d(5 * a + 3, 5 * b + 3) == pytest.approx(cohens_d(a, b))
    t = stats.ttest_ind(A, B).statistic  # pooled t is d times a function of the sizes
    assert cohens_d(A, B) == pytest.approx(t * math.sqrt(1 / 30 + 1 / 45))


def test_paired_agrees_with_scipy():
    result, expected = paired_test(FIRST, SECOND), stats.ttest_rel(FIRST, SECOND)
    assert (result.statistic, result.p) == (
        pytest.approx(expected.statistic),
        pytest.approx(expected.pvalue),
    )
    gaps = FIRST - SECOND
    assert result.effect == pytest.approx(gaps.mean() / gaps.std(ddof=1))
    interval = stats.ttest_rel(FIRST, SECOND).confidence_interval()
    assert (result.estimate.low, result.n) == (pytest.approx(interval.low), 25)
    assert paired_test(FIRST, SECOND, kind="wilcoxon") == signed_rank_test(FIRST, SECOND)
    assert result.p < welch_test(FIRST, SECOND).p  # pairing takes out what both share


def test_permutation_agrees_with_scipy():
    result = permutation_test(A, B, draws=4000)
    expected = stats.permutation_test(
        (A, B), lambda x, y: x.mean() - y.mean(), n_resamples=4000, random_state=0
    )
    assert result.statistic == pytest.approx(A.mean() - B.mean())
    assert result.estimate == welch_test(A, B).estimate
    d = cohens_d_interval(A, B)
    assert (result.effect, result.effect_low, result.effect_high, result.sizes) == (
        d.value,
        d.low,
        d.high,
        (30, 45),
    )
    assert result.p == pytest.approx(expected.pvalue, abs=0.06)  # Monte Carlo error of both
    assert permutation_test(A, B, draws=50) == permutation_test(A, B, draws=50)


def test_permutation_counts_ties_and_takes_any_statistic():
    few = permutation_test([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], side="less", draws=4000)
    # 1 of C(6, 3) splits, however its sum is rounded
    assert few.p == pytest.approx(1 / 20, abs=0.012)
    spread = permutation_test(A, B, lambda x, y: float(x.std() / y.std()), side="less", draws=400)
    assert spread.p < 0.01
    apart = permutation_test([1.0, 1.0], [2.0, 2.0], draws=20)
    assert math.isnan(apart.effect) and math.isnan(apart.estimate.low)


def test_permutation_within_strata():
    rng = np.random.default_rng(2)
    stratum = np.r_[np.zeros(30), np.ones(10), np.zeros(10), np.ones(30)]
    values = 3 * stratum + rng.normal(size=80)
    assert permutation_test(values[:40], values[40:], draws=300).p < 0.02
    assert permutation_test(values[:40], values[40:], strata=stratum, draws=300).p > 0.05


def test_permutation_is_calibrated():
    rng = np.random.default_rng(3)
    values = [
        permutation_test(rng.exponential(size=8), rng.exponential(size=12), draws=99).p
        for _ in range(250)
    ]
    assert np.mean(np.array(values) <= 0.05) == pytest.approx(0.05, abs=0.03)


def test_tost_agrees_with_statsmodels():
    p, _, _ = ttost_ind(A, B, -2.0, 2.0, usevar="unequal")
    assert tost(A, B, 2.0).p == pytest.approx(p)
    p, _, _ = ttost_paired(FIRST, SECOND, -0.6, 0.6)
    result = tost(FIRST, SECOND, 0.6, paired=True)
    assert result.p == pytest.approx(p) and result.n == 25
    assert tost(SECOND, FIRST, 0.6, paired=True).p == pytest.approx(p)


@pytest.mark.parametrize("paired", [True, False])
def test_tost_says_equivalent_exactly_where_its_interval_lies_inside(paired):
    rng = np.random.default_rng(4)
    seen = set()
    for _ in range(60):
        a, b = rng.normal(size=30), rng.normal(0.2, 1, size=30)
        result = tost(a, b, 0.6, paired=paired)
        inside = result.estimate.low > -0.6 and result.estimate.high < 0.6
        assert inside == (result.p < 0.05)
        seen.add(inside)
    assert seen == {True, False}
    assert "90 %" in result.estimate.method


def test_tost_is_not_a_failed_test():
    """Too little data shows neither a difference nor equivalence."""
    a, b = [0.1, 2.0, -1.5], [0.3, -2.0, 1.4]
    assert welch_test(a, b).p > 0.5 and tost(a, b, 0.5).p > 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: welch_test([1.0], [1.0, 2]), "a has 1 values; pass at least 2"),
        (
            lambda: welch_test([1.0, 1], [1.0, 1]),
            "all values are equal within each sample, so there is no spread",
        ),
        (
            lambda: welch_test([1.0, 2], [1.0, 2], side="up"),
            "side='up' is unknown; pass 'greater', 'less' or 'two-sided'",
        ),
        (lambda: cohens_d([1.0, 1], [2.0, 2]), "there is no spread to test against"),
        (
            lambda: paired_test([1.0, 2], [1.0, 2, 3]),
            "a has 2 values and b has 3; pass one pair per unit",
        ),
        (lambda: paired_test([1.0, 2], [0.0, 1]), "there is no spread"),
        (
            lambda: paired_test([1.0, 2], [0.0, 3], kind="sign"),
            "kind='sign' is unknown; pass 't' or 'wilcoxon'",
        ),
        (lambda: permutation_test([1.0, 1], [1.0, 1]), "there is no spread"),
        (
            lambda: permutation_test([1.0, 2], [1.0, 3], strata=[0]),
            "strata has 1 labels for 4 units",
        ),
        (
            lambda: tost([1.0, 2], [1.0, 3], 0.0),
            "margin=0.0 must be positive: the largest difference that counts as none",
        ),
        (
            lambda: tost([1.0, 2], [1.0, 3], 1.0, alpha=0.7),
            "alpha=0.7 must lie strictly between 0 and .5",
        ),
    ],
)
def test_refusals(unchecked, call, message):
    with pytest.raises(EmlensError, match=message):
        call()
