"""Tests of a difference between groups or pairs, of equivalence, and effect sizes; scipy does the arithmetic it has.

Each returns a `TestResult`. "No significant difference" is never evidence of no difference: for that there is `tost`. A
comparison that has no spread at all is an error, since its p-value would be an artefact.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.seeds import numpy_rng
from emlens.stats.correlation import stratum_rows
from emlens.stats.nulls import NullDistribution, Side
from emlens.stats.samples import as_paired, as_sample, require_count, require_level


@dataclass(frozen=True)
class TestResult:
    """One test.

    Args:
        statistic: t, W or whatever `method` names; of `permutation_test` the observed statistic.
        p: p-value.
        effect: standardised effect size (Cohen's d, of pairs d_z); `nan` where none fits.
        estimate: the difference itself with its interval.
        n: units that entered, both groups together, or pairs.
        method: test, side and interval in words.
    """

    __test__ = False  # not a test case, whatever its name suggests to pytest

    statistic: float
    p: float
    effect: float
    estimate: Estimate
    n: int
    method: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _require_side(side: str) -> None:
    if side not in ("greater", "less", "two-sided"):
        raise InputError(f"side={side!r} is unknown; pass 'greater', 'less' or 'two-sided'")


def _require_spread(*samples: np.ndarray) -> None:
    if all(np.ptp(sample) == 0 for sample in samples):
        raise InputError("all values are equal within each sample, so there is no spread to test against")


def cohens_d(a: ArrayLike, b: ArrayLike) -> float:
    """Difference of means over the pooled standard deviation; positive where a is larger. Sign flips with the order.

    Raises:
        InputError: fewer than 2 values in a group, values that are not finite, no spread.
    """
    first, second = as_sample(a, "a", at_least=2), as_sample(b, "b", at_least=2)
    _require_spread(first, second)
    freedom = len(first) + len(second) - 2
    pooled = ((len(first) - 1) * first.var(ddof=1) + (len(second) - 1) * second.var(ddof=1)) / freedom
    return float((first.mean() - second.mean()) / math.sqrt(pooled))


def _welch(a: np.ndarray, b: np.ndarray, level: float) -> tuple[float, float, Estimate]:
    """Standard error, degrees of freedom and two-sided interval of mean(a) − mean(b)."""
    parts = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    error = math.sqrt(sum(parts))
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1))
    half = float(scipy_stats.t.ppf((1 + level) / 2, freedom)) * error
    gap = float(a.mean() - b.mean())
    method = f"difference of means, {100 * level:g} % Welch interval"
    return error, freedom, Estimate(gap, gap - half, gap + half, len(a) + len(b), method)


def welch_test(a: ArrayLike, b: ArrayLike, *, side: Side = "two-sided", level: float = 0.95) -> TestResult:
    """Welch's t-test that two independent groups have one mean; variances may differ. `effect` is Cohen's d.

    Raises:
        InputError: fewer than 2 values in a group, values that are not finite, no spread, an unknown side.
    """
    first, second = as_sample(a, "a", at_least=2), as_sample(b, "b", at_least=2)
    _require_side(side)
    _require_spread(first, second)
    _, _, estimate = _welch(first, second, require_level(level))
    result = scipy_stats.ttest_ind(first, second, equal_var=False, alternative=side)
    method = f"Welch t-test, {side}"
    return TestResult(
        float(result.statistic), float(result.pvalue), cohens_d(first, second), estimate, estimate.n, method
    )


def paired_test(
    a: ArrayLike,
    b: ArrayLike,
    *,
    kind: Literal["t", "wilcoxon"] = "t",
    side: Side = "two-sided",
    level: float = 0.95,
) -> TestResult:
    """Test that a − b is centred on 0 over pairs: Student's t or Wilcoxon's signed ranks. `effect` is d_z.

    The interval is that of the mean difference (t) whichever the test.

    Raises:
        InputError: unequal lengths, fewer than 2 pairs, values that are not finite, differences that are all equal.
    """
    first, second = as_paired(a, b, "a", "b", at_least=2)
    _require_side(side)
    gaps = first - second
    _require_spread(gaps)
    n, mean, sd = len(gaps), float(gaps.mean()), float(gaps.std(ddof=1))
    half = float(scipy_stats.t.ppf((1 + require_level(level)) / 2, n - 1)) * sd / math.sqrt(n)
    if kind == "t":
        result = scipy_stats.ttest_1samp(gaps, 0.0, alternative=side)
    elif kind == "wilcoxon":
        result = scipy_stats.wilcoxon(gaps, alternative=side)
    else:
        raise InputError(f"kind={kind!r} is unknown; pass 't' or 'wilcoxon'")
    estimate = Estimate(mean, mean - half, mean + half, n, f"mean difference over pairs, {100 * level:g} % t interval")
    name = "paired t-test" if kind == "t" else "Wilcoxon signed-rank test"
    return TestResult(float(result.statistic), float(result.pvalue), mean / sd, estimate, n, f"{name}, {side}")


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
    """Shuffle group labels: a and b are one distribution (within each stratum, where strata are given).

    Args:
        statistic: (a, b) -> number; the difference of means where it is None. Two-sided doubles the smaller tail.
        strata: one label a value, those of a first; labels then swap only within a stratum.

    `p` has the +1 rule; `estimate` holds the observed statistic without an interval, `effect` Cohen's d.

    Raises:
        InputError: fewer than 2 values in a group, values that are not finite, strata that do not fit, no spread.
    """
    first, second = as_sample(a, "a", at_least=2), as_sample(b, "b", at_least=2)
    _require_side(side)
    pooled = np.concatenate([first, second])
    _require_spread(pooled)
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
    rounding = 1e-12 * max(float(np.abs(values).max()), abs(observed))  # ties that summation order broke count as ties
    values = np.where(np.abs(values - observed) <= rounding, observed, values)
    p = NullDistribution(values, "group labels permuted", seed).p_value(observed, side)
    method = f"permutation test, {side}, {draws} draws" + (" within strata" if strata is not None else "")
    spread = np.ptp(first) > 0 or np.ptp(second) > 0
    estimate = Estimate(observed, math.nan, math.nan, len(pooled), "observed statistic, no interval")
    return TestResult(observed, p, cohens_d(first, second) if spread else math.nan, estimate, len(pooled), method)


def tost(a: ArrayLike, b: ArrayLike, margin: float, *, paired: bool = False, alpha: float = 0.05) -> TestResult:
    """Equivalence of means within ±margin, by two one-sided t-tests (Schuirmann 1987); Welch's, or over pairs.

    A small p says that the difference lies inside the margin. `p` is the larger of the two; `estimate` carries the
    1 − 2·alpha interval, inside ±margin exactly where p < alpha. Choose the margin before seeing the data.

    Raises:
        InputError: a margin that is not positive, fewer than 2 values, values that are not finite, no spread.
    """
    if not (math.isfinite(margin) and margin > 0):
        raise InputError(f"margin={margin!r} must be positive: the largest difference that counts as none")
    if not 0 < alpha < 0.5:
        raise InputError(f"alpha={alpha!r} must lie strictly between 0 and .5")
    level = 1 - 2 * alpha
    if paired:
        first, second = as_paired(a, b, "a", "b", at_least=2)
        gaps = first - second
        _require_spread(gaps)
        n, error, freedom = len(gaps), float(gaps.std(ddof=1)) / math.sqrt(len(gaps)), float(len(gaps) - 1)
        gap, effect = float(gaps.mean()), float(gaps.mean() / gaps.std(ddof=1))
        half = float(scipy_stats.t.ppf((1 + level) / 2, freedom)) * error
        estimate = Estimate(gap, gap - half, gap + half, n, f"mean difference over pairs, {100 * level:g} % t interval")
    else:
        first, second = as_sample(a, "a", at_least=2), as_sample(b, "b", at_least=2)
        _require_spread(first, second)
        error, freedom, estimate = _welch(first, second, level)
        gap, effect, n = estimate.value, cohens_d(first, second), estimate.n
    t = (abs(gap) - margin) / error  # the harder of the two sides
    p = float(scipy_stats.t.cdf(t, freedom))
    return TestResult(t, p, effect, estimate, n, f"TOST within ±{margin:g}, {'paired' if paired else 'Welch'}")
