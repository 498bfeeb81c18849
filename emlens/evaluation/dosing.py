"""How much of an edit: a grid of its coefficient, and the window in which the model stays usable.

Two coefficients are only comparable where the model still answers: beyond the window an effect on
alignment is the effect of a broken model. The window is known as finely as the grid, and no finer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emlens.data.base_questions import units_of
from emlens.data.prompts import PromptSet
from emlens.data.questions import QuestionSet
from emlens.evaluation.damage import text_damage
from emlens.evaluation.measured import Doses
from emlens.evaluation.restoring import paired_change
from emlens.evaluation.trials import (
    METRICS,
    SCORED,
    Score,
    Trials,
    interval_columns,
    means_of_scores,
    scored_everywhere,
)
from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.intervention import Intervention, as_interventions
from emlens.geometry import Direction
from emlens.interventions import steer
from emlens.judging.likelihood import score_by_likelihood
from emlens.models.hooked import HookedModel
from emlens.runs.progress import progress_bar


def dose_response(
    model: HookedModel,
    questions: QuestionSet,
    edit: Direction | Callable[[float], Intervention | Sequence[Intervention]],
    coefficients: Sequence[float],
    *,
    neutral: PromptSet | None = None,
    score: Score = score_by_likelihood,
    out: str | Path | None = None,
    progress: bool = True,
    seed: int = 0,
) -> Doses:
    """Alignment, coherence and damage of one model at each coefficient of an edit.

    Args:
        edit: a direction, which is added (`steer`) at its own site; or coefficient →
            interventions, such as `lambda c: steer(direction, c, at="all_layers")`.
        coefficients: the grid; every change is against the model unedited, whether 0 is in it or
            not.
        neutral: prompts on which damage is measured; None leaves it out.
        score, out: as in `Trials`; with `out` a stopped call goes on from the last finished
            coefficient.

    Returns:
        A pandas table that has `.plot()`.

        One row per coefficient, ascending: coefficient; value, `_low` and `_high` of aligned,
        coherent, misaligned, aligned_change and coherent_change (paired by question; groups are
        resampled, or base questions where there is one group), kl and cross_entropy_change (nats
        per token); n.

    Raises:
        InputError: no coefficient, one that comes twice or is not finite, or a question without a
            score at some coefficient.
    """
    grid = sorted(map(float, coefficients))
    if not grid or len(set(grid)) != len(grid) or not np.isfinite(grid).all():
        raise InputError(
            f"coefficients={list(coefficients)} must be at least one finite number, none twice"
        )
    if not isinstance(edit, Direction) and not callable(edit):
        raise InputError(
            f"edit is a {type(edit).__name__}; pass a Direction, or a function of the coefficient"
        )
    edit_at = _adding(edit) if isinstance(edit, Direction) else edit
    trials = Trials(questions, neutral=neutral, score=score, out=out)
    unedited = trials.scores(model)
    measured, costs = [], []
    with progress_bar("doses", len(grid), progress) as advance:
        for coefficient in grid:
            edits = as_interventions(edit_at(coefficient))
            measured.append(trials.scores(model, edits))
            costs.append(trials.damage(model, edits))
            advance()
    ids = scored_everywhere([unedited, *measured], score, "at some coefficient")
    asked = questions.select(ids) if ids else None
    rows = []
    for coefficient, edited, cost in zip(grid, measured, costs, strict=True):
        estimates: dict[str, Estimate] = dict.fromkeys(_SCORES, _NONE_SCORED)
        if asked is not None:
            estimates = _score_estimates(edited.loc[ids], unedited.loc[ids], asked, seed)
        if cost is not None:
            damage = text_damage(cost, seed=seed)
            estimates["kl"] = damage.kl
            estimates["cross_entropy_change"] = damage.cross_entropy
        row: dict[str, Any] = {"coefficient": coefficient}
        rows.append({**row, **interval_columns(estimates), "n": len(ids)})
    return Doses(rows)


def _adding(direction: Direction) -> Callable[[float], Intervention]:
    return lambda coefficient: steer(direction, coefficient)


_SCORES = (*SCORED, *(f"{name}_change" for name in METRICS))
_NONE_SCORED = Estimate.undefined("no question has a score at every coefficient")


def _score_estimates(
    edited: pd.DataFrame, unedited: pd.DataFrame, questions: QuestionSet, seed: int
) -> dict[str, Estimate]:
    """Means with base questions resampled, then changes with groups resampled."""
    values = {name: edited[name].to_numpy() for name in SCORED}
    estimates = means_of_scores(values, questions.ids, seed)
    units, _ = units_of(questions)
    for name in METRICS:
        if len(set(units)) < 2:
            estimates[f"{name}_change"] = Estimate.undefined("fewer than 2 base questions")
            continue
        after, before = edited[name].to_numpy(), unedited[name].to_numpy()
        estimates[f"{name}_change"] = paired_change(after, before, units, seed=seed)
    return estimates


@dataclass(frozen=True)
class UsableWindow:
    """The coefficients around 0 at which a model stays usable.

    Args:
        coefficients: those of the grid inside, without a gap; empty where the one nearest 0 is
            outside already.
        ended: by side, `"below"` and `"above"`, which bound the next coefficient breaks; "" where
            the grid ends first.
    """

    coefficients: tuple[float, ...]
    ended: Mapping[str, str]

    @property
    def low(self) -> float:
        return self.coefficients[0] if self.coefficients else float("nan")

    @property
    def high(self) -> float:
        return self.coefficients[-1] if self.coefficients else float("nan")


@dataclass(frozen=True)
class _Bound:
    """A limit on a column: `sign` is 1 for a lower limit, −1 for an upper one.

    Args:
        end: the unfavourable end of the interval, "low" or "high".
    """

    column: str
    end: str
    limit: float
    sign: int

    def broken_by(self, row: pd.Series) -> str:
        """How a row breaks it; "" where it does not. A value that is not known breaks it."""
        value = float(row[self.column])
        worst = float(row.get(f"{self.column}_{self.end}", value))
        if np.isnan(worst):
            worst = value
        if self.sign * worst >= self.sign * self.limit:
            return ""
        return f"{self.column} {worst:.3g} at {row['coefficient']:g}, bound {self.limit:g}"


def usable_window(
    table: pd.DataFrame,
    *,
    max_coherence_loss: float | None = 10.0,
    min_coherent: float | None = None,
    max_kl: float | None = None,
) -> UsableWindow:
    """The coefficients around 0, without a gap, at which the model stays coherent and undamaged.

    A bound must hold for the unfavourable end of the interval where the table has one, so noisy
    measurements give a shorter window.

    Args:
        table: of `dose_response`, or any with a column coefficient and those of the bounds.
        max_coherence_loss: points of coherence lost against the unedited model (coherent_change);
            None: no such bound.
        min_coherent: least coherence itself (coherent). max_kl: nats per token (kl).

    Raises:
        InputError: no bound, a column that is missing, no row, or a coefficient that comes twice.
    """
    bounds = []
    if max_coherence_loss is not None:
        bounds.append(_Bound("coherent_change", "low", -max_coherence_loss, 1))
    if min_coherent is not None:
        bounds.append(_Bound("coherent", "low", min_coherent, 1))
    if max_kl is not None:
        bounds.append(_Bound("kl", "high", max_kl, -1))
    if not bounds:
        raise InputError("no bound was given; pass max_coherence_loss, min_coherent or max_kl")
    rows = _by_coefficient(table, bounds)
    broken = [_first_broken(row, bounds) for _, row in rows.iterrows()]
    grid = rows["coefficient"].to_numpy(dtype=float)
    start = int(np.abs(grid).argmin())
    if broken[start]:
        return UsableWindow((), {"below": broken[start], "above": broken[start]})
    first, ended_below = _walk(broken, start, step=-1)
    last, ended_above = _walk(broken, start, step=1)
    window = tuple(map(float, grid[first : last + 1]))
    return UsableWindow(window, {"below": ended_below, "above": ended_above})


def _walk(broken: Sequence[str], start: int, *, step: int) -> tuple[int, str]:
    """The last usable coefficient from `start` on, and the bound that the next one breaks.

    "" in place of the bound where the grid ends first.
    """
    i = start
    while 0 <= i + step < len(broken):
        if broken[i + step]:
            return i, broken[i + step]
        i += step
    return i, ""


def _by_coefficient(table: pd.DataFrame, bounds: Sequence[_Bound]) -> pd.DataFrame:
    """The rows in ascending order of the coefficient.

    Raises:
        InputError: a column that is missing, no row, or a coefficient that comes twice.
    """
    for name in ("coefficient", *(bound.column for bound in bounds)):
        if name not in table.columns:
            raise InputError(
                f"table lacks the column {name!r}; it has {', '.join(map(str, table.columns))}",
                name=name,
                known=table.columns,
            )
    rows = table.sort_values("coefficient", kind="stable").reset_index(drop=True)
    n_coefficients = len(set(rows["coefficient"].to_numpy(dtype=float)))
    if not len(rows) or n_coefficients != len(rows):
        raise InputError(
            f"table has {len(rows)} rows with {n_coefficients} coefficients;"
            " pass one row per coefficient, at least one"
        )
    return rows


def _first_broken(row: pd.Series, bounds: Sequence[_Bound]) -> str:
    for bound in bounds:
        reason = bound.broken_by(row)
        if reason:
            return reason
    return ""
