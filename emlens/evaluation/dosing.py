"""How much of an edit: a sweep of its coefficient, and the window in which the model stays usable.

A coefficient is only comparable with another where the model still answers: beyond the window an
effect on alignment is the effect of a broken model. The window is known to the grid of coefficients
and no finer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emlens.data.prompts import PromptSet
from emlens.data.questions import QuestionSet
from emlens.evaluation.damage import RESAMPLES, text_damage
from emlens.evaluation.restoring import paired_change
from emlens.evaluation.trials import METRICS, Score, Trials
from emlens.foundation.errors import InputError
from emlens.foundation.intervention import Intervention
from emlens.judging.likelihood import score_by_likelihood
from emlens.models.hooked import HookedModel
from emlens.runs.progress import progress_bar
from emlens.stats import bootstrap_mean


def dose_response(
    model: HookedModel,
    questions: QuestionSet,
    edit: Callable[[float], Sequence[Intervention]],
    coefficients: Sequence[float],
    *,
    neutral: PromptSet | None = None,
    score: Score = score_by_likelihood,
    score_id: str | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    seed: int = 0,
) -> pd.DataFrame:
    """Alignment, coherence and damage of one model at each coefficient of an edit.

    Args:
        edit: coefficient → interventions, such as `lambda c: [steer(direction, c)]`.
        coefficients: the grid; every change is against the model unedited, whether 0 is in it or
            not.
        neutral: prompts on which damage is measured; None leaves it out.
        score, score_id, out: as in `Trials`; with `out` a stopped sweep goes on from the last
            finished coefficient.

    Returns:
        One row a coefficient, ascending: coefficient; (value, `_low`, `_high`) of aligned,
            coherent, misaligned, aligned_change and
        coherent_change (paired by question, domains resampled), kl and cross_entropy_change (nats a
        token); n.

    Raises:
        InputError: no coefficient, one that comes twice or is not finite, or a question without a
            score at some coefficient.
    """
    grid = sorted(float(c) for c in coefficients)
    if not grid or len(set(grid)) != len(grid) or not np.isfinite(grid).all():
        raise InputError(
            f"coefficients={list(coefficients)} must be at least one finite number, none twice"
        )
    trials = Trials(questions, neutral=neutral, score=score, score_id=score_id, out=out)
    plain = trials.scores(model)
    rows = []
    with progress_bar("doses", len(grid), progress) as advance:
        for coefficient in grid:
            edits = tuple(edit(coefficient))
            table, cost = trials.scores(model, edits), trials.damage(model, edits)
            missing = table.isna().any(axis=1) | plain.isna().any(axis=1)
            if missing.any():
                raise InputError(
                    f"at coefficient {coefficient:g}, {int(missing.sum())} of {len(table)}"
                    " questions have no score; score them or leave them out"
                )
            estimates = {
                name: bootstrap_mean(table[name].to_numpy(), resamples=RESAMPLES, seed=seed)
                for name in table.columns
            }
            for name in METRICS:
                estimates[f"{name}_change"] = paired_change(
                    table[name].to_numpy(), plain[name].to_numpy(), questions.groups, seed=seed
                )
            if cost is not None:
                damage = text_damage(cost, seed=seed)
                estimates |= {"kl": damage.kl, "cross_entropy_change": damage.cross_entropy}
            row: dict[str, Any] = {"coefficient": coefficient}
            for name, e in estimates.items():
                row |= {name: e.value, f"{name}_low": e.low, f"{name}_high": e.high}
            rows.append(row | {"n": len(table)})
            advance()
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class UsableWindow:
    """The coefficients around 0 at which a model stays usable.

    Args:
        coefficients: those of the grid inside, without a gap; empty where not even the one nearest
            0 is.
        ended: by side, `"below"` and `"above"`, what the next coefficient breaks; empty where the
            grid ends first.
    """

    coefficients: tuple[float, ...]
    ended: Mapping[str, str]

    @property
    def low(self) -> float:
        return self.coefficients[0] if self.coefficients else float("nan")

    @property
    def high(self) -> float:
        return self.coefficients[-1] if self.coefficients else float("nan")


def usable_window(
    table: pd.DataFrame,
    *,
    max_coherence_loss: float | None = 10.0,
    min_coherent: float | None = None,
    max_kl: float | None = None,
) -> UsableWindow:
    """Coefficients without a gap around 0 at which coherence stays and damage is bounded.

    A bound must hold for the unfavourable end of the interval where the table has one, so a noisy
    sweep gives a shorter window.

    Args:
        table: of `dose_response`, or any with a column coefficient and those of the bounds, as from
            released sweeps.
        max_coherence_loss: points of coherence lost against the unedited model (coherent_change);
            None: no such bound.
        min_coherent: least coherence itself (coherent). max_kl: nats a token (kl).

    Raises:
        InputError: no bound, a column that is missing, no row, or a coefficient that comes twice.
    """
    bounds = [
        (column, end, limit, sign)
        for column, end, limit, sign in (
            (
                "coherent_change",
                "low",
                None if max_coherence_loss is None else -max_coherence_loss,
                1,
            ),
            ("coherent", "low", min_coherent, 1),
            ("kl", "high", max_kl, -1),
        )
        if limit is not None
    ]
    if not bounds:
        raise InputError("no bound came; pass max_coherence_loss, min_coherent or max_kl")
    lacking = [
        name
        for name in ("coefficient", *(bound[0] for bound in bounds))
        if name not in table.columns
    ]
    if lacking:
        raise InputError(
            f"table lacks the column {lacking[0]!r}; it has {', '.join(map(str, table.columns))}"
        )
    rows = table.sort_values("coefficient", kind="stable").reset_index(drop=True)
    grid = rows["coefficient"].to_numpy(dtype=float)
    if not len(grid) or len(set(grid)) != len(grid):
        raise InputError(
            f"table has {len(grid)} rows with {len(set(grid))} coefficients;"
            " pass one row a coefficient, at least one"
        )

    def broken(i: int) -> str:
        for column, end, limit, sign in bounds:
            value = float(rows[column][i])
            worst = (
                float(rows[f"{column}_{end}"][i]) if f"{column}_{end}" in rows.columns else value
            )
            worst = value if np.isnan(worst) else worst
            if not sign * worst >= sign * limit:
                return f"{column} {worst:.3g} at {grid[i]:g}, bound {limit:g}"
        return ""

    start = int(np.abs(grid).argmin())
    if broken(start):
        return UsableWindow((), {"below": broken(start), "above": broken(start)})
    first = last = start
    while first > 0 and not broken(first - 1):
        first -= 1
    while last < len(grid) - 1 and not broken(last + 1):
        last += 1
    ended = {
        "below": broken(first - 1) if first > 0 else "",
        "above": broken(last + 1) if last < len(grid) - 1 else "",
    }
    return UsableWindow(tuple(float(c) for c in grid[first : last + 1]), ended)
