"""Tests of a difference of means between groups or pairs, and of equivalence; scipy does the
arithmetic it has.

Each returns a `TestResult`. "No significant difference" is never evidence of no difference: for
that there is `tost`. A comparison that has no spread at all is an error, since its p-value would be
an artefact.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.seeds import numpy_rng
from emlens.stats.correlation import stratum_rows
from emlens.stats.effects import cohens_d_interval
from emlens.stats.nulls import NullDistribution, Side
from emlens.stats.outcomes import TestResult, require_side, require_spread
from emlens.stats.ranks import signed_rank_test
from emlens.stats.samples import as_paired, as_sample, require_count, require_level


def welch_interval(
    a: np.ndarray, b: np.ndarray, level: float, what: str = "difference of means"
) -> Estimate:
    """mean(a) − mean(b) with Welch's two-sided interval; samples as they are, not checked."""
    error, freedom = _welch_error(a, b)
    half = float(scipy_stats.t.ppf((1 + level) / 2, freedom)) * error
    gap = float(a.mean() - b.mean())
    return Estimate(
        gap, gap - half, gap + half, len(a) + len(b), f"{what}, {100 * level:g} % Welch interval"
    )


def _welch_error(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Standard error of the difference of means, and its degrees of freedom."""
    parts = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1))
    return math.sqrt(sum(parts)), float(freedom)


def welch_test(
    a: ArrayLike, b: ArrayLike, *, side: Side = "two-sided", level: float = 0.95
) -> TestResult:
    """Welch's t-test that two independent groups have one mean; variances may differ. `effect` is
    Cohen's d.

    Raises:
        InputError: fewer than 2 values in a group, values that are not finite, no spread, an
            unknown side.
    """
    first, second = as_sample(a, "a", at_least=2), as_sample(b, "b", at_least=2)
    require_side(side)
    require_spread(first, second)
    estimate = welch_interval(first, second, require_level(level))
    result = scipy_stats.ttest_ind(first, second, equal_var=False, alternative=side)
    return _result(
        float(result.statistic),
        float(result.pvalue),
        estimate,
        f"Welch t-test, {side}",
        (first, second),
        level,
    )


def paired_test(
    a: ArrayLike,
    b: ArrayLike,
    *,
    kind: Literal["t", "wilcoxon"] = "t",
    side: Side = "two-sided",
    level: float = 0.95,
) -> TestResult:
    """Test that a − b is centred on 0 over pairs: Student's t, with d_z as effect, or
    `signed_rank_test`.

    Raises:
        InputError: unequal lengths, fewer than 2 pairs, values that are not finite, differences
            that are all equal.
    """
    first, second = as_paired(a, b, "a", "b", at_least=2)
    require_side(side)
    gaps = first - second
    require_spread(gaps)
    if kind == "wilcoxon":
        return signed_rank_test(first, second, side=side, level=level)
    if kind != "t":
        raise InputError(f"kind={kind!r} is unknown; pass 't' or 'wilcoxon'")
    result = scipy_stats.ttest_1samp(gaps, 0.0, alternative=side)
    estimate = _pair_interval(gaps, require_level(level))
    return _result(
        float(result.statistic),
        float(result.pvalue),
        estimate,
        f"paired t-test, {side}",
        (first, second),
        level,
        paired=True,
    )


def _pair_interval(gaps: np.ndarray, level: float) -> Estimate:
    n, mean = len(gaps), float(gaps.mean())
    half = float(scipy_stats.t.ppf((1 + level) / 2, n - 1) * gaps.std(ddof=1)) / math.sqrt(n)
    return Estimate(
        mean,
        mean - half,
        mean + half,
        n,
        f"mean difference over pairs, {100 * level:g} % t interval",
    )


def _result(
    statistic: float,
    p: float,
    estimate: Estimate,
    method: str,
    samples: tuple[np.ndarray, np.ndarray],
    level: float,
    *,
    paired: bool = False,
) -> TestResult:
    """With Cohen's d, where there is spread to divide by."""
    name, sizes = (
        ("Cohen's d_z", (len(samples[0]),))
        if paired
        else ("Cohen's d", (len(samples[0]), len(samples[1])))
    )
    if not paired and all(np.ptp(sample) == 0 for sample in samples):
        return TestResult(
            statistic, p, math.nan, estimate, sum(sizes), method, effect_name=name, sizes=sizes
        )
    d = cohens_d_interval(*samples, paired=paired, level=level)
    return TestResult(
        statistic, p, d.value, estimate, sum(sizes), method, d.low, d.high, name, sizes
    )


def _mean_gap(a: np.ndarray, b: np.ndarray) -> float:
    return float(a.mean() - b.mean())


def permutation_test(
    a: ArrayLike,
    b: ArrayLike,
    statistic: Callable[[np.ndarray, np.ndarray], float] | None = None,
    *,
    strata: Sequence[object] | np.ndarray | None = None,
    side: Side = "two-sided",
    draws: int = 9999,
    seed: int = 0,
) -> TestResult:
    """Shuffle group labels: a and b are one distribution (within each stratum, where strata are
    given).

    Args:
        statistic: (a, b) -> number; the difference of means where it is None. Two-sided doubles the
            smaller tail.
        strata: one label a value, those of a first; labels then swap only within a stratum.

    `p` has the +1 rule; `effect` is Cohen's d. `estimate` is the difference of means with its Welch
    interval, or the observed statistic of yours, without one.

    Raises:
        InputError: fewer than 2 values in a group, values that are not finite, strata that do not
            fit, no spread.
    """
    first, second = as_sample(a, "a", at_least=2), as_sample(b, "b", at_least=2)
    require_side(side)
    pooled = np.concatenate([first, second])
    require_spread(pooled)
    compute = statistic or _mean_gap
    rows = stratum_rows(strata, len(pooled))
    rng = numpy_rng(seed, "permutation_test")
    values = np.empty(require_count(draws, "draws"))
    shuffled = pooled.copy()
    for i in range(draws):
        for members in rows:
            shuffled[members] = pooled[rng.permutation(members)]
        values[i] = compute(shuffled[: len(first)], shuffled[len(first) :])
    observed = float(compute(first, second))
    # ties that summation order broke count as ties
    rounding = 1e-12 * max(float(np.abs(values).max()), abs(observed))
    values = np.where(np.abs(values - observed) <= rounding, observed, values)
    p = NullDistribution(values, "group labels permuted", seed).p_value(observed, side)
    method = f"permutation test, {side}, {draws} draws" + (
        " within strata" if strata is not None else ""
    )
    if statistic is None and (np.ptp(first) > 0 or np.ptp(second) > 0):
        estimate = welch_interval(first, second, 0.95)
    else:
        estimate = Estimate(
            observed, math.nan, math.nan, len(pooled), "observed statistic, no interval"
        )
    return _result(observed, p, estimate, method, (first, second), 0.95)


def tost(
    a: ArrayLike, b: ArrayLike, margin: float, *, paired: bool = False, alpha: float = 0.05
) -> TestResult:
    """Equivalence of means within ±margin, by two one-sided t-tests (Schuirmann 1987); Welch's, or
    over pairs.

    A small p says that the difference lies inside the margin. `p` is the larger of the two;
    `estimate` carries the 1 − 2·alpha interval, inside ±margin exactly where p < alpha. Choose the
    margin before seeing the data.

    Raises:
        InputError: a margin that is not positive, fewer than 2 values, values that are not finite,
            no spread.
    """
    if not (math.isfinite(margin) and margin > 0):
        raise InputError(
            f"margin={margin!r} must be positive: the largest difference that counts as none"
        )
    if not 0 < alpha < 0.5:
        raise InputError(f"alpha={alpha!r} must lie strictly between 0 and .5")
    level = 1 - 2 * alpha
    if paired:
        first, second = as_paired(a, b, "a", "b", at_least=2)
        gaps = first - second
        require_spread(gaps)
        error, freedom = float(gaps.std(ddof=1)) / math.sqrt(len(gaps)), float(len(gaps) - 1)
        estimate = _pair_interval(gaps, level)
    else:
        first, second = as_sample(a, "a", at_least=2), as_sample(b, "b", at_least=2)
        require_spread(first, second)
        error, freedom = _welch_error(first, second)
        estimate = welch_interval(first, second, level)
    t = (abs(estimate.value) - margin) / error  # the harder of the two sides
    p = float(scipy_stats.t.cdf(t, freedom))
    return _result(
        t,
        p,
        estimate,
        f"TOST within ±{margin:g}, {'paired' if paired else 'Welch'}",
        (first, second),
        level,
        paired=paired,
    )
