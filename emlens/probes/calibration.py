"""Calibration of a forecast: the line of measured on predicted scores.

Slope 1 and intercept 0 are calibrated. A slope below 1 says that differences are forecast too
large, which R² punishes and a rank correlation does not see.
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
    """Least-squares line of measured on predicted, with 95 % jackknife intervals over units.

    The jackknife leaves out one unit at a time; t has units − 1 degrees of freedom. Undefined where
    the predictions do not vary, or would not without one unit.

    Raises:
        InputError: unequal lengths, fewer than 4 rows, values that are not finite, one unit only.
    """
    x, y = as_paired(predicted, measured, "predicted", "measured", at_least=4)
    members = rows_by_label(units, len(x), "units", "a jackknife over units")
    centre_x, centre_y = x.mean(), y.mean()
    # sums of products add up over units, so leaving a unit out is one subtraction; centred first,
    # so that the subtraction cancels no digits
    columns = np.c_[np.ones(len(x)), x - centre_x, y - centre_y]
    unit_sums = np.stack([columns[rows].T @ columns[rows] for rows in members])
    total = unit_sums.sum(0)
    without = total - unit_sums
    floor = FLAT * max(float(np.abs(x).max()), 1.0) ** 2
    if len(members) < 3 or not _varies(total, without, floor, len(x)):
        undefined = Estimate.undefined(
            "the predictions do not vary, so no line of measured on predicted exists", len(members)
        )
        return Calibration(undefined, undefined)
    slope, offset = _line(total)
    lines = np.array([_line(sums) for sums in without])
    # in the predictions' own units: y = (offset + centre_y − slope · centre_x) + slope · x
    intercept = offset + centre_y - slope * centre_x
    intercepts = lines[:, 1] + centre_y - lines[:, 0] * centre_x
    slopes_var, intercepts_var = lines.var(0)[0], intercepts.var()
    return Calibration(
        _estimate("slope", slope, slopes_var, len(members)),
        _estimate("intercept", intercept, intercepts_var, len(members)),
    )


def _varies(total: Array, without: Array, floor: float, n: int) -> bool:
    """Whether x varies over all rows, and without any one unit."""
    if total[1, 1] <= floor * n:
        return False
    spread = without[:, 1, 1] - without[:, 0, 1] ** 2 / np.maximum(without[:, 0, 0], 1)
    return not (spread <= floor).any()


def _line(sums: Array) -> tuple[float, float]:
    """(slope, intercept) from sums of products of (1, x, y)."""
    n, sx, sy, sxx, sxy = sums[0, 0], sums[0, 1], sums[0, 2], sums[1, 1], sums[1, 2]
    slope = float((sxy - sx * sy / n) / (sxx - sx * sx / n))
    return slope, float((sy - slope * sx) / n)


def _estimate(what: str, value: float, variance: float, units: int) -> Estimate:
    """Jackknife interval: the variance over units left out is (units − 1) times too small."""
    freedom = units - 1
    reach = float(scipy_stats.t.ppf(0.975, freedom)) * float(np.sqrt(freedom * variance))
    method = f"{what} of measured on predicted, 95 % jackknife over {units} units"
    return Estimate(value, value - reach, value + reach, units, method)
