"""Relations of score and loss, and how far each group of runs lies above them.

Three relations with one interface. `fit` gives the relation at each run, its slope, and the degrees
of freedom left. `gaps_and_null` gives each group's gap above the relation, the standard error of
the gap, and the t of the same group in every draw of noise. `matched` makes the draws and does the
test. Shapes: `member` is (group, run) of 0 and 1, `noise` is (draw, run).
"""

import math

import numpy as np
from scipy import optimize

from emlens.foundation.errors import InputError

FLAT = 1e-12
"""Of a sum of squares: what float64 leaves of a group that its own relation explains."""
_MOST_NOISE = 0.5
"""Share of the losses' variance that may be noise before the corrected slope means nothing."""
_TINY = np.finfo(float).tiny


class LinearRelation:
    """The effect of each group beside intercept and slope, with externally studentised t.

    Externally studentised: the error of a group is estimated as if the group had not been fitted.
    """

    def __init__(self, x: np.ndarray, member: np.ndarray):
        design = np.column_stack([np.ones(len(x)), (x - x.mean()) / x.std()])
        self.q = np.linalg.qr(design)[0]
        self.x = x
        # Frisch–Waugh–Lovell: a group's effect beside the relation is the regression on what
        # the relation leaves of the group's indicator
        outside = member - member @ self.q @ self.q.T
        self.size = (outside**2).sum(axis=1)
        # a group that the relation explains completely has no effect to estimate: NaN
        self.lever = np.divide(
            outside,
            self.size[:, None],
            out=np.full_like(outside, np.nan),
            where=self.size[:, None] > FLAT * len(x),
        )

    def fit(self, y: np.ndarray) -> tuple[np.ndarray, float, float]:
        fitted = self.q @ (self.q.T @ y)
        return fitted, float(np.polyfit(self.x, fitted, 1)[0]), len(y) - 2.0

    def gaps_and_null(
        self, y: np.ndarray, fitted: np.ndarray, noise: np.ndarray, scatter: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        gap, error = self._effects(y[None])
        # noise without the relation: both are projected off it, so it changes no effect
        null_gaps, null_errors = self._effects(noise)
        return gap[0], error[0], null_gaps / null_errors

    def _effects(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        residuals = rows - rows @ self.q @ self.q.T
        gap = rows @ self.lever.T
        # residual squares with the group's own effect taken out as well (n − 3 degrees)
        squares = (residuals**2).sum(axis=1, keepdims=True)
        within = np.maximum(squares - gap**2 * self.size, _TINY)
        return gap, np.sqrt(within / (rows.shape[1] - 3) / self.size)


class NoisyLossRelation:
    """Groups against all others about the slope that the losses would have without their noise.

    Noise of the losses flattens a fitted slope by the share of their variance that is not noise
    (regression dilution); dividing by that share undoes it (method of moments).
    """

    def __init__(self, x: np.ndarray, member: np.ndarray, loss_error: float):
        self.x = x
        variance = float(x.var(ddof=1))
        if not 0 < loss_error**2 <= _MOST_NOISE * variance:
            raise InputError(
                f"loss_error={loss_error:g} beside losses that spread by {math.sqrt(variance):.3g}:"
                " noise must be above 0 and leave half of their variance"
            )
        self.reliability = 1 - loss_error**2 / variance
        sizes = member.sum(axis=1)
        # mean of the group minus mean of all other runs
        self.contrast = member / sizes[:, None] - (1 - member) / (len(x) - sizes)[:, None]
        self.spread = 1 / sizes + 1 / (len(x) - sizes)
        # a slope's error moves a contrast by the difference of losses
        slope_variance = self.reliability**2 * float(((x - x.mean()) ** 2).sum())
        self.slope_spread = (self.contrast @ x) ** 2 / slope_variance

    def fit(self, y: np.ndarray) -> tuple[np.ndarray, float, float]:
        slope = float(np.polyfit(self.x, y, 1)[0]) / self.reliability
        return y.mean() + slope * (self.x - self.x.mean()), slope, len(y) - 2.0

    def gaps_and_null(
        self, y: np.ndarray, fitted: np.ndarray, noise: np.ndarray, scatter: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        gap, error = self._effects((y - fitted)[None], self.spread + self.slope_spread)
        # the draws are noise about a known slope, so no error of a slope enters
        null_gaps, null_errors = self._effects(noise, self.spread)
        return gap[0], error[0], null_gaps / null_errors

    def _effects(self, rows: np.ndarray, spread: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gap = rows @ self.contrast.T
        centred = rows - rows.mean(axis=1, keepdims=True)
        squares = (centred**2).sum(axis=1, keepdims=True)
        within = np.maximum(squares - gap**2 / self.spread, _TINY)
        return gap, np.sqrt(within / (rows.shape[1] - 3) * spread)


class IsotonicRelation:
    """Each group against the non-falling relation of the other runs, as far up as their losses go.

    An isotonic fit has no standard error in closed form, so gaps are standardised by their own
    distribution over the draws. Rows are in order of loss here.
    """

    def __init__(self, x: np.ndarray, member: np.ndarray):
        self.order = np.argsort(x, kind="stable")
        self.x = x[self.order]
        self.places = _places(self.x)
        # Per group: the runs outside it, where their losses lie, and the runs of the group that
        # another run matches; None where nothing can be compared.
        self.comparisons: list[tuple[np.ndarray, _Places, np.ndarray] | None] = []
        for is_inside in member[:, self.order].astype(bool):
            outside = self.x[~is_inside]
            comparable = is_inside & (self.x <= outside.max(initial=-np.inf))
            if comparable.any():
                self.comparisons.append((~is_inside, _places(outside), comparable))
            else:
                self.comparisons.append(None)

    def fit(self, y: np.ndarray) -> tuple[np.ndarray, float, float]:
        """Of all runs, after the most deviating group was moved onto the relation of the others.

        A free relation would otherwise bend towards that group.
        """
        ordered = y[self.order]
        fitted = np.empty_like(y)
        fitted[self.order], freedom, _ = self._without_largest_gap(ordered, self._gaps(ordered))
        return fitted, float(fitted.max() - fitted.min()) / float(np.ptp(self.x)), freedom

    def gaps_and_null(
        self, y: np.ndarray, fitted: np.ndarray, noise: np.ndarray, scatter: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gaps (group,), their standard errors (group,), and t of each draw (draw, group).

        Args:
            y, fitted: one score per run, and `fit` of it.
            noise: (draw, run), added to `fitted`.
            scatter: standard deviation that the noise is brought to.
        """
        # residuals of a fit are smaller than the noise that was fitted: widen them to `scatter`
        inflation = scatter / max(float(noise.std()), _TINY)
        null_gaps = np.empty((len(noise), len(self.comparisons)))
        null_scatter = np.empty((len(noise), 1))
        for i, row in enumerate(noise):
            drawn_scores = (fitted + inflation * row)[self.order]
            null_gaps[i] = self._gaps(drawn_scores)
            null_scatter[i] = self._without_largest_gap(drawn_scores, null_gaps[i])[2]
        # of few runs a draw can be fitted without residue: its gaps count as large
        null_scatter = np.maximum(null_scatter, np.finfo(float).eps * null_scatter.max())
        centre = null_gaps.mean(axis=0)
        spread = null_gaps.std(axis=0) / null_scatter.mean()
        spread = np.where(spread > 0, spread, np.nan)
        gaps = self._gaps(y[self.order])
        observed_scatter = self._without_largest_gap(y[self.order], gaps)[2]
        t = (null_gaps - centre) / (spread * null_scatter)
        return gaps - centre, spread * observed_scatter, t

    def _without_largest_gap(
        self, y: np.ndarray, gaps: np.ndarray
    ) -> tuple[np.ndarray, float, float]:
        """The relation with the most deviating group moved onto it, degrees of freedom, scatter.

        Most deviating: the largest |gap|·√size, which is proportional to its t.
        """
        gaps = np.nan_to_num(gaps)
        sizes = np.zeros(len(self.comparisons), dtype=int)
        for i, comparison in enumerate(self.comparisons):
            if comparison is not None:
                sizes[i] = comparison[2].sum()
        largest = int(np.argmax(np.abs(gaps) * np.sqrt(sizes)))
        comparison = self.comparisons[largest]
        moved = y.copy()
        if comparison is not None:
            moved[comparison[2]] -= gaps[largest]
        fitted = np.repeat(_rising(self.places, moved), self.places[2])
        # an isotonic fit uses as many degrees of freedom as it has distinct levels
        freedom = float(len(y) - len(np.unique(fitted)))
        squares = float(((moved - fitted) ** 2).sum())
        return fitted, freedom, math.sqrt(squares / max(freedom - 1, 1.0))

    def _gaps(self, y: np.ndarray) -> np.ndarray:
        """Mean of each group above the relation of the others; NaN where none can be compared."""
        gaps = np.full(len(self.comparisons), np.nan)
        for i, comparison in enumerate(self.comparisons):
            if comparison is not None:
                outside, places, comparable = comparison
                relation = np.interp(self.x[comparable], places[0], _rising(places, y[outside]))
                gaps[i] = (y[comparable] - relation).mean()
        return gaps


_Places = tuple[np.ndarray, np.ndarray, np.ndarray]


def _places(x: np.ndarray) -> _Places:
    """Distinct losses of sorted runs, where each begins, and how many runs have it."""
    values, starts, counts = np.unique(x, return_index=True, return_counts=True)
    return values, starts, counts


def _rising(places: _Places, y: np.ndarray) -> np.ndarray:
    """Least-squares fit that does not fall (pool adjacent violators): one value per distinct loss.

    Runs of equal loss enter as their mean with their number as weight.
    """
    _, starts, counts = places
    if len(starts) == len(y):
        return np.asarray(optimize.isotonic_regression(y).x)
    means = np.add.reduceat(y, starts) / counts
    return np.asarray(optimize.isotonic_regression(means, weights=counts.astype(float)).x)
