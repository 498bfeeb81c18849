"""Prediction intervals without a distribution: residuals of folds that held whole groups out, each
group weighing the same.

A new row comes from a *new* group, so groups are exchangeable, not rows: the residuals of a group
share a weight of 1/(groups + 1), and the same weight lies at infinity for the group not yet seen.
With G groups no finite quantile above G/(G + 1) exists; the interval is then the whole scale, and
says so. Costs a sort of the residuals for every row.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from emlens.foundation.errors import InputError
from emlens.probes.ridge import Array

_ROUNDING = 1e-12  # summed weights that miss the level by less than this reach it
_CELLS = 4_000_000  # (row, residual) pairs in memory at once


def group_weights(labels: Sequence[object]) -> Array:
    """Weight of each row, 1 / ((groups + 1) · rows of its group); they sum to G / (G + 1)."""
    names = np.array([str(label) for label in labels])
    _, group, counts = np.unique(names, return_inverse=True, return_counts=True)
    return np.asarray(1.0 / ((len(counts) + 1) * counts[group]))


def conformal_quantile(values: Array, weights: Array, level: float) -> float:
    """The smallest value at or below which lies a weight of `level`.

    Infinite where the values do not weigh as much: the rest of the weight lies at infinity. For
    exchangeable groups, a row of a new group exceeds it with a probability of at most 1 − level
    (Dunn, Wasserman & Ramdas 2023).

    Raises:
        InputError: a level outside (0, 1), or not one weight per value.
    """
    if not 0 < level < 1:
        raise InputError(f"level={level!r} must lie in (0, 1)")
    if len(values) != len(weights):
        raise InputError(
            f"weights has {len(weights)} entries for {len(values)} values; pass one each"
        )
    order = np.argsort(values, kind="stable")
    reached = np.flatnonzero(np.cumsum(weights[order]) >= level - _ROUNDING)
    return float(values[order][reached[0]]) if len(reached) else float("inf")


def jackknife_plus(
    centres: Array,
    spreads: Array,
    residuals: Array,
    fold: NDArray[np.int64],
    weights: Array,
    level: float,
) -> tuple[Array, Array]:
    """Both ends of the hierarchical jackknife+ interval of each new row.

    Ends are weighted quantiles of (prediction of the fold that left a residual's group out) ∓
    |residual|, the residual in units of the spread that fold expects. Coverage of a new group's row
    is at least 1 − 2(1 − level) whatever the distribution, and about `level` unless the fits are
    unstable (Barber, Candès, Ramdas & Tibshirani 2021; Lee, Barber & Willett 2023 for groups).

    Args:
        centres: (new row, fold) predictions of each fold's fit.
        spreads: (fold,) the size of residuals that each fold expects of the new rows.
        residuals: absolute out-of-fold residuals over the spread expected of them.
        fold: which fold each residual is of.
        weights: of `group_weights`.
        level: nominal coverage, such as .9.

    Raises:
        InputError: as `conformal_quantile`.
    """
    low, high = np.empty(len(centres)), np.empty(len(centres))
    step = max(1, _CELLS // max(1, len(residuals)))
    reach = residuals * spreads[fold]
    for start in range(0, len(centres), step):
        fold_centres = centres[start : start + step][:, fold]
        for i, row in enumerate(fold_centres, start=start):
            # a lower quantile is minus the upper quantile of the negated values
            low[i] = -conformal_quantile(reach - row, weights, level)
            high[i] = conformal_quantile(reach + row, weights, level)
    return low, high
