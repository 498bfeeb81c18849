import itertools
import math

import numpy as np
import pytest
from scipy import stats

from emlens import EmlensError
from emlens.stats import rank_sum_test, ranks, signed_rank_test

RNG = np.random.default_rng(0)
A, B = RNG.exponential(size=9) + 0.7, RNG.exponential(size=12)
GAPS = RNG.normal(0.4, 1, size=15)
ZERO = np.zeros(15)


@pytest.mark.parametrize("side", ["two-sided", "greater", "less"])
def test_agree_with_scipy(side):
    result, expected = (
        rank_sum_test(A, B, side=side),
        stats.mannwhitneyu(A, B, alternative=side, method="exact"),
    )
    assert (result.statistic, result.p) == (expected.statistic, pytest.approx(expected.pvalue))
    assert (result.sizes, result.n, result.effect_name) == (
        (9, 12),
        21,
        "rank-biserial correlation",
    )
    result, expected = (
        signed_rank_test(GAPS, ZERO, side=side),
        stats.wilcoxon(GAPS, alternative=side),
    )
    assert (result.statistic, result.p) == (expected.statistic, pytest.approx(expected.pvalue))
    ranked = stats.rankdata(np.abs(GAPS))
    assert result.effect == pytest.approx(
        (ranked[GAPS > 0].sum() - ranked[GAPS < 0].sum()) / ranked.sum()
    )


def test_the_interval_inverts_the_test_where_scipy_alone_would_approximate():
    """Between 9 and 50 values a group scipy's automatic choice is the normal approximation, the
    interval's is exact.
    """
    rng = np.random.default_rng(1)
    for _ in range(200):
        result = rank_sum_test(rng.normal(size=9), rng.normal(0.9, 1, size=16))
        assert (result.p < 0.05) == (not result.estimate.low <= 0 <= result.estimate.high)


def test_estimates_are_medians_of_pairs_by_a_loop():
    differences = [x - y for x in A for y in B]
    assert rank_sum_test(A, B).estimate.value == pytest.approx(np.median(differences))
    averages = [(x + y) / 2 for x, y in itertools.combinations_with_replacement(GAPS, 2)]
    assert signed_rank_test(GAPS, ZERO).estimate.value == pytest.approx(np.median(averages))


@pytest.mark.parametrize("test", ["sum", "signed"])
def test_the_interval_is_all_shifts_that_the_test_does_not_reject(test):
    """Just inside an end p is above .05, just outside at or below it: by scipy's exact p-values."""
    if test == "sum":
        estimate = rank_sum_test(A, B).estimate
        p = lambda shift: stats.mannwhitneyu(A - shift, B, method="exact").pvalue  # noqa: E731
    else:
        estimate = signed_rank_test(GAPS, ZERO).estimate
        p = lambda shift: stats.wilcoxon(GAPS - shift, method="exact").pvalue  # noqa: E731
    for end, outward in ((estimate.low, -1e-6), (estimate.high, 1e-6)):
        assert p(end - outward) > 0.05 >= p(end + outward)


def test_counts_of_orderings_by_enumeration():
    m, n = 3, 4
    by_hand = np.zeros(m * n + 1)
    for places in itertools.combinations(range(m + n), m):
        by_hand[sum(places) - m * (m - 1) // 2] += 1
    np.testing.assert_array_equal(ranks._rank_sum_counts(m, n), by_hand)
    signs = np.zeros(11)
    for chosen in itertools.product((0, 1), repeat=4):
        signs[sum(r for r, c in zip((1, 2, 3, 4), chosen, strict=True) if c)] += 1
    np.testing.assert_array_equal(ranks._signed_rank_counts(4), signs)
    assert ranks._rank_sum_counts(40, 50).sum() == pytest.approx(math.comb(90, 40))


def test_large_and_tied_samples_take_the_normal_ends_close_to_the_exact_ones(monkeypatch):
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.5, 1, size=45), rng.normal(size=50)
    exact = rank_sum_test(a, b).estimate, signed_rank_test(a, b[:45]).estimate
    monkeypatch.setattr(ranks, "EXACT", 10)
    normal = rank_sum_test(a, b).estimate, signed_rank_test(a, b[:45]).estimate
    for one, other in zip(exact, normal, strict=True):
        assert (one.low, one.high) == (
            pytest.approx(other.low, abs=0.05),
            pytest.approx(other.high, abs=0.05),
        )
    tied = rank_sum_test(np.round(a), np.round(b)).estimate
    assert tied.low <= tied.value <= tied.high


def enumerated_rank_sum(a, b, side):
    """p by going through every choice of len(a) of the pooled values."""
    ranked = stats.rankdata([*a, *b])
    sums = np.array([sum(c) for c in itertools.combinations(ranked, len(a))])
    observed = ranked[: len(a)].sum()
    tails = {
        "less": (sums <= observed + 1e-9).mean(),
        "greater": (sums >= observed - 1e-9).mean(),
    }
    return tails.get(side, min(1.0, 2 * min(tails.values())))


def enumerated_signed_rank(gaps, side):
    """p by going through every pattern of signs of the differences that are not 0."""
    gaps = np.array([gap for gap in gaps if gap])
    ranked = stats.rankdata(np.abs(gaps))
    signs = np.array(list(itertools.product((0, 1), repeat=len(gaps))))
    sums, observed = signs @ ranked, ranked[gaps > 0].sum()
    tails = {
        "less": (sums <= observed + 1e-9).mean(),
        "greater": (sums >= observed - 1e-9).mean(),
    }
    return tails.get(side, min(1.0, 2 * min(tails.values())))


@pytest.mark.parametrize("side", ["two-sided", "greater", "less"])
def test_p_is_exact_with_ties_by_enumeration(side):
    rng = np.random.default_rng(2)
    moved = 0
    for m, n in ((3, 3), (2, 7), (7, 4), (5, 6)):
        a, b = rng.integers(0, 4, m) + 1.0, rng.integers(0, 4, n) * 1.0
        p = rank_sum_test(a, b, side=side).p
        assert p == pytest.approx(enumerated_rank_sum(a, b, side), rel=1e-12)
        normal = stats.mannwhitneyu(a, b, alternative=side, method="asymptotic").pvalue
        moved += abs(p - normal) > 0.005
    assert moved >= 2  # the approximation, which stood here before, differs
    for n in (4, 6, 9):
        a, b = rng.integers(0, 4, n) + 1.0, rng.integers(0, 4, n) * 1.0
        p = signed_rank_test(a, b, side=side).p
        assert p == pytest.approx(enumerated_signed_rank(a - b, side), rel=1e-12)


def test_three_against_three_cannot_be_significant():
    result = rank_sum_test([1, 1, 1], [2, 2, 2])
    assert (result.statistic, result.p) == (0.0, pytest.approx(0.1))
    assert (result.estimate.low, result.estimate.high) == (-math.inf, math.inf)
    assert signed_rank_test([1] * 5 + [0], [0] * 6).p == pytest.approx(0.0625)


def test_the_exact_p_of_the_largest_groups_is_scipys_without_ties_and_close_to_normal_with():
    rng = np.random.default_rng(3)
    a, b = rng.normal(0.3, 1, size=50), rng.normal(size=49)
    exact = stats.mannwhitneyu(a, b, method="exact").pvalue
    assert rank_sum_test(a, b).p == pytest.approx(exact, rel=1e-9)
    a, b = np.round(a, 1), np.round(b, 1)
    normal = stats.mannwhitneyu(a, b, method="asymptotic").pvalue
    assert rank_sum_test(a, b).p == pytest.approx(normal, rel=0.02)


def test_too_few_values_exclude_nothing():
    result = rank_sum_test([1.0, 2.0], [3.0, 4.5]).estimate
    assert (result.low, result.high) == (
        -math.inf,
        math.inf,
    ) and "cannot reach this level" in result.method


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rank_sum_test([1.0, 1], [1.0, 1]), "there is no spread to test against"),
        (lambda: rank_sum_test([1.0, 2], [1.0, 3], side="up"), "side='up' is unknown"),
        (lambda: signed_rank_test([1.0, 2], [0.0, 1]), "there is no spread to test against"),
        (lambda: signed_rank_test([1.0, 2], [0.0]), "b has 1 values; pass at least 2"),
        (
            lambda: rank_sum_test(np.arange(8000.0), np.arange(8000.0)),
            "64000000 pairs of values are more than the 50000000",
        ),
    ],
)
def test_refusals(unchecked, call, message):
    with pytest.raises(EmlensError, match=message):
        call()
