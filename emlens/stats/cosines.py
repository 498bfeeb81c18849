"""The cosine between two mean vectors, corrected for sampling noise, with an interval.

A mean of n rows is longer than what it estimates by its noise, so the plain cosine of two sample
means is biased towards 0, and every resample of the rows is biased further: a bootstrap interval,
bias-corrected or not, can miss the truth every time. Here the noise is taken out of both squared
lengths, and the interval is the delete-one jackknife's, in closed form. Cost: two passes.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.stats.samples import require_level


def cosine_of_means(x: ArrayLike, y: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Cosine of the means of two independent samples of vectors, without their sampling noise.

    x̄·ȳ / √((‖x̄‖² − tr Sₓ/n)(‖ȳ‖² − tr S_y/m)), S the sample covariances (n − 1). The interval
    lies in [-1, 1]; the value may exceed 1 by chance. Invariant to rotations, and to scaling either
    sample. Undefined where a mean is no longer than its noise. Design range: 48 rows or more per
    sample, squared means of 3 times their noise or more (docs/statistics.md); below, the interval
    is wide and covers too often. `n` is the smaller sample.

    Args:
        x, y: (row, d), one width d; they need not have the same number of rows.

    Raises:
        InputError: samples that are not (row, d) with one d, fewer than 3 rows, values that are not
            finite, a bad level.
    """
    first, second = _rows(x, "x"), _rows(y, "y")
    if first.shape[1] != second.shape[1]:
        raise InputError(
            f"x has rows of width {first.shape[1]} and y of width {second.shape[1]};"
            " pass vectors of one space"
        )
    require_level(level)
    n = min(len(first), len(second))
    mean_x, mean_y = first.mean(axis=0), second.mean(axis=0)
    dot = float(mean_x @ mean_y)
    sample_x = _without_each_row(first, mean_x, mean_y, dot)
    sample_y = _without_each_row(second, mean_y, mean_x, dot)
    if min(sample_x.square, sample_y.square) <= 0:
        return Estimate.undefined("a mean is no longer than its sampling noise", n)
    value = dot / math.sqrt(sample_x.square * sample_y.square)
    method = f"cosine of means without their noise, {100 * level:g} % jackknife"
    # Two independent samples: their jackknife variances add up.
    variance = 0.0
    for sample, opposite in ((sample_x, sample_y), (sample_y, sample_x)):
        if (sample.squares <= 0).any():
            why = "without some row a mean is no longer than its noise, so nothing is excluded"
            return Estimate(value, -1.0, 1.0, n, f"{method}; {why}")
        cosines = sample.dots / np.sqrt(sample.squares * opposite.square)
        # (n − 1)/n · Σ(c₋ᵢ − mean)²; var() already divides by n
        variance += (len(cosines) - 1) * float(cosines.var())
    half = float(scipy_stats.t.ppf((1 + level) / 2, n - 1)) * math.sqrt(variance)
    low = min(1.0, max(-1.0, value - half))
    high = max(-1.0, min(1.0, value + half))
    return Estimate(value, low, high, n, method)


@dataclass(frozen=True, eq=False)
class _WithoutEachRow:
    """One sample with each row left out in turn.

    Args:
        square: squared length of the mean without its noise, all rows included.
        squares: the same without each row.
        dots: dot product of both means, without each row.
    """

    square: float
    squares: np.ndarray
    dots: np.ndarray


def _without_each_row(
    rows: np.ndarray, mean: np.ndarray, opposite_mean: np.ndarray, dot: float
) -> _WithoutEachRow:
    """In closed form: without row i the mean is m − aᵢ/(n − 1), where aᵢ = xᵢ − m.

    Hence ‖m₋ᵢ‖² = ‖m‖² − 2 aᵢ·m/(n − 1) + ‖aᵢ‖²/(n − 1)², and the sum of squared deviations drops
    by ‖aᵢ‖²·n/(n − 1). The noise in ‖m‖² is tr S/n = Σ‖aᵢ‖²/(n(n − 1)).
    """
    n = len(rows)
    away = rows - mean
    spread = np.einsum("ij,ij->i", away, away)
    total = float(spread.sum())
    length = float(mean @ mean)
    dots = dot - away @ opposite_mean / (n - 1)
    lengths = length - 2 * (away @ mean) / (n - 1) + spread / (n - 1) ** 2
    totals = total - spread * n / (n - 1)
    return _WithoutEachRow(
        square=length - total / (n * (n - 1)),
        squares=lengths - totals / ((n - 1) * (n - 2)),
        dots=dots,
    )


def _rows(values: ArrayLike, name: str) -> np.ndarray:
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 2 or len(rows) < 3:
        raise InputError(f"{name} has shape {rows.shape}; pass (row, d) with at least 3 rows")
    if not np.isfinite(rows).all():
        raise InputError(
            f"{name} holds values that are NaN or infinite; drop or fix those rows first"
        )
    return rows
