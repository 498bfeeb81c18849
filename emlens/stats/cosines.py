"""The cosine between two mean vectors without what sampling noise takes from it, with an interval.

A mean of n rows is longer than what it estimates by its noise, so the plain cosine of two sample
means leans towards 0, and every resample of the rows leans further: a bootstrap of it,
bias-corrected or not, can miss always. Here the noise is taken out of both squared lengths, and the
interval is the delete-one jackknife's, in closed form. Cost: two passes.
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.stats.samples import require_level


def cosine_of_means(x: ArrayLike, y: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Cosine of the means of two independent samples of vectors, x̄·ȳ / √((‖x̄‖² − tr Sₓ/n)(‖ȳ‖² −
    tr S_y/m)).

    The interval lies in [-1, 1]; the value may exceed 1 by chance. Invariant to rotations, and to
    scaling either sample. Undefined where a mean is no longer than its noise. Design range: 48 rows
    or more a side, squared means of 3 times their noise or more (docs/statistics.md); below, it is
    wide and covers too often. `n` is the smaller sample.

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
    means = first.mean(axis=0), second.mean(axis=0)
    dot = float(means[0] @ means[1])
    lengths, left_out = [], []
    for rows, own, other in ((first, *means), (second, *reversed(means))):
        square, squares, dots = _left_out(rows, own, other, dot)
        lengths.append(square)
        left_out.append((squares, dots))
    method = f"cosine of means without their noise, {100 * level:g} % jackknife"
    if min(lengths) <= 0:
        return Estimate.undefined("a mean is no longer than its sampling noise", n)
    value = dot / math.sqrt(lengths[0] * lengths[1])
    variance = 0.0
    for (squares, dots), other_length in zip(left_out, reversed(lengths), strict=True):
        if (squares <= 0).any():
            return Estimate(
                value,
                -1.0,
                1.0,
                n,
                f"{method}; without some row a mean is no longer than its noise,"
                " so nothing is excluded",
            )
        cosines = dots / np.sqrt(squares * other_length)
        variance += (len(cosines) - 1) * float(cosines.var())
    half = float(scipy_stats.t.ppf((1 + level) / 2, n - 1)) * math.sqrt(variance)
    return Estimate(
        value, min(1.0, max(-1.0, value - half)), max(-1.0, min(1.0, value + half)), n, method
    )


def _left_out(
    rows: np.ndarray, own: np.ndarray, other: np.ndarray, dot: float
) -> tuple[float, np.ndarray, np.ndarray]:
    """Squared length of the mean without its noise; the same, and the dot product with the other
    mean, without each row.
    """
    n = len(rows)
    away = rows - own
    spread = np.einsum("ij,ij->i", away, away)
    total, length = float(spread.sum()), float(own @ own)
    dots = dot - away @ other / (n - 1)
    lengths = length - 2 * (away @ own) / (n - 1) + spread / (n - 1) ** 2
    totals = total - spread * n / (n - 1)
    return length - total / (n * (n - 1)), lengths - totals / ((n - 1) * (n - 2)), dots


def _rows(values: ArrayLike, name: str) -> np.ndarray:
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 2 or len(rows) < 3:
        raise InputError(f"{name} has shape {rows.shape}; pass (row, d) with at least 3 rows")
    if not np.isfinite(rows).all():
        raise InputError(
            f"{name} holds values that are NaN or infinite; drop or fix those rows first"
        )
    return rows
