"""Tests of a difference of means between groups or pairs, and of equivalence.

Each returns a `TestResult`; scipy does the arithmetic that it has. "No significant difference" is
never evidence of no difference: for that there is `tost`. A comparison without any spread is an
error, since its p-value would be an artefact. Every difference is a − b.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.seeds import numpy_rng
from emlens.stats.effects import cohens_d_interval
from emlens.stats.nulls import NullDistribution, Side, require_side
from emlens.stats.outcomes import TestResult, require_spread
from emlens.stats.ranks import signed_rank_test
from emlens.stats.samples import as_paired, as_sample, require_count, require_level, stratum_rows


def welch_interval(
    a: np.ndarray, b: np.ndarray, level: float, what: str = "difference of means"
) -> Estimate:
    """mean(a) − mean(b) with Welch's two-sided interval; samples as they are, not checked."""
    error, freedom = _welch_error(a, b)
    half = float(scipy_stats.t.ppf((1 + level) / 2, freedom)) * error
    gap = _mean_gap(a, b)
    method = f"{what}, {100 * level:g} % Welch interval"
    return Estimate(gap, gap - half, gap + half, len(a) + len(b), method)


def _welch_error(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Standard error of the difference of means, and Welch–Satterthwaite degrees of freedom."""
    var_a = a.var(ddof=1) / len(a)
    var_b = b.var(ddof=1) / len(b)
    # (v_a + v_b)² / (v_a²/(n_a − 1) + v_b²/(n_b − 1)), v = squared standard error of each mean
    total = var_a + var_b
    freedom = total**2 / (var_a**2 / (len(a) - 1) + var_b**2 / (len(b) - 1))
    return math.sqrt(total), float(freedom)


def welch_test(
    a: ArrayLike, b: ArrayLike, *, side: Side = "two-sided", level: float = 0.95
) -> TestResult:
    """Welch's t-test that two independent groups have one mean; variances may differ.

    `effect` is Cohen's d.

    Raises:
        InputError: fewer than 2 values in a group, values that are not finite, no spread, an
            unknown side.
    """
    first, second = as_sample(a, "a", at_least=2), as_sample(b, "b", at_least=2)
    require_side(side)
    require_spread(first, second)
    estimate = welch_interval(first, second, require_level(level))
    t = scipy_stats.ttest_ind(first, second, equal_var=False, alternative=side)
    outcome = _Outcome(float(t.statistic), float(t.pvalue), estimate, f"Welch t-test, {side}")
    return _with_effect_of_groups(outcome, first, second, level)


def paired_test(
    a: ArrayLike,
    b: ArrayLike,
    *,
    kind: Literal["t", "wilcoxon"] = "t",
    side: Side = "two-sided",
    level: float = 0.95,
) -> TestResult:
    """Test that a − b is centred on 0 over pairs, by Student's t or Wilcoxon's signed ranks.

    `effect` is Cohen's d_z for `kind="t"`; `"wilcoxon"` is `signed_rank_test`.

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
        raise InputError(
            f"kind={kind!r} is unknown; pass 't' or 'wilcoxon'", name=kind, known=("t", "wilcoxon")
        )
    t = scipy_stats.ttest_1samp(gaps, 0.0, alternative=side)
    estimate = _pair_interval(gaps, require_level(level))
    outcome = _Outcome(float(t.statistic), float(t.pvalue), estimate, f"paired t-test, {side}")
    return _with_effect_of_pairs(outcome, first, second, level)


def _pair_interval(gaps: np.ndarray, level: float) -> Estimate:
    """Mean difference with Student's t interval."""
    n = len(gaps)
    mean = float(gaps.mean())
    half = float(scipy_stats.t.ppf((1 + level) / 2, n - 1) * gaps.std(ddof=1)) / math.sqrt(n)
    method = f"mean difference over pairs, {100 * level:g} % t interval"
    return Estimate(mean, mean - half, mean + half, n, method)


@dataclass(frozen=True)
class _Outcome:
    """A test without its effect size."""

    statistic: float
    p: float
    estimate: Estimate
    method: str


def _with_effect_of_groups(
    outcome: _Outcome, a: np.ndarray, b: np.ndarray, level: float
) -> TestResult:
    """With Cohen's d of two groups; NaN where neither has spread to divide by."""
    sizes = (len(a), len(b))
    if np.ptp(a) == 0 and np.ptp(b) == 0:
        d = Estimate(math.nan, math.nan, math.nan, sum(sizes), "")
    else:
        d = cohens_d_interval(a, b, level=level)
    return _test_result(outcome, d, "Cohen's d", sizes)


def _with_effect_of_pairs(
    outcome: _Outcome, a: np.ndarray, b: np.ndarray, level: float
) -> TestResult:
    """With Cohen's d_z of the differences a − b."""
    d = cohens_d_interval(a, b, paired=True, level=level)
    return _test_result(outcome, d, "Cohen's d_z", (len(a),))


def _test_result(
    outcome: _Outcome, d: Estimate, effect_name: str, sizes: tuple[int, ...]
) -> TestResult:
    return TestResult(
        statistic=outcome.statistic,
        p=outcome.p,
        effect=d.value,
        estimate=outcome.estimate,
        n=sum(sizes),
        method=outcome.method,
        effect_low=d.low,
        effect_high=d.high,
        effect_name=effect_name,
        sizes=sizes,
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
    """Test that a and b come from one distribution, by shuffling the group labels.

    `p` has the +1 rule; two-sided doubles the smaller tail. `effect` is Cohen's d. `estimate` is
    the difference of means with its Welch interval, or the observed value of your statistic,
    without one.

    Args:
        statistic: (a, b) -> number; the difference of means where it is None.
        strata: one label per value, those of a first; labels then swap only within a stratum.

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
    p = NullDistribution(values, "group labels permuted", seed).p_value(observed, side)
    method = f"permutation test, {side}, {draws} draws"
    if strata is not None:
        method += " within strata"
    if statistic is None and (np.ptp(first) > 0 or np.ptp(second) > 0):
        estimate = welch_interval(first, second, 0.95)
    else:
        why = "observed statistic, no interval"
        estimate = Estimate(observed, math.nan, math.nan, len(pooled), why)
    outcome = _Outcome(observed, p, estimate, method)
    return _with_effect_of_groups(outcome, first, second, 0.95)


def tost(
    a: ArrayLike, b: ArrayLike, margin: float, *, paired: bool = False, alpha: float = 0.05
) -> TestResult:
    """Equivalence of means within ±margin, by two one-sided t-tests (Schuirmann 1987).

    A small p says that the difference lies inside the margin. `p` is the larger of the two;
    `estimate` carries the 1 − 2·alpha interval, inside ±margin exactly where p < alpha. Welch's
    t of two groups, or Student's over pairs. Choose the margin before seeing the data.

    Args:
        paired: whether a and b are pairs, value by value.

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
        error = float(gaps.std(ddof=1)) / math.sqrt(len(gaps))
        freedom = float(len(gaps) - 1)
        estimate = _pair_interval(gaps, level)
        kind, with_effect = "paired", _with_effect_of_pairs
    else:
        first, second = as_sample(a, "a", at_least=2), as_sample(b, "b", at_least=2)
        require_spread(first, second)
        error, freedom = _welch_error(first, second)
        estimate = welch_interval(first, second, level)
        kind, with_effect = "Welch", _with_effect_of_groups
    # Of the two one-sided tests, the one at the nearer end of the margin has the larger p.
    t = (abs(estimate.value) - margin) / error
    p = float(scipy_stats.t.cdf(t, freedom))
    outcome = _Outcome(t, p, estimate, f"TOST within ±{margin:g}, {kind}")
    return with_effect(outcome, first, second, level)
