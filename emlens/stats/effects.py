"""Effect sizes with intervals: Cohen's d of groups or pairs, and the rank-biserial correlation.

A standardised effect says how large a difference is beside the spread of the units; it does not
replace the difference in the units of the data, which every test here reports too.
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats as scipy_stats

from emlens.foundation.estimate import Estimate
from emlens.stats.outcomes import require_spread
from emlens.stats.samples import as_paired, as_sample, require_level

_FAR = 37.0
"""|t| beyond which scipy's noncentral t loses its tails; there the interval is the normal one."""


def cohens_d(a: ArrayLike, b: ArrayLike) -> float:
    """Difference of means a − b over the pooled standard deviation; positive where a is larger.

    Raises:
        InputError: fewer than 2 values in a group, values that are not finite, no spread.
    """
    first, second = as_sample(a, "a", at_least=2), as_sample(b, "b", at_least=2)
    require_spread(first, second)
    freedom = len(first) + len(second) - 2
    squares = (len(first) - 1) * first.var(ddof=1) + (len(second) - 1) * second.var(ddof=1)
    return float((first.mean() - second.mean()) / math.sqrt(squares / freedom))


def cohens_d_interval(
    a: ArrayLike, b: ArrayLike, *, paired: bool = False, level: float = 0.95
) -> Estimate:
    """Cohen's d of a − b with the noncentral-t interval.

    Of pairs it is d_z, the mean difference over the standard deviation of the differences.
    Invariant to one increasing affine map of both samples. Exact for normal values, of two groups
    with one variance (Steiger & Fouladi 1997); it inverts the distribution of t in its
    noncentrality.

    Args:
        paired: whether a and b are pairs, value by value.

    Raises:
        InputError: fewer than 2 values or pairs, values that are not finite, no spread, an
            impossible level.
    """
    require_level(level)
    if paired:
        first, second = as_paired(a, b, "a", "b", at_least=2)
        gaps = first - second
        require_spread(gaps)
        name = "Cohen's d_z of pairs"
        n = len(gaps)
        freedom, scale = n - 1, 1 / math.sqrt(n)
        value = float(gaps.mean() / gaps.std(ddof=1))
    else:
        name = "Cohen's d"
        value = cohens_d(a, b)
        n_a, n_b = len(np.asarray(a)), len(np.asarray(b))
        n = n_a + n_b
        freedom, scale = n - 2, math.sqrt(1 / n_a + 1 / n_b)
    # t = d / scale. The lower end is the noncentrality under which so large a t is just possible,
    # so it belongs to the upper quantile.
    t = value / scale
    low = scale * _noncentrality(t, freedom, (1 + level) / 2)
    high = scale * _noncentrality(t, freedom, (1 - level) / 2)
    return Estimate(value, low, high, n, f"{name}, {100 * level:g} % noncentral-t interval")


def _noncentrality(t: float, freedom: int, q: float) -> float:
    """The noncentrality under which the distribution function at t is q."""
    if abs(t) > _FAR:
        # t of noncentrality δ is nearly normal about δ with variance 1 + t²/(2·freedom)
        return t - float(scipy_stats.norm.ppf(q)) * math.sqrt(1 + t * t / (2 * freedom))
    return float(special.nctdtrinc(freedom, q, t))


def rank_biserial(a: ArrayLike, b: ArrayLike, *, level: float = 0.95) -> Estimate:
    """P(a > b) − P(a < b) of two independent draws, by all pairs.

    1 where every a is larger, 0 where neither tends to be. Range [-1, 1]; invariant to increasing
    maps of both samples. The interval is Brunner & Munzel's (2000), from the placements, with
    Welch's degrees of freedom, symmetric after atanh so that it stays in range; where all pairs
    agree the placements have no spread and there is none.

    Raises:
        InputError: fewer than 2 values in a group, values that are not finite, an impossible level.
    """
    first, second = as_sample(a, "a", at_least=2), as_sample(b, "b", at_least=2)
    require_level(level)
    n = len(first) + len(second)
    above = _placements(first, second)
    below = -_placements(second, first)
    value = float(above.mean())
    # squared errors of both means of placements, and Welch–Satterthwaite degrees of freedom
    var_above = above.var(ddof=1) / len(above)
    var_below = below.var(ddof=1) / len(below)
    total = var_above + var_below
    method = f"rank-biserial correlation, {100 * level:g} % Brunner-Munzel"
    if abs(value) == 1.0 or total == 0:
        why = f"{method}; no spread of placements, so there is no interval"
        return Estimate(value, math.nan, math.nan, n, why)
    freedom = total**2 / (var_above**2 / (len(above) - 1) + var_below**2 / (len(below) - 1))
    # delta method: d atanh(v)/dv = 1 / (1 − v²)
    error = float(scipy_stats.t.ppf((1 + level) / 2, freedom)) * math.sqrt(total)
    half = error / (1 - value**2)
    z = math.atanh(value)
    return Estimate(value, math.tanh(z - half), math.tanh(z + half), n, method)


def _placements(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each a, the share of b below it minus the share above; ties cancel."""
    ordered = np.sort(b)
    below = np.searchsorted(ordered, a, side="left")
    not_above = np.searchsorted(ordered, a, side="right")
    # above = len(b) − not_above
    return np.asarray((below + not_above - len(b)) / len(b), dtype=np.float64)
