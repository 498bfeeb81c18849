"""Is anything better than its loss says? Scores of runs held against the relation of score and
loss, with the search paid for.

`matched_loss_test` asks for a group of runs (a schedule) or a single run whose score lies above
what runs of the same loss have. Where the relation does not fall, that is also better than what
runs of lower loss have: a better score at no worse loss. Under the null every run follows one
relation, and what scatters about it

* with `groups`, is exchangeable between runs (within strata, where given): residuals of the
  relation are permuted and everything is fitted anew (Freedman & Lane 1983). Nothing is assumed of
  their distribution;
* without, is normal with one spread: permuting would leave the largest residual the largest, so a
  lone run can only be told from normal scatter. Its draws are new normal residuals; exact for the
  linear relation, whatever slope and spread are.

Both hold for the scatter as it was measured, noise of the scores included. Noise of the losses
makes the fitted slope too shallow, so that groups at high loss look better than they are:
`loss_error` takes that out. p-values are corrected by the largest statistic over all groups,
intervals hold for all of them together. Refused: fewer runs than the relation can be told from.
Cost: draws × groups.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import optimize

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.seeds import numpy_rng
from emlens.stats.corrections import max_statistic_p
from emlens.stats.correlation import stratum_rows
from emlens.stats.nulls import NullDistribution
from emlens.stats.samples import as_paired, require_count, require_level

Relation = Literal["linear", "isotonic"]
LEAST = 8
"""Runs below which the spread about a relation is too poorly known."""
_FLAT = 1e-12  # of a sum of squares: what float64 leaves of a group that its own relation explains
# share of the losses' variance that may be noise before the corrected slope means nothing
_MOST_NOISE = 0.5


@dataclass(frozen=True, eq=False)
class MatchedLoss:
    """What `matched_loss_test` found.

    Args:
        table: one row a group (or run), in order of appearance: `group`, `n`, `loss` (mean), `gap`
            (score above the relation that the other runs follow, in units of the score), `gap_low`,
            `gap_high` (for all rows together), `null` (the gap that a search over all rows would
            find by chance in 1 − level of cases), `t`, `p` (corrected). Missing where no other run
            has so high a loss.
        null: the largest t over all rows under the null. fitted: the relation at each run.
        scatter: standard deviation about the relation, in units of the score.
        slope: change of the score for one unit of loss; of an isotonic relation its mean over the
            range.
    """

    table: pd.DataFrame
    null: NullDistribution
    fitted: np.ndarray
    scatter: float
    slope: float
    method: str

    @property
    def best(self) -> Estimate:
        """The gap of the row with the largest t, with the interval that allows for having
        searched.
        """
        row = self.table.iloc[int(np.nanargmax(self.table["t"].to_numpy()))]
        return Estimate(
            float(row["gap"]),
            float(row["gap_low"]),
            float(row["gap_high"]),
            int(row["n"]),
            f"{row['group']}: {self.method}",
        )

    @property
    def p(self) -> float:
        """That some row lies above the relation, the search over rows allowed for."""
        return float(self.table["p"].min())


def matched_loss_test(
    loss: ArrayLike,
    score: ArrayLike,
    *,
    groups: Sequence[object] | np.ndarray | None = None,
    relation: Relation = "linear",
    strata: Sequence[object] | np.ndarray | None = None,
    loss_error: float = 0.0,
    draws: int = 1999,
    level: float = 0.95,
    seed: int = 0,
) -> MatchedLoss:
    """Does a group of runs, or a single run, have a better score (larger) at no worse loss?

    Args:
        loss, score: one number a run.
        groups: what the runs are told apart by (their schedule); None: each run on its own, against
            normal scatter.
        relation: `"linear"`; or `"isotonic"`, which does not fall with the loss and is otherwise
            free. The latter compares a run only where another has a loss as high, and takes its
            relation from the others alone.
        strata: one label a run (its learning rate); residuals then swap only within a stratum. With
            `groups`.
        loss_error: standard error of a run's loss. With `groups` and the linear relation.

    Raises:
        InputError: fewer than 8 runs, unequal lengths, values that are not finite, losses or
            residuals without spread, options that do not go together, a noise of losses that leaves
            less than half of their variance.
    """
    x, y = as_paired(loss, score, "loss", "score", at_least=LEAST)
    require_level(level)
    require_count(draws, "draws")
    if relation not in get_args(Relation):
        raise InputError(
            f"relation={relation!r} is unknown;"
            f" pass one of {', '.join(map(repr, get_args(Relation)))}"
        )
    if groups is None and (strata is not None or loss_error):
        raise InputError(
            "strata and loss_error need groups=: single runs are compared with normal scatter about"
            " the relation"
        )
    if loss_error and relation != "linear":
        raise InputError(
            f"loss_error={loss_error:g} came with relation={relation!r};"
            " noise of the losses is only taken out of 'linear'"
        )
    names, member = _members(groups, len(x))
    if not np.ptp(x) > _FLAT * np.abs(x).max():
        raise InputError(
            "every loss is equal, so there is no relation to hold scores against;"
            " compare the scores themselves"
        )
    model: _Linear | _Noisy | _Isotonic
    if relation == "isotonic":
        model = _Isotonic(x, member)
    else:
        model = _Noisy(x, member, loss_error) if loss_error else _Linear(x, member)
    fitted, slope, left = model.fit(y)
    residual = y - fitted
    if left < 3 or not np.linalg.norm(residual) > _FLAT * np.linalg.norm(y):
        raise InputError(
            f"{len(x)} runs leave {left:g} degrees of freedom and no scatter about the {relation}"
            " relation; pass more runs"
        )
    scatter = math.sqrt(float(residual @ residual) / left)
    rng = numpy_rng(seed, "matched_loss_test")
    if groups is None:
        noise = rng.normal(scale=scatter, size=(draws, len(x)))
    else:
        noise = np.tile(residual, (draws, 1))
        for rows in stratum_rows(strata, len(x)):
            noise[:, rows] = rng.permuted(noise[:, rows], axis=1)
    gap, error, under = model.judge(y, fitted, noise, scatter)
    t = gap / error
    tested = np.isfinite(t) & np.isfinite(under).all(axis=0)
    if not tested.any():
        raise InputError(
            "no group can be compared: each holds the highest loss or all runs;"
            " pass groups that overlap in their losses"
        )
    corrected = np.full(len(names), np.nan)
    corrected[tested] = max_statistic_p(t[tested], under[:, tested], step_down=False)
    largest = under[:, tested].max(axis=1)
    width = float(np.quantile(np.abs(under[:, tested]).max(axis=1), level)) * error
    table = pd.DataFrame(
        {
            "group": names,
            "n": member.sum(axis=1),
            "loss": member @ x / member.sum(axis=1),
            "gap": gap,
            "gap_low": gap - width,
            "gap_high": gap + width,
            "null": float(np.quantile(largest, level)) * error,
            "t": t,
            "p": corrected,
        }
    )
    table.loc[~tested, ["gap", "gap_low", "gap_high", "null", "t", "p"]] = np.nan
    what = (
        "normal scatter of single runs"
        if groups is None
        else "residuals permuted" + (" within strata" if strata is not None else "")
    )
    method = f"{relation} relation, {what}, largest of {int(tested.sum())} rows, {draws} draws"
    return MatchedLoss(
        table, NullDistribution(largest, method, seed), fitted, scatter, slope, method
    )


def _members(groups: Sequence[object] | np.ndarray | None, n: int) -> tuple[list[str], np.ndarray]:
    """Names, and which runs belong to each: (group, run) of 0 and 1."""
    if groups is None:
        return [str(i) for i in range(n)], np.eye(n)
    labels = [str(label) for label in groups]
    if len(labels) != n:
        raise InputError(f"groups has {len(labels)} labels for {n} runs; pass one label a run")
    names = list(dict.fromkeys(labels))
    if len(names) < 2:
        raise InputError(
            f"groups has one label, {names[0]!r}; pass two groups or more, or None for single runs"
        )
    if len(names) == n:
        raise InputError(
            f"groups puts each of {n} runs in a group of its own, which permuting cannot test;"
            " pass groups=None"
        )
    return names, np.array([[float(label == name) for label in labels] for name in names])


class _Linear:
    """The effect of each group beside intercept and slope; t is externally studentised, as if the
    group had not been fitted.
    """

    def __init__(self, x: np.ndarray, member: np.ndarray):
        design = np.column_stack([np.ones(len(x)), (x - x.mean()) / x.std()])
        self.q = np.linalg.qr(design)[0]
        self.x = x
        # what the relation leaves of each group's indicator
        left = member - member @ self.q @ self.q.T
        self.size = (left**2).sum(axis=1)
        self.lever = np.divide(
            left,
            self.size[:, None],
            out=np.full_like(left, np.nan),
            where=self.size[:, None] > _FLAT * len(x),
        )

    def fit(self, y: np.ndarray) -> tuple[np.ndarray, float, float]:
        fitted = self.q @ (self.q.T @ y)
        return fitted, float(np.polyfit(self.x, fitted, 1)[0]), len(y) - 2.0

    def judge(
        self, y: np.ndarray, fitted: np.ndarray, noise: np.ndarray, scatter: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        gap, error = self._effects(y[None])
        under, errors = self._effects(noise)  # the relation itself changes no effect
        return gap[0], error[0], under / errors

    def _effects(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        left = rows - rows @ self.q @ self.q.T
        gap = rows @ self.lever.T
        rest = np.maximum(
            (left**2).sum(axis=1, keepdims=True) - gap**2 * self.size, np.finfo(float).tiny
        )
        return gap, np.sqrt(rest / (rows.shape[1] - 3) / self.size)


class _Noisy:
    """Groups against all others about the slope that the losses would have without their noise
    (method of moments).
    """

    def __init__(self, x: np.ndarray, member: np.ndarray, loss_error: float):
        self.x, self.member = x, member
        variance = float(x.var(ddof=1))
        if not 0 < loss_error**2 <= _MOST_NOISE * variance:
            raise InputError(
                f"loss_error={loss_error:g} beside losses that spread by {math.sqrt(variance):.3g}:"
                " noise must be above 0 and leave half of their variance"
            )
        self.kept = 1 - loss_error**2 / variance
        sizes = member.sum(axis=1)
        self.contrast = member / sizes[:, None] - (1 - member) / (len(x) - sizes)[:, None]
        self.spread = 1 / sizes + 1 / (len(x) - sizes)
        # a slope's error moves a contrast by the difference of losses
        self.moved = (self.contrast @ x) ** 2 / (self.kept**2 * float(((x - x.mean()) ** 2).sum()))

    def fit(self, y: np.ndarray) -> tuple[np.ndarray, float, float]:
        slope = float(np.polyfit(self.x, y, 1)[0]) / self.kept
        return y.mean() + slope * (self.x - self.x.mean()), slope, len(y) - 2.0

    def judge(
        self, y: np.ndarray, fitted: np.ndarray, noise: np.ndarray, scatter: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        gap, error = self._effects((y - fitted)[None], self.spread + self.moved)
        under, errors = self._effects(noise, self.spread)
        return gap[0], error[0], under / errors

    def _effects(self, rows: np.ndarray, spread: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gap = rows @ self.contrast.T
        centred = rows - rows.mean(axis=1, keepdims=True)
        within = np.maximum(
            (centred**2).sum(axis=1, keepdims=True) - gap**2 / self.spread, np.finfo(float).tiny
        )
        return gap, np.sqrt(within / (rows.shape[1] - 3) * spread)


class _Isotonic:
    """Each group against the non-falling relation of the other runs, as far up as their losses go;
    standardised by its own null.
    """

    def __init__(self, x: np.ndarray, member: np.ndarray):
        self.order = np.argsort(x, kind="stable")
        self.x = x[self.order]
        self.places = _places(self.x)
        self.parts = []
        for own in member[:, self.order].astype(bool):
            others = self.x[~own]
            held = own & (self.x <= others.max(initial=-np.inf))
            self.parts.append((~own, _places(others), held) if held.any() else None)

    def fit(self, y: np.ndarray) -> tuple[np.ndarray, float, float]:
        """Of all runs, after the most conspicuous group was moved onto the others' relation: it
        would bend a free relation towards itself.
        """
        ordered = y[self.order]
        fitted = np.empty_like(y)
        fitted[self.order], left, _ = self._moved(ordered, self._gaps(ordered))
        return fitted, float(fitted.max() - fitted.min()) / float(np.ptp(self.x)), left

    def judge(
        self, y: np.ndarray, fitted: np.ndarray, noise: np.ndarray, scatter: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        # residuals of a fit are smaller than what was fitted
        wider = scatter / max(float(noise.std()), np.finfo(float).tiny)
        under, scale = np.empty((len(noise), len(self.parts))), np.empty((len(noise), 1))
        for i, row in enumerate(noise):
            drawn = (fitted + wider * row)[self.order]
            under[i] = self._gaps(drawn)
            scale[i] = self._moved(drawn, under[i])[2]
        # of few runs a draw can be fitted without residue: its gaps count as large
        scale = np.maximum(scale, np.finfo(float).eps * scale.max())
        centre, spread = under.mean(axis=0), under.std(axis=0) / scale.mean()
        spread = np.where(spread > 0, spread, np.nan)
        gaps = self._gaps(y[self.order])
        own = self._moved(y[self.order], gaps)[2]
        return gaps - centre, spread * own, (under - centre) / (spread * scale)

    def _moved(self, y: np.ndarray, gaps: np.ndarray) -> tuple[np.ndarray, float, float]:
        """Relation without the most conspicuous gap, the degrees of freedom it leaves, and the
        scatter about it.
        """
        gaps = np.nan_to_num(gaps)
        sizes = np.array([0 if part is None else part[2].sum() for part in self.parts])
        most = int(np.argmax(np.abs(gaps) * np.sqrt(sizes)))
        part, moved = self.parts[most], y.copy()
        if part is not None:
            moved[part[2]] -= gaps[most]
        fitted = np.repeat(_rising(self.places, moved), self.places[2])
        left = float(len(y) - len(np.unique(fitted)))
        return fitted, left, math.sqrt(float(((moved - fitted) ** 2).sum()) / max(left - 1, 1.0))

    def _gaps(self, y: np.ndarray) -> np.ndarray:
        found = np.full(len(self.parts), np.nan)
        for i, part in enumerate(self.parts):
            if part is not None:
                others, places, held = part
                found[i] = (
                    y[held] - np.interp(self.x[held], places[0], _rising(places, y[others]))
                ).mean()
        return found


_Places = tuple[np.ndarray, np.ndarray, np.ndarray]


def _places(x: np.ndarray) -> _Places:
    """Distinct losses of sorted runs, where each begins, and how many runs have it."""
    values, starts, counts = np.unique(x, return_index=True, return_counts=True)
    return values, starts, counts


def _rising(places: _Places, y: np.ndarray) -> np.ndarray:
    """Least-squares fit that does not fall: one value for each distinct loss."""
    _, starts, counts = places
    if len(starts) == len(y):
        return np.asarray(optimize.isotonic_regression(y).x)
    return np.asarray(
        optimize.isotonic_regression(
            np.add.reduceat(y, starts) / counts, weights=counts.astype(float)
        ).x
    )
