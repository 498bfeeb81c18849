"""Did a series break, or only follow a trend? Sup-F of a break against a linear or a logistic
trend, with a bootstrapped null.

A break can be fitted to any series, and a smooth S-shaped one has a steepest place: so the null is
the trend itself, fitted anew in every draw, with noise as dependent as the residuals. Time is
whatever the trend should be even in: on the axis of the cumulative learning rate, warm-up and decay
are no change. What remains is a smooth trend of another shape than the one given, which counts as
evidence of a break: both trends are to be reported. Cost: one matrix product over (trends · breaks)
× draws; about a second for 80 values and 300 draws. How often a smooth series is called broken was
measured: docs/dynamics.md.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.seeds import numpy_rng
from emlens.stats.intervals import t_interval
from emlens.stats.nulls import NullDistribution
from emlens.stats.samples import as_paired, as_sample, require_count, require_level

TrendShape = Literal["linear", "logistic"]
BreakKind = Literal["slope", "level", "transition"]
Noise = Literal["autoregressive", "stationary"]

_MIDPOINTS: Final = np.linspace(-0.2, 1.2, 15)
_WIDTHS: Final = np.geomspace(0.015, 0.6, 8)
"""Shares of the whole time: of the logistic trends that are tried first. The widest are close to
straight.
"""
_TRANSITIONS: Final = np.geomspace(0.01, 0.2, 6)
"""Widths of the smooth steps that count as a transition."""
_FINER: Final = np.linspace(-1, 1, 5)
_ZOOMS = 6
"""Each halves the spacing about the best: at the end .0016 of the time, finer than what noise of 1
% of the height leaves.
"""
_BREAKS = 32
_LEAST = 12
_CHUNK = 64
_FLAT = 1e-10  # relative: a standard deviation below it is rounding
_ENUMERATED = 14  # units up to which all sign patterns are gone through
_CORRELATIONS: Final = np.array([0.0, 0.3, 0.55, 0.75, 0.88, 0.96])
_TRIED = 24  # series a correlation, of which the bias of its estimate is learnt

_Shape = tuple[float, float]
"""Midpoint and width of a logistic trend."""


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

    Args:
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

    The statistic is the largest F over breaks (Andrews 1993), trend and break fitted together.

    Raises:
        InputError: fewer than 12 values, times that do not fit or ascend, an option outside its
            range.
    """
    series, axis = _series(values, times)
    for name, value, kinds in (
        ("trend", trend, TrendShape),
        ("kind", kind, BreakKind),
        ("noise", noise, Noise),
    ):
        if value not in get_args(kinds):
            raise InputError(
                f"{name}={value!r} is unknown; pass one of {', '.join(map(repr, get_args(kinds)))}"
            )
    if not 0 < margin < 0.5:
        raise InputError(f"margin={margin!r} must lie strictly between 0 and .5")
    require_level(level)
    rng = numpy_rng(seed, "change_point", trend, kind, noise)
    span = axis[-1] - axis[0]
    label = f"{trend} trend without a break, {noise} noise"
    n = len(series)
    if series.std() <= _FLAT * max(1.0, float(np.abs(series).max())):
        none = Estimate.undefined("the series does not move", n)
        return ChangePoint(
            none, 0.0, 0.0, NullDistribution(np.zeros(1), label, seed), 1.0, trend, kind, 0.0, n
        )
    x = (axis - axis[0]) / span
    test = _searching(series, x, trend, kind, margin, "without")
    tested = test.fit(series[None])
    smooth, _ = test.curves(series, tested)
    search = test if trend == "linear" else _searching(series, x, trend, kind, margin, "with")
    found = search.fit(series[None])
    _, broken = search.curves(series, found)
    drawn, rho = _noise(series, broken, search, noise, require_count(draws, "draws"), rng)
    statistic = float(tested.statistic[0])
    null = NullDistribution(test.fit(smooth + drawn).statistic, label, seed, observed=statistic)
    again = search.breaks[search.fit(broken + drawn).at]
    low, high = np.quantile(again, [(1 - level) / 2, (1 + level) / 2])
    here = float(search.breaks[found.at[0]])
    location = Estimate(
        float(axis[0] + span * here),
        float(axis[0] + span * min(low, here)),
        float(axis[0] + span * max(high, here)),
        n,
        f"{kind} break beside a {trend} trend; {100 * level:g} % of {draws} refits with {noise}"
        " noise",
    )
    size = search.size(series, found) / (span if kind == "slope" else 1.0)
    return ChangePoint(location, size, statistic, null, null.p_value(), trend, kind, rho, n)


def logistic_midpoint(
    values: ArrayLike,
    times: ArrayLike | None = None,
    *,
    draws: int = 299,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """When a series has made half of its change: t₀ of the fitted level + height · σ((t − t₀)/w),
    in units of `times`.

    Defined for a smooth change as well as for an abrupt one; it says nothing about which it was.
    The interval refits series with autoregressive noise like the residuals. Undefined where the
    best midpoint lies outside the series: it has not turned yet.

    Raises:
        InputError: as `change_point`.
    """
    series, axis = _series(values, times)
    require_level(level)
    n, span = len(series), axis[-1] - axis[0]
    if series.std() <= _FLAT * max(1.0, float(np.abs(series).max())):
        return Estimate.undefined("the series does not move", n)
    search = _searching(series, (axis - axis[0]) / span, "logistic", None, 0.1, "without")
    found = search.fit(series[None])
    smooth, _ = search.curves(series, found)
    drawn, _ = _noise(
        series,
        smooth,
        search,
        "autoregressive",
        require_count(draws, "draws"),
        numpy_rng(seed, "midpoint"),
    )
    here = search.shapes[int(found.trend[0])][0]
    if not 0 <= here <= 1:
        return Estimate.undefined("the midpoint lies outside the series", n)
    again = np.array([search.shapes[int(g)][0] for g in search.fit(smooth + drawn).trend])
    low, high = np.clip(np.quantile(again, [(1 - level) / 2, (1 + level) / 2]), 0, 1)
    how = f"midpoint of a logistic trend; {100 * level:g} % of {draws} refits"
    return Estimate(
        float(axis[0] + span * here),
        float(axis[0] + span * min(low, here)),
        float(axis[0] + span * max(high, here)),
        n,
        how,
    )


@dataclass(frozen=True)
class EventOrder:
    """Which of two events comes first, over runs.

    Args:
        lag: mean of second − first, with a t interval over runs; above 0: the first comes first.
        p: two-sided, by flipping the signs of the lags: exact up to 14 runs.
        first_leads, ties: runs in which the first came earlier, and in which both came at once.
    """

    lag: Estimate
    p: float
    first_leads: int
    ties: int


def order_of_events(
    first: ArrayLike, second: ArrayLike, *, draws: int = 9999, level: float = 0.95, seed: int = 0
) -> EventOrder:
    """Do two events of the same runs differ in when they happen? One pair of times a run.

    The null is that the lag is as likely to be −x as x; n runs can show no p below 2/2ⁿ.

    Raises:
        InputError: unequal lengths, fewer than 2 runs, times that are not finite.
    """
    a, b = as_paired(first, second, "first", "second", at_least=2)
    lags = b - a
    n = len(lags)
    if np.ptp(lags) == 0:
        lag = Estimate(
            float(lags[0]),
            float(lags[0]),
            float(lags[0]),
            n,
            "all runs have this lag, so the interval says nothing",
        )
    else:
        lag = t_interval(lags, level=level)
    if n <= _ENUMERATED:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
        sums = np.abs(signs @ lags)
        p = float(np.mean(sums >= abs(lags.sum()) * (1 - 1e-12)))
    else:
        signs = numpy_rng(seed, "order_of_events").choice(
            [-1.0, 1.0], size=(require_count(draws, "draws"), n)
        )
        p = NullDistribution(np.abs(signs @ lags), "signs of lags flipped", seed).p_value(
            abs(float(lags.sum()))
        )
    return EventOrder(lag, p, int((lags > 0).sum()), int((lags == 0).sum()))


@dataclass(frozen=True, eq=False)
class _Fit:
    """Of each series: trend and break of the best fit with a break, its gain, and the trend of the
    best fit without.
    """

    statistic: np.ndarray
    trend: np.ndarray
    with_break: np.ndarray
    at: np.ndarray


class _Search:
    """Every trend with every break on one time axis (0 to 1), as orthonormal designs that do not
    depend on the values.
    """

    def __init__(
        self, x: np.ndarray, shapes: Sequence[_Shape], kind: BreakKind | None, margin: float
    ):
        self.shapes, self.parameters = list(shapes), 4 if shapes else 2
        second = (
            np.stack([_sigmoid((x - middle) / width) for middle, width in shapes])
            if shapes
            else x[None]
        )
        rest = second - second.mean(axis=1, keepdims=True)
        lengths = np.linalg.norm(rest, axis=1, keepdims=True)
        rest = np.where(lengths > 1e-9, rest / np.where(lengths > 1e-9, lengths, 1.0), 0.0)
        self.designs = np.stack([np.full_like(rest, 1 / math.sqrt(len(x))), rest], axis=-1)
        skip = max(2, math.ceil(margin * len(x)))
        inner = x[skip : len(x) - skip]
        self.breaks = inner[
            np.unique(np.linspace(0, len(inner) - 1, min(_BREAKS, len(inner))).round().astype(int))
        ]
        if kind is None:
            self.breaks = self.breaks[:1]
        gaps = x[None, :] - self.breaks[:, None]
        if kind == "transition":
            regressors = np.concatenate([_sigmoid(gaps / width) for width in _TRANSITIONS])
            self.breaks = np.tile(self.breaks, len(_TRANSITIONS))
        else:
            regressors = (
                np.zeros_like(gaps)
                if kind is None
                else (gaps >= 0).astype(float)
                if kind == "level"
                else np.maximum(gaps, 0.0)
            )
        outside = regressors[None] - np.einsum(
            "gnp,gtp->gtn", self.designs, np.einsum("gnp,tn->gtp", self.designs, regressors)
        )
        self.lengths = np.linalg.norm(outside, axis=-1)
        usable = self.lengths > 1e-6 * np.linalg.norm(regressors, axis=-1)
        self.directions = np.where(
            usable[..., None], outside / np.where(usable, self.lengths, 1.0)[..., None], 0.0
        )

    def fit(self, series: np.ndarray) -> _Fit:
        """Of a (series, n) array."""
        n = series.shape[1]
        freedom = max(1, n - self.parameters - 2)
        flat = self.directions.reshape(-1, n)
        parts = []
        for start in range(0, len(series), _CHUNK):
            y = series[start : start + _CHUNK]
            # the designs hold the constant; squares lose less this way
            y = y - y.mean(axis=1, keepdims=True)
            total = (y**2).sum(axis=1)
            smooth = total - (np.einsum("gnp,bn->gpb", self.designs, y) ** 2).sum(axis=1)
            gains = (flat @ y.T) ** 2
            broken = smooth[:, None] - gains.reshape(len(self.designs), -1, len(y))
            best = broken.reshape(-1, len(y)).argmin(axis=0)
            floor = 1e-14 * total
            without, least = (
                np.maximum(smooth.min(axis=0), floor),
                np.maximum(broken.reshape(-1, len(y)).min(axis=0), floor),
            )
            parts.append(
                (
                    freedom * (without - least) / least,
                    smooth.argmin(axis=0),
                    best // len(self.breaks),
                    best % len(self.breaks),
                )
            )
        statistic, trend, with_break, at = (
            np.concatenate(values) for values in zip(*parts, strict=True)
        )
        return _Fit(statistic, trend, with_break, at)

    def curves(self, series: np.ndarray, found: _Fit) -> tuple[np.ndarray, np.ndarray]:
        """The fitted curve without and with its break."""
        plain, own, direction = (
            self.designs[found.trend[0]],
            self.designs[found.with_break[0]],
            self._direction(found),
        )
        return plain @ (plain.T @ series), own @ (own.T @ series) + direction * float(
            direction @ series
        )

    def refitted(self, series: np.ndarray) -> np.ndarray:
        """The fitted curve with its break of each of (series, n)."""
        found = self.fit(series)
        own, direction = self.designs[found.with_break], self.directions[found.with_break, found.at]
        along = np.einsum("bn,bn->b", direction, series)
        return np.asarray(
            np.einsum("bnp,bmp,bm->bn", own, own, series, optimize=True)
            + along[:, None] * direction
        )

    def size(self, series: np.ndarray, found: _Fit) -> float:
        length = float(self.lengths[found.with_break[0], found.at[0]])
        return float(self._direction(found) @ series) / length if length else 0.0

    def _direction(self, found: _Fit) -> np.ndarray:
        return np.asarray(self.directions[found.with_break[0], found.at[0]])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (1.0 + np.tanh(x / 2)))


def _searching(
    series: np.ndarray,
    x: np.ndarray,
    trend: TrendShape,
    kind: BreakKind | None,
    margin: float,
    about: Literal["with", "without"],
) -> _Search:
    """The search for a series: logistic trends on a coarse grid, and ever finer about the best fit
    with, or without, a break.

    A test looks finely about the fit *without* one, where series of the null lie too; about the
    other, the series itself would be fitted more closely than they are.
    """
    if trend == "linear":
        return _Search(x, (), kind, margin)
    shapes = list(itertools.product(_MIDPOINTS, _WIDTHS))
    step, ratio = _MIDPOINTS[1] - _MIDPOINTS[0], _WIDTHS[1] / _WIDTHS[0]
    for _ in range(_ZOOMS):
        found = _Search(x, shapes, kind, margin).fit(series[None])
        g = int((found.with_break if about == "with" else found.trend)[0])
        shapes += [
            (shapes[g][0] + shift * step, shapes[g][1] * ratio**power)
            for shift, power in itertools.product(_FINER, _FINER)
        ]
        step, ratio = step / 2, math.sqrt(ratio)
    return _Search(x, shapes, kind, margin)


def _noise(
    series: np.ndarray,
    fitted: np.ndarray,
    search: _Search,
    kind: Noise,
    draws: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, float]:
    """Draws of noise like the residuals (draws, n), and its lag-1 autocorrelation."""
    n, left = len(series), series - fitted
    own_power, own_rho = _correlation(left[None])
    rho, sd = float(own_rho[0]), math.sqrt(float(own_power[0]))
    if kind == "stationary":
        rows = np.empty((draws, n), dtype=int)
        rows[:, 0] = rng.integers(n, size=draws)
        for t in range(1, n):
            fresh = rng.random(draws) < 0.5 * n ** (-1 / 3)
            rows[:, t] = np.where(fresh, rng.integers(n, size=draws), (rows[:, t - 1] + 1) % n)
        return math.sqrt(n / max(1, n - search.parameters - 2)) * (left - left.mean())[rows], rho
    if sd <= _FLAT * series.std():
        return np.zeros((draws, n)), 0.0
    powers, rhos = np.empty(len(_CORRELATIONS)), np.empty(len(_CORRELATIONS))
    for i, correlation in enumerate(_CORRELATIONS):  # what fitting leaves of noise that is known
        tried = fitted + sd * _autoregressive(_TRIED, n, float(correlation), rng)
        seen_power, seen = _correlation(tried - search.refitted(tried))
        powers[i], rhos[i] = seen_power.mean() / sd**2, seen.mean()
    rising = np.maximum.accumulate(rhos)
    true = float(np.interp(rho, rising, _CORRELATIONS))
    kept = float(np.interp(true, _CORRELATIONS, powers))
    return sd / math.sqrt(max(kept, 0.05)) * _autoregressive(draws, n, true, rng), true


def _correlation(left: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean square and lag-1 autocorrelation of each row."""
    power = (left**2).mean(axis=1)
    return power, (left[:, :-1] * left[:, 1:]).sum(axis=1) / np.maximum(
        left.shape[1] * power, 1e-300
    )


def _autoregressive(draws: int, n: int, correlation: float, rng: np.random.Generator) -> np.ndarray:
    """Unit-variance Gaussian series."""
    found = rng.standard_normal((draws, n))
    for t in range(1, n):
        found[:, t] = correlation * found[:, t - 1] + math.sqrt(1 - correlation**2) * found[:, t]
    return found


def _series(values: ArrayLike, times: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    series = as_sample(values, "values", at_least=_LEAST)
    if times is None:
        return series, np.arange(len(series), dtype=np.float64)
    series, axis = as_paired(series, times, "values", "times")
    if (np.diff(axis) <= 0).any():
        raise InputError(
            f"times do not ascend strictly: {axis[int(np.argmax(np.diff(axis) <= 0)) + 1]:g}"
            f" follows {axis[int(np.argmax(np.diff(axis) <= 0))]:g}"
        )
    return series, axis
