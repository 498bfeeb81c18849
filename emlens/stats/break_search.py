"""The best break of a series beside a linear or logistic trend, by trying all of them at once.

A `BreakSearch` holds every candidate trend with every candidate break on one time axis, as
orthonormal designs. They depend on the times alone, so one search serves all draws of a null:
fitting is one matrix product over (trends · breaks) × series.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from emlens.foundation.notebooks import Brief

TrendShape = Literal["linear", "logistic"]
BreakKind = Literal["slope", "level", "transition"]
LogisticShape = tuple[float, float]
"""Midpoint and width of a logistic trend, as shares of the whole time."""

# The logistic trends that are tried first. The widest are close to straight.
_MIDPOINTS: Final = np.linspace(-0.2, 1.2, 15)
_WIDTHS: Final = np.geomspace(0.015, 0.6, 8)
# Widths of the smooth steps that count as a transition.
_TRANSITIONS: Final = np.geomspace(0.01, 0.2, 6)
# Steps around the best shape in each refinement of the grid.
_FINER: Final = np.linspace(-1, 1, 5)
# Each refinement halves the spacing about the best: at the end .0016 of the time, finer than
# what noise of 1 % of the height leaves.
_REFINEMENTS = 6
_BREAKS = 32  # places of a break that are tried at most
_CHUNK = 64  # series fitted at once
_SHORTEST = 1e-9  # norm of a trend that is the constant up to rounding
_INSIDE = 1e-6  # relative norm of a break that the trend explains
_RESIDUE = 1e-14  # relative: sums of squares below it are rounding


@dataclass(frozen=True, eq=False, repr=False)
class BreakFit(Brief):
    """The best fits of each series, as indices into the search.

    Args:
        statistic: sup-F, the gain of the best break over the residual variance.
        trend: best trend without a break.
        with_break, at: trend and break of the best fit with a break.
    """

    statistic: np.ndarray
    trend: np.ndarray
    with_break: np.ndarray
    at: np.ndarray


class BreakSearch:
    """Every trend with every break on one time axis (0 to 1), as orthonormal designs.

    Args:
        x: times, ascending from 0 to 1.
        shapes: logistic trends to try; none of them: the linear trend.
        kind: break to try; None: no break.
        margin: share of the values at either end in which no break is looked for.

    Attributes:
        designs: (trend, n, 2), orthonormal columns: the constant and the trend.
        directions: (trend, break, n), what a break adds outside the trend, of norm 1 or 0.
        lengths: (trend, break), its norm before it was scaled.
    """

    def __init__(
        self,
        x: np.ndarray,
        shapes: Sequence[LogisticShape],
        kind: BreakKind | None,
        margin: float,
    ):
        self.shapes = list(shapes)
        self.parameters = 4 if shapes else 2
        self.designs = _trend_designs(x, shapes)
        self.breaks = _break_places(x, margin)
        if kind is None:
            self.breaks = self.breaks[:1]
        regressors = _break_regressors(x, self.breaks, kind)
        if kind == "transition":
            self.breaks = np.tile(self.breaks, len(_TRANSITIONS))
        # Frisch–Waugh–Lovell: the gain of a break beside a trend is the squared projection onto
        # what of the break lies outside the trend. So each pair needs one dot product per series.
        inside = np.einsum("gnp,tn->gtp", self.designs, regressors)
        outside = regressors[None] - np.einsum("gnp,gtp->gtn", self.designs, inside)
        self.lengths = np.linalg.norm(outside, axis=-1)
        usable = self.lengths > _INSIDE * np.linalg.norm(regressors, axis=-1)
        scale = np.where(usable, self.lengths, 1.0)
        self.directions = np.where(usable[..., None], outside / scale[..., None], 0.0)

    def fit(self, series: np.ndarray) -> BreakFit:
        """The best fit without and with a break of each series of (series, n)."""
        n = series.shape[1]
        freedom = max(1, n - self.parameters - 2)
        statistics, trends, trends_with_break, places = [], [], [], []
        for start in range(0, len(series), _CHUNK):
            y = series[start : start + _CHUNK]
            # the designs hold the constant; squares lose less precision this way
            y = y - y.mean(axis=1, keepdims=True)
            total = (y**2).sum(axis=1)
            smooth, broken = self._residual_squares(y, total)
            flat = broken.reshape(-1, len(y))
            best = flat.argmin(axis=0)
            # a perfect fit divides rounding by rounding: both sums stay above a floor
            floor = _RESIDUE * total
            without = np.maximum(smooth.min(axis=0), floor)
            least = np.maximum(flat.min(axis=0), floor)
            statistics.append(freedom * (without - least) / least)
            trends.append(smooth.argmin(axis=0))
            trends_with_break.append(best // len(self.breaks))
            places.append(best % len(self.breaks))
        return BreakFit(
            np.concatenate(statistics),
            np.concatenate(trends),
            np.concatenate(trends_with_break),
            np.concatenate(places),
        )

    def _residual_squares(self, y: np.ndarray, total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Residual sums of squares: (trend, series) without, (trend, break, series) with a break.

        By Pythagoras, since designs and directions are orthonormal.
        """
        smooth = total - (np.einsum("gnp,bn->gpb", self.designs, y) ** 2).sum(axis=1)
        gains = (self.directions.reshape(-1, y.shape[1]) @ y.T) ** 2
        return smooth, smooth[:, None] - gains.reshape(len(self.designs), -1, len(y))

    def curves(self, series: np.ndarray, fit: BreakFit) -> tuple[np.ndarray, np.ndarray]:
        """The fitted curve of one series without, and with, its break."""
        plain = self.designs[fit.trend[0]]
        design = self.designs[fit.with_break[0]]
        direction = self._direction(fit)
        without = plain @ (plain.T @ series)
        return without, design @ (design.T @ series) + direction * float(direction @ series)

    def refitted(self, series: np.ndarray) -> np.ndarray:
        """The fitted curve with its break of each of (series, n)."""
        fit = self.fit(series)
        design = self.designs[fit.with_break]
        direction = self.directions[fit.with_break, fit.at]
        along = np.einsum("bn,bn->b", direction, series)
        trend = np.einsum("bnp,bmp,bm->bn", design, design, series, optimize=True)
        return np.asarray(trend + along[:, None] * direction)

    def size(self, series: np.ndarray, fit: BreakFit) -> float:
        """Coefficient of the break: its projection over the norm it was scaled by."""
        length = float(self.lengths[fit.with_break[0], fit.at[0]])
        if not length:
            return 0.0
        return float(self._direction(fit) @ series) / length

    def _direction(self, fit: BreakFit) -> np.ndarray:
        return np.asarray(self.directions[fit.with_break[0], fit.at[0]])


def _trend_designs(x: np.ndarray, shapes: Sequence[LogisticShape]) -> np.ndarray:
    """(trend, n, 2): the constant and the trend, orthonormal; a constant trend becomes 0."""
    if shapes:
        trends = np.stack([_sigmoid((x - middle) / width) for middle, width in shapes])
    else:
        trends = x[None]
    centred = trends - trends.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    moves = lengths > _SHORTEST
    unit = np.where(moves, centred / np.where(moves, lengths, 1.0), 0.0)
    return np.stack([np.full_like(unit, 1 / math.sqrt(len(x))), unit], axis=-1)


def _break_places(x: np.ndarray, margin: float) -> np.ndarray:
    """Up to `_BREAKS` of the times, evenly spread over those inside the margins."""
    skip = max(2, math.ceil(margin * len(x)))
    inner = x[skip : len(x) - skip]
    places = np.linspace(0, len(inner) - 1, min(_BREAKS, len(inner))).round().astype(int)
    return np.asarray(inner[np.unique(places)])


def _break_regressors(x: np.ndarray, breaks: np.ndarray, kind: BreakKind | None) -> np.ndarray:
    """(break, n): kinks, jumps, or smooth steps (all places at each width); 0 without a break."""
    gaps = x[None, :] - breaks[:, None]
    if kind is None:
        return np.zeros_like(gaps)
    if kind == "transition":
        return np.concatenate([_sigmoid(gaps / width) for width in _TRANSITIONS])
    if kind == "level":
        return np.asarray((gaps >= 0).astype(float))
    return np.asarray(np.maximum(gaps, 0.0))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e⁻ˣ) by tanh, which does not overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(x / 2)))


def search_for(
    series: np.ndarray,
    x: np.ndarray,
    trend: TrendShape,
    kind: BreakKind | None,
    margin: float,
    about: Literal["without", "with"],
) -> BreakSearch:
    """The search for a series: a coarse grid of logistic trends, finer about the best fit.

    `about` says which fit: the best one without, or with, a break. A test looks finely about the
    fit *without* one, where series of the null lie too. About the other fit the observed series
    would be fitted more closely than those of the null, and the test would reject too often.
    """
    if trend == "linear":
        return BreakSearch(x, (), kind, margin)
    shapes = list(itertools.product(_MIDPOINTS, _WIDTHS))
    step = _MIDPOINTS[1] - _MIDPOINTS[0]
    ratio = _WIDTHS[1] / _WIDTHS[0]
    for _ in range(_REFINEMENTS):
        fit = BreakSearch(x, shapes, kind, margin).fit(series[None])
        best = fit.with_break if about == "with" else fit.trend
        middle, width = shapes[int(best[0])]
        for shift, power in itertools.product(_FINER, _FINER):
            shapes.append((middle + shift * step, width * ratio**power))
        step, ratio = step / 2, math.sqrt(ratio)
    return BreakSearch(x, shapes, kind, margin)
