"""Resamples of a statistic, and the three kinds of interval that are read from them.

`bootstrap` chooses what is resampled and words the result; the arithmetic is here. Three ways to
resample: a ratio of sums over rows (`resample_ratio`, vectorised; a mean is the case of a
denominator of 1), any statistic over whole clusters (`resample_clusters`, one call per resample),
and means within fixed groups (`resample_within_groups`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats as scipy_stats

from emlens.foundation.errors import InputError
from emlens.foundation.notebooks import Brief

BootstrapMethod = Literal["t", "bca", "percentile"]

_CHUNK = 2**16  # index entries held at once while resampling: they stay in cache
_NONE = np.empty(0)
_ROUNDING = 1e-12  # relative: spread below it is that of float64 sums
# Relative to the sample's error. Sums of squares leave about the root of machine epsilon
# of a resample whose spread is exactly 0.
_FLAT = 1e-6


@dataclass(frozen=True, repr=False)
class Resamples(Brief):
    """A statistic with its standard error, in the sample and in each resample.

    Args:
        value, error: of the sample.
        values, errors: of each resample; `errors` counts only for bootstrap-t.
        jackknife: the statistic without each unit; empty where it was not computed.
        freedom: degrees of freedom of Student's t, the interval of last resort.
    """

    value: float
    error: float
    values: np.ndarray
    errors: np.ndarray
    jackknife: np.ndarray
    freedom: int

    def interval(self, level: float, method: BootstrapMethod) -> tuple[float, float, str]:
        """Both ends, and a note for `Estimate.method` ("" where there is nothing to note)."""
        if self.error == 0:
            return self.value, self.value, "; no spread, so the interval says nothing"
        tails = np.array([(1 - level) / 2, (1 + level) / 2])
        if method == "percentile":
            low, high = np.quantile(self.values, tails)
        elif method == "bca":
            low, high = self._bca(tails)
        else:
            low, high = self._studentised(tails)
            if not (math.isfinite(low) and math.isfinite(high)):
                return self._outer_ends(tails)
        return float(low), float(high), ""

    def _outer_ends(self, tails: np.ndarray) -> tuple[float, float, str]:
        """The wider of BCa and Student's t at each end, where bootstrap-t has no finite end."""
        student = self.value + self.error * scipy_stats.t.ppf(tails, self.freedom)
        bca = self._bca(tails)
        note = "; too few distinct values for bootstrap-t: the outer ends of BCa and Student's t"
        return float(min(student[0], bca[0])), float(max(student[1], bca[1])), note

    def _bca(self, tails: np.ndarray) -> np.ndarray:
        """Efron's bias-corrected and accelerated percentiles (1987)."""
        # Bias: the normal quantile of the share of resamples below the value. Ties count half,
        # and the share stays off 0 and 1, where the quantile is infinite.
        n = len(self.values)
        is_tie = np.abs(self.values - self.value) <= _ROUNDING * self.error
        below = np.mean((self.values < self.value) & ~is_tie) + np.mean(is_tie) / 2
        bias = scipy_stats.norm.ppf(np.clip(below, 1 / (2 * n), 1 - 1 / (2 * n)))
        acceleration = self._acceleration()
        shifted = bias + scipy_stats.norm.ppf(tails)
        corrected = scipy_stats.norm.cdf(bias + shifted / (1 - acceleration * shifted))
        return np.asarray(np.quantile(self.values, corrected))

    def _acceleration(self) -> float:
        """A sixth of the skewness of the influence values, from the delete-one jackknife."""
        if not len(self.jackknife):
            return 0.0
        # mean − value, not value − mean: a large unit lowers the statistic when it is left out
        spread = self.jackknife.mean() - self.jackknife
        scale = float((spread**2).sum()) ** 1.5
        if scale <= 0:
            return 0.0
        return float((spread**3).sum()) / (6 * scale)

    def _studentised(self, tails: np.ndarray) -> np.ndarray:
        """Bootstrap-t (Hall 1988). The upper quantile of t gives the lower end, so sides swap."""
        gaps = self.values - self.value
        # A resample without spread has t = ±∞ (0 where it does not move either). If such
        # resamples decide an end, the end is infinite and the caller takes another interval.
        is_flat = self.errors <= _FLAT * self.error
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(is_flat, np.sign(gaps) * np.inf, gaps / self.errors)
        t = np.where(is_flat & (np.abs(gaps) <= _FLAT * self.error), 0.0, t)
        # "inverted_cdf" takes an order statistic; interpolation next to ±∞ would give NaN
        upper, lower = np.quantile(t, tails, method="inverted_cdf")[::-1]
        return np.array([self.value - upper * self.error, self.value - lower * self.error])


def resample_ratio(
    top: np.ndarray, bottom: np.ndarray, resamples: int, rng: np.random.Generator
) -> Resamples:
    """Σtop / Σbottom with rows resampled together; the mean of `top` where `bottom` is 1.

    Standard errors are linearised (delta method): for R = Σtop/Σbottom they are those of the sum of
    the residuals top − R·bottom, divided by |Σbottom|.
    """
    n = len(top)
    total = bottom.sum()
    value = float(top.sum() / total)
    residual = top - value * bottom
    scale = np.abs(top).max() + abs(value) * np.abs(bottom).max()
    if np.abs(residual).max() <= _ROUNDING * scale:
        return Resamples(value, 0.0, _NONE, _NONE, _NONE, n - 1)
    values = np.empty(resamples)
    errors = np.empty(resamples)
    step = max(1, _CHUNK // n)
    for start in range(0, resamples, step):
        rows = rng.integers(n, size=(min(step, resamples - start), n))
        gaps, spread = _ratio_gaps(residual, bottom, rows)
        values[start : start + len(rows)] = value + gaps
        errors[start : start + len(rows)] = spread
    # a resample whose denominator sums to 0 has no ratio
    usable = np.isfinite(values) & np.isfinite(errors)
    error = math.sqrt(float(residual @ residual) * n / (n - 1)) / abs(total)
    with np.errstate(divide="ignore", invalid="ignore"):
        jackknife = (top.sum() - top) / (total - bottom)
    if not np.isfinite(jackknife).all():
        jackknife = _NONE
    return Resamples(value, error, values[usable], errors[usable], jackknife, n - 1)


def _ratio_gaps(
    residual: np.ndarray, bottom: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How far the ratio of each resample (resample, n) lies from the sample's, and its error.

    With e = top − R·bottom, the resampled ratio is R + g with g = Σe/Σbottom, since
    Σtop = R·Σbottom + Σe. Its own residuals are e − g·bottom, and
    Σ(e − g·bottom)² = Σe² − 2g·Σe·bottom + g²·Σbottom²: three sums per resample, no second pass.
    """
    n = len(residual)
    resampled = residual[rows]
    sums = resampled.sum(axis=1)
    squares = np.einsum("ij,ij->i", resampled, resampled)
    if bool(np.ptp(bottom) == 0):
        # a constant denominator is the same in every resample: no gather needed
        bottom_sums = bottom.sum()
        cross = bottom[0] * sums
        bottom_squares = bottom[0] * bottom_sums
    else:
        below = bottom[rows]
        bottom_sums = below.sum(axis=1)
        cross = np.einsum("ij,ij->i", resampled, below)
        bottom_squares = np.einsum("ij,ij->i", below, below)
    with np.errstate(divide="ignore", invalid="ignore"):
        gaps = sums / bottom_sums
        # rounding can leave the sum of squares just below 0
        squared = np.maximum(squares - 2 * gaps * cross + gaps**2 * bottom_squares, 0)
        spread = np.sqrt(squared * n / (n - 1)) / np.abs(bottom_sums)
    return gaps, spread


def resample_clusters(
    rows: np.ndarray,
    members: Sequence[np.ndarray],
    statistic: Callable[[np.ndarray], float],
    method: BootstrapMethod,
    resamples: int,
    rng: np.random.Generator,
) -> Resamples:
    """Any statistic with whole clusters resampled; errors by the delete-one-cluster jackknife.

    `members` holds the row numbers of each cluster.

    Raises:
        InputError: the statistic is not finite on some resample.
    """
    n = len(members)
    values = np.empty(resamples)
    errors = np.zeros(resamples)
    for i in range(resamples):
        clusters = [members[c] for c in rng.integers(n, size=n)]
        values[i] = statistic(rows[np.concatenate(clusters)])
        if method == "t":
            errors[i] = _jackknife_error(_without_each(rows, clusters, statistic))
    value = float(statistic(rows))
    jackknife = _NONE
    if method != "percentile":
        jackknife = _without_each(rows, members, statistic)
    if not all(np.isfinite(numbers).all() for numbers in (value, values, errors, jackknife)):
        raise InputError(
            "statistic is not finite on some resample of clusters;"
            " pass one that is defined on every resample"
        )
    error = _jackknife_error(jackknife) if len(jackknife) else float(values.std())
    if error <= _ROUNDING * max(abs(value), float(np.abs(values).max())):
        error = 0.0
    return Resamples(value, error, values, errors, jackknife, n - 1)


def _without_each(
    rows: np.ndarray, clusters: Sequence[np.ndarray], statistic: Callable[[np.ndarray], float]
) -> np.ndarray:
    """The statistic of the rows without each cluster in turn."""
    deleted = np.empty(len(clusters))
    for c in range(len(clusters)):
        remaining = np.concatenate([*clusters[:c], *clusters[c + 1 :]])
        deleted[c] = statistic(rows[remaining])
    return deleted


def _jackknife_error(deleted: np.ndarray) -> float:
    """√((n − 1)/n · Σ(θ₋ᵢ − mean)²): `var()` divides by n, so n − 1 remains as the factor."""
    return math.sqrt((len(deleted) - 1) * float(deleted.var()))


def resample_within_groups(
    groups: Sequence[np.ndarray], weights: np.ndarray, resamples: int, rng: np.random.Generator
) -> Resamples:
    """Σ weight · mean of each group, with rows resampled within groups only.

    The groups stay: only the noise within them enters, and their variances add up.

    Raises:
        InputError: a group of one row, which has no spread to resample.
    """
    smallest = min(len(group) for group in groups)
    if smallest < 2:
        raise InputError(
            "a question has 1 answer, which shows no spread within it;"
            " pass at least 2 each, or estimand='questions like these'"
        )
    values = np.zeros(resamples)
    variances = np.zeros(resamples)
    value = variance = 0.0
    for group, weight in zip(groups, weights, strict=True):
        n = len(group)
        mean = group.mean()
        residual = group - mean
        resampled = residual[rng.integers(n, size=(resamples, n))]
        values += weight * resampled.mean(axis=1)
        variances += weight**2 * resampled.var(axis=1, ddof=1) / n
        value += weight * mean
        variance += weight**2 * float(residual @ residual) / (n - 1) / n
    freedom = sum(len(group) - 1 for group in groups)
    return Resamples(
        float(value), math.sqrt(variance), value + values, np.sqrt(variances), _NONE, freedom
    )
