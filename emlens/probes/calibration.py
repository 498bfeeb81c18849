"""Calibration of a forecast: the line of measured on predicted scores. Slope 1 and intercept 0 are
calibrated; a slope below 1 says that differences are forecast too large, which R² punishes and a
rank correlation does not see.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats as scipy_stats

from emlens.foundation.estimate import Estimate
from emlens.probes.ridge import Array
from emlens.stats.samples import as_paired, rows_by_label

FLAT = 1e-12
"""Spread of predictions over their size below which they are one constant, and no line exists."""


@dataclass(frozen=True)
class Calibration:
    """measured = intercept + slope · predicted, each with its interval over units."""

    slope: Estimate
    intercept: Estimate


def calibration_line(predicted: Array, measured: Array, units: Sequence[str]) -> Calibration:
    """Least-squares line of measured on predicted, with 95 % jackknife intervals over units (delete
    one, t of units − 1).

    Undefined where the predictions do not vary, or would not without one unit.

    Raises:
        InputError: unequal lengths, fewer than 4 rows, values that are not finite, one unit only.
    """
    x, y = as_paired(predicted, measured, "predicted", "measured", at_least=4)
    members = rows_by_label(units, len(x), "units", "a jackknife over units")
    centre = x.mean(), y.mean()
    columns = np.c_[np.ones(len(x)), x - centre[0], y - centre[1]]
    moments = np.stack([columns[rows].T @ columns[rows] for rows in members])
    whole = moments.sum(0)
    left = whole - moments
    freedom = len(members) - 1
    floor = FLAT * max(float(np.abs(x).max()), 1.0) ** 2
    if (
        len(members) < 3
        or whole[1, 1] <= floor * len(x)
        or (left[:, 1, 1] - left[:, 0, 1] ** 2 / np.maximum(left[:, 0, 0], 1) <= floor).any()
    ):
        nothing = Estimate.undefined(
            "the predictions do not vary, so no line of measured on predicted exists", len(members)
        )
        return Calibration(nothing, nothing)
    (slope, start), lines = _line(whole), np.array([_line(one) for one in left])
    width = float(scipy_stats.t.ppf(0.975, freedom)) * np.sqrt(freedom * lines.var(0))
    # in the predictions' own units: y = (start + centre_y − slope · centre_x) + slope · x
    intercepts = lines[:, 1] + centre[1] - lines[:, 0] * centre[0]
    intercept = start + centre[1] - slope * centre[0]
    wide = float(scipy_stats.t.ppf(0.975, freedom)) * float(np.sqrt(freedom * intercepts.var()))
    how = f"95 % jackknife over {len(members)} units"
    return Calibration(
        Estimate(
            slope,
            slope - float(width[0]),
            slope + float(width[0]),
            len(members),
            f"slope of measured on predicted, {how}",
        ),
        Estimate(
            intercept,
            intercept - wide,
            intercept + wide,
            len(members),
            f"intercept of measured on predicted, {how}",
        ),
    )


def _line(moments: Array) -> tuple[float, float]:
    """(slope, intercept) from sums of products of (1, x, y)."""
    n, sx, sy, sxx, sxy = moments[0, 0], moments[0, 1], moments[0, 2], moments[1, 1], moments[1, 2]
    slope = float((sxy - sx * sy / n) / (sxx - sx * sx / n))
    return slope, float((sy - slope * sx) / n)
