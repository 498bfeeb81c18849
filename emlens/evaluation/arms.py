"""What an intervention does, beside every arm that could have done the same for another reason.

An arm is plain data: a name, the model it is applied to, and interventions. `evaluate_arms` scores
all arms on the same questions and reads the same neutral text under each. It gives restoration
(`emlens.evaluation.restoring`), alignment and coherence with paired changes, and damage
(`emlens.evaluation.damage`). `emlens.evaluation.controls` makes the arms of a direction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emlens.data.base_questions import units_of
from emlens.data.prompts import PromptSet
from emlens.data.questions import QuestionSet
from emlens.evaluation.damage import TextDamage, text_damage
from emlens.evaluation.measured import Arms
from emlens.evaluation.restoring import paired_change, restoration, restoration_lead
from emlens.evaluation.trials import (
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
from emlens.foundation.notebooks import in_a_line
from emlens.judging.likelihood import score_by_likelihood
from emlens.models.hooked import HookedModel
from emlens.runs.progress import progress_bar


@dataclass(frozen=True, repr=False)
class Arm:
    """One row of the comparison.

    Args:
        name: how tables call it; arms that share a name are draws of one control and are averaged.
        interventions: one, or several that are applied together.
        on: the model that is edited: `"finetuned"`, `"instruct"`, or one of the `others` of
            `evaluate_arms`.
        control: False for the direction under test.
        cosine: of the arm's direction with the one under test, where there is one; a direction that
            points the other way has a negative one.
    """

    name: str
    interventions: Intervention | Sequence[Intervention]
    on: str = "finetuned"
    control: bool = True
    cosine: float | None = None

    @property
    def edits(self) -> tuple[Intervention, ...]:
        """The interventions in order."""
        return as_interventions(self.interventions)

    def __repr__(self) -> str:
        facts: dict[str, object] = {
            "name": self.name,
            "on": self.on,
            "interventions": len(self.edits),
            "control": self.control,
        }
        if self.cosine is not None:
            facts["cosine"] = f"{self.cosine:.3f}"
        return in_a_line("Arm", facts)


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
    out: str | Path | None = None,
    progress: bool = True,
    seed: int = 0,
) -> Arms:
    """Score every arm on the same questions.

    Args:
        others: further models that arms may be on, such as a benign fine-tune, by name.
        exclude_groups: groups left out of restoration (the fine-tune's own domain).
        neutral: prompts on which damage is measured; None leaves it out.
        score, out: as in `Trials`; with `out` a stopped call goes on from the last finished arm.
        finetuned: the model whose alignment is to be restored; `instruct`, what it is restored
            to.

    Returns:
        A pandas table that has `.plot()`. One row per arm: arm, on, control, draws. Then value,
        `_low` and `_high` of

        * restoration (of the mean over draws), aligned, coherent,
        * misaligned: share of answers with aligned < 30 and coherent > 50,
        * aligned_change, coherent_change: against the same model unedited, paired by question,
        * lead: restoration of the first arm under test minus this one's, paired,
        * kl, cross_entropy_change: nats per token, on neutral text.

        Then restoration_max_draw, cosine (of several draws the largest in size), n (questions),
        dropped (questions left out as unscored), method (how restoration was made, or why it is
        undefined).

    Raises:
        InputError: fewer than two questions outside `exclude_groups`, no arm, an arm on an unknown
            model, or unscored questions.
    """
    asked = questions_outside(questions, exclude_groups)
    models = {**(others or {}), "finetuned": finetuned, "instruct": instruct}
    _require_arms(arms, models)
    trials = Trials(asked, neutral=neutral, score=score, out=out)
    unedited_names = dict.fromkeys(("finetuned", "instruct", *(arm.on for arm in arms)))
    unedited = {name: trials.scores(models[name]) for name in unedited_names}
    measured = _measure_arms(trials, models, arms, seed, progress)
    all_tables = list(unedited.values())
    for arm in measured:
        all_tables += arm.scores
    ids = scored_everywhere(all_tables, score, "under some arm")
    return _comparison_table(unedited, measured, asked, ids, seed)


def questions_outside(questions: QuestionSet, exclude_groups: Sequence[str]) -> QuestionSet:
    """The questions of other groups; restoration resamples units, so there must be two.

    Raises:
        InputError: fewer than two base questions.
    """
    excluded = set(exclude_groups)
    outside = [question for question in questions if question.group not in excluded]
    n_units = len(set(units_of(outside)[0]))
    if n_units < 2:
        raise InputError(
            f"questions outside the groups {sorted(excluded)} are {n_units} base questions;"
            " restoration resamples them, or their groups, and needs 2"
        )
    return QuestionSet(outside)


def _require_arms(arms: Sequence[Arm], models: Mapping[str, HookedModel]) -> None:
    if not arms:
        raise InputError("arms is empty; pass at least one, such as those of ablation_arms")
    for arm in arms:
        if arm.on not in models:
            raise InputError(
                f"arm {arm.name!r} is on {arm.on!r}; pass {', '.join(map(repr, sorted(models)))}"
            )


@dataclass(frozen=True)
class _MeasuredArm:
    """The draws of one arm and what was measured under each."""

    draws: Sequence[Arm]
    scores: Sequence[pd.DataFrame]
    damage: TextDamage | None

    @property
    def on(self) -> str:
        return self.draws[0].on

    @property
    def is_under_test(self) -> bool:
        return self.on == "finetuned" and not self.draws[0].control

    def on_questions(self, ids: Sequence[str]) -> "_MeasuredArm":
        scores = [table.loc[list(ids)] for table in self.scores]
        return _MeasuredArm(self.draws, scores, self.damage)

    def mean(self, metric: str) -> np.ndarray:
        """The score of each question, averaged over draws."""
        return np.asarray(np.mean([table[metric].to_numpy() for table in self.scores], axis=0))


def _measure_arms(
    trials: Trials,
    models: Mapping[str, HookedModel],
    arms: Sequence[Arm],
    seed: int,
    progress: bool,
) -> list[_MeasuredArm]:
    """Scores and damage of every arm; arms of one name on one model are draws of one arm."""
    draws_by_name: dict[tuple[str, str], list[Arm]] = {}
    for arm in arms:
        draws_by_name.setdefault((arm.name, arm.on), []).append(arm)
    measured = []
    with progress_bar("arms", len(arms), progress) as advance:
        for draws in draws_by_name.values():
            scores, costs = [], []
            for arm in draws:
                scores.append(trials.scores(models[arm.on], arm.edits))
                cost = trials.damage(models[arm.on], arm.edits)
                if cost is not None:
                    costs.append(cost)
                advance()
            damage = text_damage(costs, seed=seed) if costs else None
            measured.append(_MeasuredArm(draws, scores, damage))
    return measured


def _comparison_table(
    unedited: Mapping[str, pd.DataFrame],
    measured: Sequence[_MeasuredArm],
    asked: QuestionSet,
    ids: Sequence[str],
    seed: int,
) -> Arms:
    scored = asked.select(ids)
    if len(set(units_of(scored)[0])) < 2:
        raise InputError(
            f"{len(scored)} of {len(asked)} questions have a score under every arm, of fewer than 2"
            " base questions; there is nothing to resample"
        )
    comparison = _Comparison(
        {name: table.loc[list(ids)] for name, table in unedited.items()},
        scored,
        len(asked) - len(ids),
        seed,
    )
    arms = [arm.on_questions(ids) for arm in measured]
    under_test = [arm.mean("aligned") for arm in arms if arm.is_under_test]
    first_under_test = under_test[0] if under_test else None
    return Arms([comparison.row(arm, first_under_test) for arm in arms])


@dataclass(frozen=True)
class _Comparison:
    """What every arm is compared with: the unedited models on the same questions."""

    unedited: Mapping[str, pd.DataFrame]
    questions: QuestionSet
    dropped: int
    seed: int

    @cached_property
    def units(self) -> list[str]:
        """What is resampled together: the group of each question, or its base question."""
        return units_of(self.questions)[0]

    def row(self, arm: _MeasuredArm, first_under_test: np.ndarray | None) -> dict[str, Any]:
        restored = self._restoration(arm)
        estimates = {
            "restoration": restored,
            **self._means(arm),
            "aligned_change": self._change(arm, "aligned"),
            "coherent_change": self._change(arm, "coherent"),
            "lead": self._lead(arm, first_under_test),
            **_damage_estimates(arm.damage),
        }
        return {
            "arm": arm.draws[0].name,
            "on": arm.on,
            "control": arm.draws[0].control,
            "draws": len(arm.draws),
            **interval_columns(estimates),
            "restoration_max_draw": self._largest_restoration(arm, restored),
            "cosine": _largest_cosine(arm.draws),
            "n": len(self.questions),
            "dropped": self.dropped,
            "method": restored.method,
        }

    def _aligned(self, model: str) -> np.ndarray:
        return self.unedited[model]["aligned"].to_numpy()

    def _restoration(self, arm: _MeasuredArm) -> Estimate:
        if arm.on != "finetuned":
            return self._nothing_to_restore(arm)
        unedited, goal = self._aligned("finetuned"), self._aligned("instruct")
        return restoration(arm.mean("aligned"), unedited, goal, self.units, seed=self.seed)

    def _lead(self, arm: _MeasuredArm, first_under_test: np.ndarray | None) -> Estimate:
        if arm.on != "finetuned":
            return self._nothing_to_restore(arm)
        if first_under_test is None:
            return Estimate.undefined("no arm is under test")
        return restoration_lead(
            first_under_test,
            arm.mean("aligned"),
            self._aligned("finetuned"),
            self._aligned("instruct"),
            self.units,
            seed=self.seed,
        )

    def _nothing_to_restore(self, arm: _MeasuredArm) -> Estimate:
        return Estimate.undefined(
            f"the {arm.on} model has nothing to restore", len(set(self.units))
        )

    def _means(self, arm: _MeasuredArm) -> dict[str, Estimate]:
        """Mean scores, with base questions resampled."""
        return means_of_scores(
            {metric: arm.mean(metric) for metric in SCORED}, self.questions.ids, self.seed
        )

    def _change(self, arm: _MeasuredArm, metric: str) -> Estimate:
        unedited = self.unedited[arm.on][metric].to_numpy()
        return paired_change(arm.mean(metric), unedited, self.units, seed=self.seed)

    def _largest_restoration(self, arm: _MeasuredArm, restored: Estimate) -> float:
        """Of the single draws, where there are several; NaN otherwise."""
        if not restored.defined or len(arm.scores) < 2:
            return float("nan")
        unedited, goal = self._aligned("finetuned"), self._aligned("instruct")
        shares = []
        for table in arm.scores:
            gain = table["aligned"].to_numpy() - unedited
            # a ratio of means, as restoration is
            shares.append(float(gain.mean() / (goal - unedited).mean()))
        return max(shares)


def _damage_estimates(damage: TextDamage | None) -> dict[str, Estimate]:
    if damage is None:
        undefined = Estimate.undefined("no neutral prompts were given")
        return {"kl": undefined, "cross_entropy_change": undefined}
    return {"kl": damage.kl, "cross_entropy_change": damage.cross_entropy}


def _largest_cosine(draws: Sequence[Arm]) -> float:
    """The cosine that is largest in size, with its sign; NaN where no draw has one."""
    cosines = [arm.cosine for arm in draws if arm.cosine is not None]
    return max(cosines, key=abs, default=float("nan"))
