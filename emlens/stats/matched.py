"""Is anything better than its loss says? Scores of runs beside the relation of score and loss.

`matched_loss_test` asks for a group of runs (a schedule) or a single run whose score lies above
what runs of the same loss have. Where the relation does not fall, that is also better than what
runs of lower loss have: a better score at no worse loss. Under the null every run follows one
relation, and what scatters about it

* with `groups`, is exchangeable between runs (within strata, where given): residuals of the
  relation are permuted and everything is fitted again (Freedman & Lane 1983). Nothing is assumed of
  their distribution;
* without, is normal with one spread: permuting would leave the largest residual the largest, so a
  lone run can only be distinguished from normal scatter. Its draws are new normal residuals; exact
  for the linear relation, whatever slope and spread are.

Both hold for the scatter as it was measured, noise of the scores included. Noise of the losses
makes the fitted slope too shallow, so that groups at high loss look better than they are:
`loss_error` takes that out. p-values are corrected by the largest statistic over all groups,
intervals hold for all of them together. Refused: fewer runs than the relation can be estimated
from. Cost: draws × groups. The relations are in `matched_relations`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.notebooks import Brief
from emlens.foundation.seeds import numpy_rng
from emlens.stats.corrections import max_statistic_p
from emlens.stats.matched_relations import (
    FLAT,
    IsotonicRelation,
    LinearRelation,
    NoisyLossRelation,
)
from emlens.stats.nulls import NullDistribution
from emlens.stats.samples import (
    as_paired,
    labels_in_order,
    require_choice,
    require_count,
    require_level,
    stratum_rows,
)

Relation = Literal["linear", "isotonic"]
LEAST = 8
"""Runs below which the spread about a relation is too poorly known."""


@dataclass(frozen=True, eq=False, repr=False)
class MatchedLoss(Brief):
    """The gap of every group above the relation, and what a search over groups finds by chance.

    Args:
        table: one row per group (or run), in order of appearance. `group`, `n`, `loss` (mean);
            `gap`: score above the relation that the other runs follow, in units of the score;
            `gap_low`, `gap_high`: its interval, for all rows together; `null`: the gap that a
            search over all rows would find by chance in 1 − level of cases; `t`; `p`, corrected.
            Missing where no other run has so high a loss.
        null: the largest t over all rows under the null.
        fitted: the relation at each run.
        scatter: standard deviation about the relation, in units of the score.
        slope: change of the score per unit of loss; of an isotonic relation its mean over the
            range.
        method: relation, null and size of the search in words.
    """

    table: pd.DataFrame
    null: NullDistribution
    fitted: np.ndarray
    scatter: float
    slope: float
    method: str

    @property
    def best(self) -> Estimate:
        """The gap of the row with the largest t; its interval allows for the search over rows."""
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
        """p that some row lies above the relation, corrected for the search over rows."""
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
        loss, score: one number per run.
        groups: what distinguishes the runs (their schedule); None: each run on its own, against
            normal scatter.
        relation: `"linear"`; or `"isotonic"`, which does not fall with the loss and is otherwise
            free. The latter compares a run only where another has a loss as high, and takes its
            relation from the others alone.
        strata: one label per run (its learning rate); residuals then swap only within a stratum.
            With `groups`.
        loss_error: standard error of a run's loss. With `groups` and the linear relation.

    Raises:
        InputError: fewer than 8 runs, unequal lengths, values that are not finite, losses or
            residuals without spread, options that do not go together, a noise of losses that leaves
            less than half of their variance.
    """
    x, y = as_paired(loss, score, "loss", "score", at_least=LEAST)
    require_level(level)
    require_count(draws, "draws")
    _require_options(groups, relation, strata, loss_error)
    names, member = _members(groups, len(x))
    if not np.ptp(x) > FLAT * np.abs(x).max():
        raise InputError(
            "every loss is equal, so there is no relation to compare scores with;"
            " compare the scores themselves"
        )
    model = _relation_model(x, member, relation, loss_error)
    fitted, slope, freedom = model.fit(y)
    residual = y - fitted
    if freedom < 3 or not np.linalg.norm(residual) > FLAT * np.linalg.norm(y):
        raise InputError(
            f"{len(x)} runs leave {freedom:g} degrees of freedom and no scatter"
            f" about the {relation} relation; pass more runs"
        )
    scatter = math.sqrt(float(residual @ residual) / freedom)
    rng = numpy_rng(seed, "matched_loss_test")
    if groups is None:
        noise = rng.normal(scale=scatter, size=(draws, len(x)))
        what = "normal scatter of single runs"
    else:
        noise = _permuted(residual, strata, draws, rng)
        what = "residuals permuted" if strata is None else "residuals permuted within strata"
    gap, error, null_t = model.gaps_and_null(y, fitted, noise, scatter)
    comparison = _Comparison(gap, error, null_t)
    table = pd.DataFrame(
        {"group": names, "n": member.sum(axis=1), "loss": member @ x / member.sum(axis=1)}
        | comparison.columns(level)
    )
    tested = int(comparison.is_tested.sum())
    method = f"{relation} relation, {what}, largest of {tested} rows, {draws} draws"
    null = NullDistribution(comparison.largest_t(), method, seed)
    return MatchedLoss(table, null, fitted, scatter, slope, method)


def _require_options(
    groups: Sequence[object] | np.ndarray | None,
    relation: Relation,
    strata: Sequence[object] | np.ndarray | None,
    loss_error: float,
) -> None:
    """Raises:
    InputError: an unknown relation, or options that do not go together.
    """
    require_choice(relation, "relation", get_args(Relation))
    if groups is None and (strata is not None or loss_error):
        raise InputError(
            "strata and loss_error need groups=:"
            " single runs are compared with normal scatter about the relation"
        )
    if loss_error and relation != "linear":
        raise InputError(
            f"loss_error={loss_error:g} was given with relation={relation!r};"
            " noise of the losses is only taken out of 'linear'"
        )


def _relation_model(
    x: np.ndarray, member: np.ndarray, relation: Relation, loss_error: float
) -> LinearRelation | NoisyLossRelation | IsotonicRelation:
    if relation == "isotonic":
        return IsotonicRelation(x, member)
    if loss_error:
        return NoisyLossRelation(x, member, loss_error)
    return LinearRelation(x, member)


def _permuted(
    residual: np.ndarray,
    strata: Sequence[object] | np.ndarray | None,
    draws: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """(draws, run): residuals in random order, within each stratum."""
    noise = np.tile(residual, (draws, 1))
    for rows in stratum_rows(strata, len(residual)):
        noise[:, rows] = rng.permuted(noise[:, rows], axis=1)
    return noise


class _Comparison:
    """Gaps of all groups beside what a search over all of them finds by chance.

    Args:
        gap, error: (group,), the gap above the relation and its standard error.
        null_t: (draw, group), t of each group in each draw.
    """

    def __init__(self, gap: np.ndarray, error: np.ndarray, null_t: np.ndarray):
        self.gap, self.error = gap, error
        self.t = gap / error
        self.is_tested = np.isfinite(self.t) & np.isfinite(null_t).all(axis=0)
        if not self.is_tested.any():
            raise InputError(
                "no group can be compared: each holds the highest loss or all runs;"
                " pass groups that overlap in their losses"
            )
        self.null_t = null_t[:, self.is_tested]

    def largest_t(self) -> np.ndarray:
        """The largest t over all groups in each draw: what a search finds by chance."""
        return np.asarray(self.null_t.max(axis=1))

    def columns(self, level: float) -> dict[str, np.ndarray]:
        """Columns of the table; missing where a group could not be compared."""
        corrected = np.full(len(self.gap), np.nan)
        # single step: the interval below is the same test inverted, so both agree
        corrected[self.is_tested] = max_statistic_p(
            self.t[self.is_tested], self.null_t, step_down=False
        )
        # simultaneous interval: the level-quantile of the largest |t| holds for all rows together
        width = float(np.quantile(np.abs(self.null_t).max(axis=1), level)) * self.error
        columns = {
            "gap": self.gap,
            "gap_low": self.gap - width,
            "gap_high": self.gap + width,
            "null": float(np.quantile(self.largest_t(), level)) * self.error,
            "t": self.t,
            "p": corrected,
        }
        return {name: np.where(self.is_tested, column, np.nan) for name, column in columns.items()}


def _members(groups: Sequence[object] | np.ndarray | None, n: int) -> tuple[list[str], np.ndarray]:
    """Names of the groups, and which runs belong to each: (group, run) of 0 and 1."""
    if groups is None:
        return [str(i) for i in range(n)], np.eye(n)
    labels = [str(label) for label in labels_in_order(groups, "groups")]
    if len(labels) != n:
        raise InputError(f"groups has {len(labels)} labels for {n} runs; pass one label per run")
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
    member = np.array(labels)[None, :] == np.array(names)[:, None]
    return names, member.astype(float)
