"""Did a series break, or only follow a trend? Sup-F of a break, with a bootstrapped null.

A break can be fitted to any series, and a smooth S-shaped one has a steepest place. So the null is
the trend itself, linear or logistic, fitted again in every draw, with noise as dependent as the
residuals. Time is whatever the trend should be even in: on the axis of the cumulative learning
rate, warm-up and decay are not a change. What remains is a smooth trend of another shape than the
one assumed, which counts as evidence of a break: report both trends. Cost: one matrix product over
(trends · breaks) × draws; about a second for 80 values and 300 draws. How often a smooth series is
called broken was measured: docs/dynamics.md. The search is in `break_search`, the noise in
`residual_noise`.
"""

from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.seeds import numpy_rng
from emlens.stats.break_search import BreakKind, TrendShape, search_for
from emlens.stats.nulls import NullDistribution
from emlens.stats.residual_noise import FLAT, Noise, noise_draws
from emlens.stats.samples import as_paired, as_sample, require_choice, require_count, require_level

_LEAST = 12
"""Values below which trend, break and noise cannot be distinguished."""


@dataclass(frozen=True, eq=False)
class ChangePoint:
    """The best break of a series, beside a null without one.

    Args:
        location: when, in units of `times`, with an interval over noise within the run.
        size: change of level there, or of slope (a kink) per unit of time.
        statistic: sup-F, the gain of the break over the residual variance.
        null: the same of series that follow the fitted trend with like noise.
        p: of the break against that trend.
        trend, kind: what was assumed, what was looked for.
        correlation: lag-1 autocorrelation of the residuals, corrected for bias.
        n: values.
    """

    location: Estimate
    size: float
    statistic: float
    null: NullDistribution
    p: float
    trend: TrendShape
    kind: BreakKind
    correlation: float
    n: int


def change_point(
    values: ArrayLike,
    times: ArrayLike | None = None,
    *,
    trend: TrendShape = "logistic",
    kind: BreakKind = "slope",
    noise: Noise = "autoregressive",
    margin: float = 0.1,
    draws: int = 299,
    level: float = 0.95,
    seed: int = 0,
) -> ChangePoint:
    """Where a series breaks with a trend, and the p of its doing so at all.

    The statistic is the largest F over breaks (Andrews 1993), trend and break fitted together.

    Args:
        values: one number per time, at least 12.
        times: of each value, strictly ascending; 0, 1, 2, … where None. The cumulative learning
            rate takes warm-up out.
        trend: `"linear"`, or `"logistic"`: level + height · σ((t − t₀)/w), whose four numbers are
            fitted (t₀ and w on a grid, finer about the best).
        kind: a kink (`"slope"`), a jump (`"level"`), or a smooth step of any width up to a fifth of
            the run (`"transition"`), which is what a linear trend is to be compared with; its
            location is the middle of the step.
        noise: of the null: Gaussian with lag-1 autocorrelation, its two numbers corrected for what
            fitting takes from residuals by simulating (indirect inference, Gouriéroux et al. 1993);
            or blocks of the residuals (`"stationary"` bootstrap, Politis & Romano 1994; mean block
            2·n^⅓), which rejects too often in short series. Both are estimated beside the break.
        margin: share of the values at either end in which no break is looked for.

    Raises:
        InputError: fewer than 12 values, times that do not fit or ascend, an option outside its
            range.
    """
    series, axis = _series(values, times)
    require_choice(trend, "trend", get_args(TrendShape))
    require_choice(kind, "kind", get_args(BreakKind))
    require_choice(noise, "noise", get_args(Noise))
    if not 0 < margin < 0.5:
        raise InputError(f"margin={margin!r} must lie strictly between 0 and .5")
    require_level(level)
    rng = numpy_rng(seed, "change_point", trend, kind, noise)
    span = axis[-1] - axis[0]
    label = f"{trend} trend without a break, {noise} noise"
    n = len(series)
    if _is_flat(series):
        undefined = Estimate.undefined("the series does not move", n)
        null = NullDistribution(np.zeros(1), label, seed)
        return ChangePoint(undefined, 0.0, 0.0, null, 1.0, trend, kind, 0.0, n)
    x = (axis - axis[0]) / span

    # Two searches: the test is fine about the fit without a break, the location about the fit
    # with one (see `search_for`). A linear trend has no grid, so there they are the same.
    test_search = search_for(series, x, trend, kind, margin, "without")
    test_fit = test_search.fit(series[None])
    smooth, _ = test_search.curves(series, test_fit)
    search = test_search
    if trend != "linear":
        search = search_for(series, x, trend, kind, margin, "with")
    fit = search.fit(series[None])
    _, broken = search.curves(series, fit)

    # Noise is estimated from the residuals beside the break: beside the smooth trend alone, a
    # real break would count as noise and hide itself.
    count = require_count(draws, "draws")
    noise_of_draws, rho = noise_draws(series, broken, search, noise, count, rng)
    statistic = float(test_fit.statistic[0])
    null_statistics = test_search.fit(smooth + noise_of_draws).statistic
    null = NullDistribution(null_statistics, label, seed, observed=statistic)

    # The interval of the location refits the broken curve with the same noise.
    refits = search.breaks[search.fit(broken + noise_of_draws).at]
    low, high = np.quantile(refits, [(1 - level) / 2, (1 + level) / 2])
    how = (
        f"{kind} break beside a {trend} trend;"
        f" {100 * level:g} % of {draws} refits with {noise} noise"
    )
    location = _on_the_axis(axis, float(search.breaks[fit.at[0]]), low, high, n, how)
    size = search.size(series, fit) / (span if kind == "slope" else 1.0)
    return ChangePoint(location, size, statistic, null, null.p_value(), trend, kind, rho, n)


def logistic_midpoint(
    values: ArrayLike,
    times: ArrayLike | None = None,
    *,
    draws: int = 299,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """When a series has made half of its change, in units of `times`.

    That is t₀ of the fitted level + height · σ((t − t₀)/w). Defined for a smooth change as well as
    for an abrupt one; it says nothing about which it was. The interval refits series with
    autoregressive noise like the residuals. Undefined where the best midpoint lies outside the
    series: it has not turned yet.

    Raises:
        InputError: as `change_point`.
    """
    series, axis = _series(values, times)
    require_level(level)
    n = len(series)
    span = axis[-1] - axis[0]
    if _is_flat(series):
        return Estimate.undefined("the series does not move", n)
    search = search_for(series, (axis - axis[0]) / span, "logistic", None, 0.1, "without")
    fit = search.fit(series[None])
    smooth, _ = search.curves(series, fit)
    count = require_count(draws, "draws")
    rng = numpy_rng(seed, "midpoint")
    noise, _ = noise_draws(series, smooth, search, "autoregressive", count, rng)
    midpoint = search.shapes[int(fit.trend[0])][0]
    if not 0 <= midpoint <= 1:
        return Estimate.undefined("the midpoint lies outside the series", n)
    refits = np.array([search.shapes[int(g)][0] for g in search.fit(smooth + noise).trend])
    low, high = np.clip(np.quantile(refits, [(1 - level) / 2, (1 + level) / 2]), 0, 1)
    how = f"midpoint of a logistic trend; {100 * level:g} % of {draws} refits"
    return _on_the_axis(axis, midpoint, low, high, n, how)


def _on_the_axis(
    axis: np.ndarray, share: float, low: float, high: float, n: int, how: str
) -> Estimate:
    """A share of the whole time (0 to 1) and its interval, in units of `times`.

    The interval always contains the value, which quantiles of refits need not do.
    """
    span = axis[-1] - axis[0]
    return Estimate(
        float(axis[0] + span * share),
        float(axis[0] + span * min(low, share)),
        float(axis[0] + span * max(high, share)),
        n,
        how,
    )


def _is_flat(series: np.ndarray) -> bool:
    return bool(series.std() <= FLAT * max(1.0, float(np.abs(series).max())))


def _series(values: ArrayLike, times: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    """Values and strictly ascending times.

    Raises:
        InputError: fewer than 12 values, or times that do not fit or ascend.
    """
    series = as_sample(values, "values", at_least=_LEAST)
    if times is None:
        return series, np.arange(len(series), dtype=np.float64)
    series, axis = as_paired(series, times, "values", "times")
    stalls = np.diff(axis) <= 0
    if stalls.any():
        first = int(np.argmax(stalls))
        raise InputError(
            f"times do not ascend strictly: {axis[first + 1]:g} follows {axis[first]:g}"
        )
    return series, axis
