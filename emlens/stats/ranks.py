"""Wilcoxon's tests with the intervals that belong to them: rank-sum of two groups, signed ranks of
pairs.

A rank test says nothing of means: its estimate is Hodges & Lehmann's, the median of all differences
(pairs: of all means of two differences), with the interval that inverts the same test, so that 0
lies outside it where the two-sided test rejects (without ties or differences of 0, which the test
leaves out and the interval keeps). Ends are exact order statistics for up to 50 values a group
without ties, otherwise by the normal approximation. Memory: the product of the group sizes; over 50
million pairs are refused.
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.stats.effects import rank_biserial
from emlens.stats.nulls import Side
from emlens.stats.outcomes import TestResult, require_side, require_spread
from emlens.stats.samples import as_paired, as_sample, require_level

EXACT = 50
MOST = 50_000_000


def rank_sum_test(
    a: ArrayLike, b: ArrayLike, *, side: Side = "two-sided", level: float = 0.95
) -> TestResult:
    """Wilcoxon–Mann–Whitney: do values of a tend to be larger? `effect` is the rank-biserial
    correlation.

    The null is one distribution for both; under unequal spreads it is not a test of medians. The
    estimate is the shift of a against b, which presumes distributions of one shape.

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
    ties = np.unique(pooled, return_counts=True)[1].astype(float)
    exact = ties.max() == 1 and max(m, n) <= EXACT
    result = scipy_stats.mannwhitneyu(
        first, second, alternative=side, method="exact" if exact else "asymptotic"
    )
    variance = m * n / 12 * (m + n + 1 - float((ties**3 - ties).sum()) / ((m + n) * (m + n - 1)))
    cut = _cut(_rank_sum_counts(m, n) if exact else None, m * n, variance, level)
    estimate = _ordered(
        (first[:, None] - second).ravel(), cut, m + n, level, "Hodges-Lehmann shift"
    )
    effect = rank_biserial(first, second, level=level)
    return TestResult(
        float(result.statistic),
        float(result.pvalue),
        effect.value,
        estimate,
        m + n,
        f"Wilcoxon rank-sum test, {side}",
        effect.low,
        effect.high,
        "rank-biserial correlation",
        (m, n),
    )


def signed_rank_test(
    a: ArrayLike, b: ArrayLike, *, side: Side = "two-sided", level: float = 0.95
) -> TestResult:
    """Wilcoxon's signed ranks: are differences a − b symmetric about 0? `effect` is the
    matched-pairs rank-biserial.

    Differences of 0 are left out of the test, as Wilcoxon did, and kept in the interval.

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
    _require_pairs(n * (n + 1) // 2)
    moved = gaps[gaps != 0]
    ranks = scipy_stats.rankdata(np.abs(moved))
    exact = len(np.unique(np.abs(gaps))) == n and n <= EXACT
    result = scipy_stats.wilcoxon(gaps, alternative=side, method="exact" if exact else "asymptotic")
    all_ranks = scipy_stats.rankdata(np.abs(gaps))
    cut = _cut(
        _signed_rank_counts(n) if exact else None,
        n * (n + 1) // 2,
        float((all_ranks**2).sum()) / 4,
        level,
    )
    i, j = np.triu_indices(n)
    estimate = _ordered(
        (gaps[i] + gaps[j]) / 2, cut, n, level, "Hodges-Lehmann centre of the differences"
    )
    effect = float((np.sign(moved) * ranks).sum() / ranks.sum())
    return TestResult(
        float(result.statistic),
        float(result.pvalue),
        effect,
        estimate,
        n,
        f"Wilcoxon signed-rank test, {side}",
        effect_name="matched-pairs rank-biserial correlation",
        sizes=(n,),
    )


def _require_pairs(count: int) -> None:
    if count > MOST:
        raise InputError(
            f"{count} pairs of values are more than the {MOST} that are held at once;"
            " pass a sample of them"
        )


def _ordered(values: np.ndarray, cut: int, n: int, level: float, what: str) -> Estimate:
    """Median and the cut-th values from either end; without a cut the level is out of reach and the
    ends are unknown.
    """
    ordered = np.sort(values)
    method = f"{what}, {100 * level:g} % interval"
    middle = float(np.median(ordered))
    if cut < 1:
        return Estimate(
            middle, -math.inf, math.inf, n, f"{method}; so few values cannot reach this level"
        )
    return Estimate(middle, float(ordered[cut - 1]), float(ordered[-cut]), n, method)


def _cut(counts: np.ndarray | None, total: int, variance: float, level: float) -> int:
    """How many of the ordered values lie outside at each end."""
    tail = (1 - level) / 2
    if counts is not None:
        return int(np.searchsorted(np.cumsum(counts) / counts.sum(), tail, side="right"))
    return max(0, round(total / 2 + float(scipy_stats.norm.ppf(tail)) * math.sqrt(variance)))


def _rank_sum_counts(m: int, n: int) -> np.ndarray:
    """Orderings with each value of U, 0 to m·n: the Gaussian binomial coefficient (m + n over
    m).
    """
    counts = np.zeros(m * n + 1)
    counts[0] = 1
    for i in range(1, m + 1):
        shifted = counts.copy()
        shifted[n + i :] -= counts[: max(0, len(counts) - n - i)]
        for start in range(i):
            shifted[start::i] = np.cumsum(shifted[start::i])
        counts = shifted
    return counts


def _signed_rank_counts(n: int) -> np.ndarray:
    """Sign patterns with each value of W, 0 to n(n + 1)/2."""
    counts = np.zeros(n * (n + 1) // 2 + 1)
    counts[0] = 1
    for rank in range(1, n + 1):
        counts[rank:] += counts[:-rank].copy()
    return counts
