"""Effect sizes with intervals: Cohen's d of two groups or of pairs, and the rank-biserial
correlation.

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
    """Difference of means over the pooled standard deviation; positive where a is larger. Sign
    flips with the order.

    Raises:
        InputError: fewer than 2 values in a group, values that are not finite, no spread.
    """
    first, second = as_sample(a, "a", at_least=2), as_sample(b, "b", at_least=2)
    require_spread(first, second)
    freedom = len(first) + len(second) - 2
    pooled = (
        (len(first) - 1) * first.var(ddof=1) + (len(second) - 1) * second.var(ddof=1)
    ) / freedom
    return float((first.mean() - second.mean()) / math.sqrt(pooled))


def cohens_d_interval(
    a: ArrayLike, b: ArrayLike, *, paired: bool = False, level: float = 0.95
) -> Estimate:
    """Cohen's d (of pairs: d_z, mean difference over its standard deviation) with the noncentral-t
    interval.

    Invariant to one increasing affine map of both samples. Exact for normal values, of two groups
    with one variance (Steiger & Fouladi 1997); it inverts the distribution of t in its
    noncentrality.

    Raises:
        InputError: fewer than 2 values or pairs, values that are not finite, no spread, an
            impossible level.
    """
    require_level(level)
    if paired:
        first, second = as_paired(a, b, "a", "b", at_least=2)
        gaps = first - second
        require_spread(gaps)
        n, freedom, scale = len(gaps), len(gaps) - 1, 1 / math.sqrt(len(gaps))
        value = float(gaps.mean() / gaps.std(ddof=1))
    else:
        value = cohens_d(a, b)
        sizes = len(np.asarray(a)), len(np.asarray(b))
        n, freedom, scale = sum(sizes), sum(sizes) - 2, math.sqrt(1 / sizes[0] + 1 / sizes[1])
    low, high = (
        scale * _noncentrality(value / scale, freedom, q)
        for q in ((1 + level) / 2, (1 - level) / 2)
    )
    name = "Cohen's d_z of pairs" if paired else "Cohen's d"
    return Estimate(value, low, high, n, f"{name}, {100 * level:g} % noncentral-t interval")


def _noncentrality(t: float, freedom: int, q: float) -> float:
    """The noncentrality under which the distribution function at t is q."""
    if abs(t) > _FAR:
        return t - float(scipy_stats.norm.ppf(q)) * math.sqrt(1 + t * t / (2 * freedom))
    return float(special.nctdtrinc(freedom, q, t))


def rank_biserial(a: ArrayLike, b: ArrayLike, *, level: float = 0.95) -> Estimate:
    """P(a > b) − P(a < b) of two independent draws, by all pairs; 1 where every a is larger, 0
    where neither tends to be.

    Range [-1, 1]; invariant to increasing maps of both samples. The interval is Brunner & Munzel's
    (2000), from the placements, with Welch's degrees of freedom, symmetric after atanh so that it
    stays in range; where all pairs agree the placements have no spread and there is none.

    Raises:
        InputError: fewer than 2 values in a group, values that are not finite, an impossible level.
    """
    first, second = as_sample(a, "a", at_least=2), as_sample(b, "b", at_least=2)
    require_level(level)
    n = len(first) + len(second)
    above, below = _placements(first, second), -_placements(second, first)
    value = float(above.mean())
    parts = above.var(ddof=1) / len(above), below.var(ddof=1) / len(below)
    method = f"rank-biserial correlation, {100 * level:g} % Brunner-Munzel"
    if abs(value) == 1.0 or sum(parts) == 0:
        return Estimate(
            value,
            math.nan,
            math.nan,
            n,
            f"{method}; no spread of placements, so there is no interval",
        )
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(s) - 1) for part, s in zip(parts, (above, below), strict=True)
    )
    half = (
        float(scipy_stats.t.ppf((1 + level) / 2, freedom)) * math.sqrt(sum(parts)) / (1 - value**2)
    )
    return Estimate(
        value, math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half), n, method
    )


def _placements(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each a, the share of b below it minus the share above."""
    ordered = np.sort(b)
    below, through = (np.searchsorted(ordered, a, side=side) for side in ("left", "right"))
    return np.asarray((below + through - len(b)) / len(b), dtype=np.float64)
