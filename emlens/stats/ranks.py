"""Wilcoxon's rank tests with the intervals that belong to them, for two groups and for pairs.

A rank test says nothing of means: its estimate is Hodges & Lehmann's, the median of all differences
(pairs: of all means of two differences), with the interval that inverts the same test, so that 0
lies outside it where the two-sided test rejects (without ties or differences of 0, which the test
leaves out and the interval keeps). Up to 50 values per group p is exact, with ties too: the
permutation distribution of the mid-ranks, counted. Ends are then order statistics, conservative
where values tie; larger groups take the normal approximation. Memory: the product of the group
sizes; over 50 million pairs are refused.
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.stats.effects import rank_biserial
from emlens.stats.nulls import Side, require_side
from emlens.stats.outcomes import TestResult, require_spread
from emlens.stats.samples import as_paired, as_sample, require_level

EXACT = 50
"""Values per group up to which the ends are exact order statistics."""
MOST = 50_000_000
"""Pairs that are compared at most: 400 MB of differences."""


def rank_sum_test(
    a: ArrayLike, b: ArrayLike, *, side: Side = "two-sided", level: float = 0.95
) -> TestResult:
    """Wilcoxon–Mann–Whitney: do values of a tend to be larger than those of b?

    `effect` is the rank-biserial correlation. The null is one distribution for both; under unequal
    spreads it is not a test of medians. The estimate is the shift of a against b, which presumes
    distributions of one shape.

    Raises:
        InputError: fewer than 2 values in a group, values that are not finite or all equal, an
            unknown side, too many pairs.
    """
    first, second = as_sample(a, "a", at_least=2), as_sample(b, "b", at_least=2)
    require_side(side)
    require_level(level)
    pooled = np.concatenate([first, second])
    require_spread(pooled)
    m, n = len(first), len(second)
    _require_pairs(m * n)
    pooled_ranks = scipy_stats.rankdata(pooled)
    # U: pairs in which the value of a is larger, ties counted half
    statistic = float(pooled_ranks[:m].sum()) - m * (m + 1) / 2
    if max(m, n) <= EXACT:
        p = _rank_sum_p(pooled_ranks, m, side)
        cut = _exact_cut(_rank_sum_counts(m, n), level)
    else:
        test = scipy_stats.mannwhitneyu(first, second, alternative=side, method="asymptotic")
        p = float(test.pvalue)
        # variance of U, corrected for ties
        multiplicity = np.unique(pooled, return_counts=True)[1].astype(float)
        ties = float((multiplicity**3 - multiplicity).sum()) / ((m + n) * (m + n - 1))
        cut = _normal_cut(m * n, m * n / 12 * (m + n + 1 - ties), level)
    differences = (first[:, None] - second).ravel()
    estimate = _order_statistics(differences, cut, m + n, level, "Hodges-Lehmann shift")
    effect = rank_biserial(first, second, level=level)
    return TestResult(
        statistic=statistic,
        p=p,
        effect=effect.value,
        estimate=estimate,
        n=m + n,
        method=f"Wilcoxon rank-sum test, {side}",
        effect_low=effect.low,
        effect_high=effect.high,
        effect_name="rank-biserial correlation",
        sizes=(m, n),
    )


def signed_rank_test(
    a: ArrayLike, b: ArrayLike, *, side: Side = "two-sided", level: float = 0.95
) -> TestResult:
    """Wilcoxon's signed ranks: are differences a − b symmetric about 0?

    `effect` is the matched-pairs rank-biserial correlation. Differences of 0 are left out of the
    test, as Wilcoxon did, and count in the interval.

    Raises:
        InputError: unequal lengths, fewer than 2 pairs, values that are not finite, differences
            that are all equal, an unknown side, too many pairs.
    """
    first, second = as_paired(a, b, "a", "b", at_least=2)
    require_side(side)
    require_level(level)
    gaps = first - second
    require_spread(gaps)
    n = len(gaps)
    pairs = n * (n + 1) // 2
    _require_pairs(pairs)
    nonzero = gaps[gaps != 0]
    ranks = scipy_stats.rankdata(np.abs(nonzero))
    positive = float(ranks[nonzero > 0].sum())
    negative = float(ranks[nonzero < 0].sum())
    if n <= EXACT:
        p = _tail_p(_subset_sums(ranks), positive, side)
        cut = _exact_cut(_signed_rank_counts(n), level)
    else:
        test = scipy_stats.wilcoxon(gaps, alternative=side, method="asymptotic")
        p = float(test.pvalue)
        # Var W = Σ rank²/4: each rank is counted or not, with probability ½
        all_ranks = scipy_stats.rankdata(np.abs(gaps))
        cut = _normal_cut(pairs, float((all_ranks**2).sum()) / 4, level)
    # Walsh averages: the mean of every pair of differences, each with itself too
    i, j = np.triu_indices(n)
    walsh = (gaps[i] + gaps[j]) / 2
    what = "Hodges-Lehmann centre of the differences"
    estimate = _order_statistics(walsh, cut, n, level, what)
    # as scipy: the smaller of the two sums, or the positive one where a side is named
    statistic = min(positive, negative) if side == "two-sided" else positive
    return TestResult(
        statistic=statistic,
        p=p,
        effect=(positive - negative) / float(ranks.sum()),
        estimate=estimate,
        n=n,
        method=f"Wilcoxon signed-rank test, {side}",
        effect_name="matched-pairs rank-biserial correlation",
        sizes=(n,),
    )


def _rank_sum_p(pooled_ranks: np.ndarray, m: int, side: Side) -> float:
    """p of the rank sum of the first `m` values, over all ways to choose as many of the values.

    The sum of the others is the total minus it, so the smaller group is the one that is counted.
    """
    n_values = len(pooled_ranks)
    if 2 * m <= n_values:
        counts = _subset_sums(pooled_ranks, m)
        return _tail_p(counts, float(pooled_ranks[:m].sum()), side)
    opposite: dict[Side, Side] = {"greater": "less", "less": "greater", "two-sided": "two-sided"}
    counts = _subset_sums(pooled_ranks, n_values - m)
    return _tail_p(counts, float(pooled_ranks[m:].sum()), opposite[side])


def _subset_sums(ranks: np.ndarray, size: int | None = None) -> np.ndarray:
    """How many subsets of the ranks have each doubled sum, 0 upwards; of `size` ranks, or of any.

    Mid-ranks are multiples of one half, so doubled they are whole numbers. Counts stay below 2^100
    and are added only, so float64 holds each to some 1e-14 of itself.
    """
    doubled = np.rint(2 * ranks).astype(int)
    total = int(doubled.sum())
    if size is None:
        counts = np.zeros(total + 1)
        counts[0] = 1
        for rank in doubled:
            counts[rank:] += counts[: total + 1 - rank].copy()
        return counts
    # row j: subsets of j ranks; every rank is either left out, or moves a subset one row on
    by_size = np.zeros((size + 1, total + 1))
    by_size[0, 0] = 1
    for rank in doubled:
        by_size[1:, rank:] += by_size[:-1, : total + 1 - rank].copy()
    return by_size[size]


def _tail_p(counts: np.ndarray, observed: float, side: Side) -> float:
    """p of a sum of ranks among equally likely ones; two-sided doubles the smaller tail."""
    at = round(2 * observed)
    whole = float(counts.sum())
    less = float(counts[: at + 1].sum()) / whole
    greater = float(counts[at:].sum()) / whole
    if side == "less":
        return min(1.0, less)
    if side == "greater":
        return min(1.0, greater)
    return min(1.0, 2 * min(less, greater))


def _require_pairs(count: int) -> None:
    if count > MOST:
        raise InputError(
            f"{count} pairs of values are more than the {MOST} that fit into memory at once;"
            " pass a sample of the values"
        )


def _order_statistics(values: np.ndarray, cut: int, n: int, level: float, what: str) -> Estimate:
    """Median, and the cut-th values from either end.

    A cut of 0 means that so few values cannot reach the level: the ends are infinite.
    """
    ordered = np.sort(values)
    method = f"{what}, {100 * level:g} % interval"
    middle = float(np.median(ordered))
    if cut < 1:
        why = f"{method}; so few values cannot reach this level"
        return Estimate(middle, -math.inf, math.inf, n, why)
    return Estimate(middle, float(ordered[cut - 1]), float(ordered[-cut]), n, method)


def _exact_cut(counts: np.ndarray, level: float) -> int:
    """How many ordered values lie outside at each end, from the null distribution of the rank test.

    `counts` says how many equally likely outcomes have each value of the statistic, 0 upwards.
    """
    tail = (1 - level) / 2
    return int(np.searchsorted(np.cumsum(counts) / counts.sum(), tail, side="right"))


def _normal_cut(pairs: int, variance: float, level: float) -> int:
    """The same by the normal approximation: mean pairs/2, and the variance of the statistic."""
    tail = (1 - level) / 2
    return max(0, round(pairs / 2 + float(scipy_stats.norm.ppf(tail)) * math.sqrt(variance)))


def _rank_sum_counts(m: int, n: int) -> np.ndarray:
    """Orderings with each value of U, 0 to m·n: coefficients of the Gaussian binomial (m + n, m).

    That is Π (1 − q^(n+i)) / (1 − q^i) over i = 1..m, as a polynomial in q.
    """
    counts = np.zeros(m * n + 1)
    counts[0] = 1
    for i in range(1, m + 1):
        # times (1 − q^(n+i)): subtract what is shifted by n + i
        product = counts.copy()
        product[n + i :] -= counts[: max(0, len(counts) - n - i)]
        # divided by (1 − q^i): a running sum with stride i
        for start in range(i):
            product[start::i] = np.cumsum(product[start::i])
        counts = product
    return counts


def _signed_rank_counts(n: int) -> np.ndarray:
    """Sign patterns with each value of W, 0 to n(n + 1)/2: coefficients of Π (1 + q^rank)."""
    counts = np.zeros(n * (n + 1) // 2 + 1)
    counts[0] = 1
    for rank in range(1, n + 1):
        counts[rank:] += counts[:-rank].copy()
    return counts
