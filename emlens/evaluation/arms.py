"""What an intervention does, beside every arm that could have done the same for another reason.

An arm is plain data: a name, the model it is applied to, and interventions. `evaluate_arms` scores
all arms on the same questions and reads the same neutral text under each: restoration
(`emlens.evaluation.restoring`), alignment and coherence with paired changes, and damage
(`emlens.evaluation.damage`). `emlens.evaluation.controls` makes the arms of a direction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from emlens.data.prompts import PromptSet
from emlens.data.questions import QuestionSet
from emlens.evaluation.damage import RESAMPLES, TextDamage, text_damage
from emlens.evaluation.restoring import paired_change, restoration, restoration_lead
from emlens.evaluation.trials import METRICS, Score, Trials
from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.files import one_line
from emlens.foundation.intervention import Intervention
from emlens.judging.likelihood import score_by_likelihood
from emlens.models.hooked import HookedModel
from emlens.runs.progress import progress_bar
from emlens.stats import bootstrap_mean


@dataclass(frozen=True)
class Arm:
    """One row of the comparison.

    Args:
        name: how tables call it; arms that share a name are draws of one control and are averaged.
        interventions: applied together.
        on: the model that is edited: `"finetuned"`, `"instruct"`, or another that `evaluate_arms`
            is given.
        control: False for the direction under test.
        cosine: |cosine| of the arm's direction with the one under test, where that means something.
    """

    name: str
    interventions: tuple[Intervention, ...]
    on: str = "finetuned"
    control: bool = True
    cosine: float | None = None


def evaluate_arms(
    finetuned: HookedModel,
    instruct: HookedModel,
    questions: QuestionSet,
    arms: Sequence[Arm],
    *,
    others: Mapping[str, HookedModel] | None = None,
    exclude_groups: Sequence[str] = (),
    neutral: PromptSet | None = None,
    score: Score = score_by_likelihood,
    score_id: str | None = None,
    unscored: Literal["error", "drop"] = "error",
    out: str | Path | None = None,
    progress: bool = True,
    seed: int = 0,
) -> pd.DataFrame:
    """Score every arm on the same questions.

    Args:
        others: further models that arms may be on, such as a benign fine-tune, by name.
        exclude_groups: groups left out of restoration (the training domain).
        neutral: prompts on which damage is measured; None leaves it out.
        score, score_id, out: as in `Trials`; with `out` a stopped call goes on from the last
            finished arm.
        unscored: a question without a score under some arm is refused, or with `"drop"` left out of
            every arm.

    Returns:
        One row an arm: arm, on, control, draws; then (value, `_low`, `_high`) of restoration (of
            the mean over draws), aligned, coherent,
        misaligned (share of answers with aligned < 30 and coherent > 50), aligned_change and
        coherent_change (against the same model unedited, paired by question), lead (restoration of
        the first arm that is no control minus this one's, paired), kl and cross_entropy_change
        (nats a token, on neutral text); restoration_max_draw, cosine, n (questions), dropped
        (questions left out as unscored), method (how restoration was made, or why it is undefined).

    Raises:
        InputError: questions of fewer than two groups left, no arm, an arm on an unknown model, or
            unscored questions.
    """
    left = [q for q in questions if q.group not in set(exclude_groups)]
    spanned = len({q.group for q in left})
    if spanned < 2:
        raise InputError(
            f"questions outside {sorted(set(exclude_groups))} span {spanned} groups;"
            " restoration resamples groups and needs 2"
        )
    if not arms:
        raise InputError("arms is empty; pass at least one, such as those of ablation_arms")
    if unscored not in ("error", "drop"):
        raise InputError(f"unscored={unscored!r} is unknown; pass 'error' or 'drop'")
    models = {**(others or {}), "finetuned": finetuned, "instruct": instruct}
    for arm in arms:
        if arm.on not in models:
            raise InputError(
                f"arm {arm.name!r} is on {arm.on!r}; pass {', '.join(map(repr, sorted(models)))}"
            )
    trials = Trials(QuestionSet(left), neutral=neutral, score=score, score_id=score_id, out=out)
    by_name: dict[tuple[str, str], list[Arm]] = {}
    for arm in arms:
        by_name.setdefault((arm.name, arm.on), []).append(arm)
    plain = {
        name: trials.scores(models[name])
        for name in dict.fromkeys(("finetuned", "instruct", *(arm.on for arm in arms)))
    }
    scores: dict[tuple[str, str], list[pd.DataFrame]] = {}
    damage: dict[tuple[str, str], TextDamage | None] = {}
    with progress_bar("ablation arms", len(arms), progress) as advance:
        for key, members in by_name.items():
            costs = []
            for arm in members:
                scores.setdefault(key, []).append(trials.scores(models[arm.on], arm.interventions))
                costs.append(trials.damage(models[arm.on], arm.interventions))
                advance()
            damage[key] = (
                text_damage([cost for cost in costs if cost is not None], seed=seed)
                if neutral is not None
                else None
            )
    kept = _scored_everywhere(
        [*plain.values(), *(table for tables in scores.values() for table in tables)], unscored
    )
    groups = dict(zip(trials.questions.ids, trials.questions.groups, strict=True))
    compare = _Comparison(
        {name: table.loc[kept] for name, table in plain.items()},
        [groups[name] for name in kept],
        len(left) - len(kept),
        seed,
    )
    tested = next(
        (
            key
            for key, members in by_name.items()
            if key[1] == "finetuned" and not members[0].control
        ),
        None,
    )
    main = (
        None if tested is None else _mean([table.loc[kept] for table in scores[tested]], "aligned")
    )
    return pd.DataFrame(
        [
            compare.row(members, [table.loc[kept] for table in scores[key]], damage[key], main)
            for key, members in by_name.items()
        ]
    )


def _scored_everywhere(tables: Sequence[pd.DataFrame], unscored: str) -> list[str]:
    """Questions that have both scores in every table."""
    whole = np.all([table.notna().all(axis=1).to_numpy() for table in tables], axis=0)
    names = tables[0].index.to_numpy()
    if not whole.all() and unscored == "error":
        raise InputError(
            f"{int((~whole).sum())} of {len(whole)} questions have no score under some arm,"
            f" the first {one_line(names[~whole][0])!r}; score them,"
            " or pass unscored='drop' to leave them out of every arm"
        )
    return [str(name) for name in names[whole]]


def _mean(tables: Sequence[pd.DataFrame], metric: str) -> np.ndarray:
    """Each question's score, averaged over the draws of one arm."""
    return np.asarray(np.mean([table[metric].to_numpy() for table in tables], axis=0))


@dataclass(frozen=True)
class _Comparison:
    """What every row of the table is held against: the unedited models on the same questions."""

    plain: Mapping[str, pd.DataFrame]
    groups: Sequence[str]
    dropped: int
    seed: int

    def row(
        self,
        members: Sequence[Arm],
        tables: Sequence[pd.DataFrame],
        damage: TextDamage | None,
        main: np.ndarray | None,
    ) -> dict[str, Any]:
        on = members[0].on
        aligned, coherent = (_mean(tables, metric) for metric in METRICS)
        tuned, goal = (self.plain[name]["aligned"].to_numpy() for name in ("finetuned", "instruct"))
        reference = (tuned, goal, self.groups)
        if on != "finetuned":
            restored = lead = Estimate.undefined(
                f"the {on} model has nothing to restore", len(set(self.groups))
            )
        else:
            restored = restoration(aligned, *reference, seed=self.seed)
            lead = Estimate.undefined("no arm is under test")
            if main is not None:
                lead = restoration_lead(main, aligned, *reference, seed=self.seed)
        nothing = Estimate.undefined("no neutral prompts came")
        estimates = {
            "restoration": restored,
            "aligned": bootstrap_mean(aligned, resamples=RESAMPLES, seed=self.seed),
            "coherent": bootstrap_mean(coherent, resamples=RESAMPLES, seed=self.seed),
            "misaligned": bootstrap_mean(
                _mean(tables, "misaligned"), resamples=RESAMPLES, seed=self.seed
            ),
            "aligned_change": self._change(aligned, on, "aligned"),
            "coherent_change": self._change(coherent, on, "coherent"),
            "lead": lead,
            "kl": nothing if damage is None else damage.kl,
            "cross_entropy_change": nothing if damage is None else damage.cross_entropy,
        }
        row: dict[str, Any] = {
            "arm": members[0].name,
            "on": on,
            "control": members[0].control,
            "draws": len(members),
        }
        for label, e in estimates.items():
            row |= {label: e.value, f"{label}_low": e.low, f"{label}_high": e.high}
        cosines = [arm.cosine for arm in members if arm.cosine is not None]
        several = restored.defined and len(tables) > 1
        each = (
            [
                float((_mean([table], "aligned") - tuned).mean() / (goal - tuned).mean())
                for table in tables
            ]
            if several
            else [float("nan")]
        )
        return row | {
            "restoration_max_draw": max(each),
            "cosine": float(np.mean(cosines)) if cosines else float("nan"),
            "n": len(aligned),
            "dropped": self.dropped,
            "method": restored.method,
        }

    def _change(self, edited: np.ndarray, on: str, metric: str) -> Estimate:
        return paired_change(edited, self.plain[on][metric].to_numpy(), self.groups, seed=self.seed)
