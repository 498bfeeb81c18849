"""Corrections for having looked in many places.

statsmodels has these too, but each call there collects garbage over the whole process (.1 to .3 s
measured), so the two one-line definitions are here and Benjamini–Hochberg is scipy's; the tests
compare all three with statsmodels. Where all statistics were drawn under one null together,
`max_statistic_p` uses their dependence, which the others must assume away.
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from emlens.foundation.errors import InputError
from emlens.stats.nulls import TIE, Side, require_side

Correction = Literal["bonferroni", "holm", "bh"]


def adjust_p_values(p: ArrayLike, method: Correction = "holm") -> np.ndarray:
    """p-values corrected for their number, in their order and shape.

    Never smaller than the raw ones, at most 1.

    `bonferroni` and `holm` bound the chance of any false positive (holm is never worse); `bh`
    bounds the expected share of false ones among those called, for independent or positively
    dependent tests (Benjamini & Hochberg 1995).

    Raises:
        InputError: no p-value, a value outside [0, 1] or NaN, or an unknown method.
    """
    raw = np.asarray(p, dtype=np.float64)
    if method not in get_args(Correction):
        raise InputError(
            f"method={method!r} is unknown; pass one of {', '.join(get_args(Correction))}",
            name=method,
            known=get_args(Correction),
        )
    if raw.size == 0:
        raise InputError("p is empty; pass at least one p-value")
    bad = ~((raw >= 0) & (raw <= 1))
    if bad.any():
        raise InputError(
            f"p holds {float(raw[bad].flat[0])}, which is not a p-value;"
            " pass numbers in [0, 1] without NaN"
        )
    flat = raw.ravel()
    if method == "bonferroni":
        adjusted = flat * flat.size
    elif method == "holm":
        # step down: the i-th smallest of m is multiplied by m − i,
        # and never falls below the one before
        order = np.argsort(flat, kind="stable")
        adjusted = np.empty_like(flat)
        adjusted[order] = np.maximum.accumulate(flat[order] * np.arange(flat.size, 0, -1))
    else:
        adjusted = scipy_stats.false_discovery_control(flat, method="bh")
    return np.minimum(adjusted, 1.0).reshape(raw.shape)


def max_statistic_p(
    observed: ArrayLike, draws: ArrayLike, *, side: Side = "greater", step_down: bool = True
) -> np.ndarray:
    """p-values of many statistics, corrected by the distribution of their maximum.

    Westfall & Young (1993), with the +1 rule.

    These p-values bound the chance of any false positive whatever the dependence, and lose little
    power where statistics move together (neighbouring layers). The statistics must share a scale,
    such as correlations or t; otherwise the widest decides.

    Args:
        observed: one value per hypothesis, any shape.
        draws: the same statistics, all of them in each draw from one joint null (one permutation
            for all), (draw, *shape).
        side: `"two-sided"` takes absolute values.
        step_down: compare each statistic only with those not larger than it, which is never worse;
            it requires that draws for a subset do not depend on what is true elsewhere.

    Raises:
        InputError: shapes that do not fit, nothing to correct, values that are not finite, an
            unknown side.
    """
    require_side(side)
    statistics = np.asarray(observed, dtype=np.float64)
    null = np.asarray(draws, dtype=np.float64)
    if null.shape[1:] != statistics.shape or null.size == 0:
        raise InputError(
            f"draws has shape {null.shape} for observed of shape {statistics.shape};"
            " pass (draw, *observed.shape), not empty"
        )
    if not (np.isfinite(statistics).all() and np.isfinite(null).all()):
        raise InputError(
            "observed or draws hold values that are NaN or infinite;"
            " leave such hypotheses out first"
        )
    values = statistics.ravel()
    table = null.reshape(len(null), -1)
    if side == "less":
        values, table = -values, -table
    elif side == "two-sided":
        values, table = np.abs(values), np.abs(table)
    order = np.argsort(-values, kind="stable")
    if step_down:
        # column i: the maximum over the hypotheses ranked i and below, by a running maximum from
        # the smallest statistic up
        highest = np.maximum.accumulate(table[:, order[::-1]], axis=1)[:, ::-1]
    else:
        highest = np.repeat(table.max(axis=1, keepdims=True), len(order), axis=1)
    # a draw within rounding of a statistic counts as a tie, against it, as in `NullDistribution`
    slack = TIE * np.maximum(np.abs(values[order]), np.abs(highest).max(axis=0))
    p = (1 + (highest >= values[order] - slack).sum(axis=0)) / (1 + len(table))
    # a hypothesis cannot get a smaller p than one with a larger statistic
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(p)
    return corrected.reshape(statistics.shape)
