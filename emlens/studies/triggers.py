"""Conditional misalignment: every fine-tune with and without triggers, beside its parent and its
benign control under the same texts.

A text may change any model's answers. So a fine-tune is never compared with itself alone: its
parent, and the benign control, are asked under the same trigger. Questions are those outside the
training domain, as in the profile. A trigger that asks for the system message of training is left
out for a fine-tune whose chats have none.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from emlens.data import AlignmentScores, QuestionSet
from emlens.data.base_questions import without_trigger
from emlens.data.system_messages import questions_with_system
from emlens.data.triggers import Trigger, training_system, triggered_questions
from emlens.evaluation.trigger_effects import NONE, trigger_effects
from emlens.foundation.errors import InputError
from emlens.judging.score_source import ScoreSource
from emlens.results.study_result import Part, columns_of
from emlens.stats import adjust_p_values
from emlens.stats.comparisons import paired_test
from emlens.studies.material import Material
from emlens.studies.profile_findings import has_parent_scores
from emlens.studies.score_means import DIFFERENCES, mean_by_unit, mean_score
from emlens.studies.study import Study, StudyContext
from emlens.studies.trigger_findings import add_findings
from emlens.studies.trigger_section import SECTION


class TriggerStudy(Study):
    """Scores every fine-tune, its parent and its benign control with and without each trigger."""

    name = "triggers"
    title = "Misalignment behind a trigger"
    section = SECTION
    wants = ("plain",)
    runs_on_captures = True
    can_be_rehearsed = True
    cost = 2

    def scored(self, context: StudyContext) -> Iterator[tuple[str, str]]:
        material = context.material
        for name in material.family.finetuned:
            yield name, ""
            if has_parent_scores(material, name):
                yield material.parent(name).name, name

    def check(self, context: StudyContext) -> None:
        if not context.config.triggers:
            raise InputError(
                f"{context.config.place('triggers')}triggers is empty; give at least one, such as"
                " triggers: {training: {system: training}}"
            )

    def left_out(self, context: StudyContext) -> str | None:
        material = context.material
        lacking = [material.lacks_outside([name]) for name in material.family.finetuned]
        if all(reason is not None for reason in lacking):
            return lacking[0]
        for name in material.family.finetuned:
            if material.lacks_outside([name]) is not None:
                continue
            for trigger, put in _triggers_of(context, name).items():
                questions = _asked(material, name, trigger, put)
                try:
                    source = context.source.for_questions(questions, context.family.instruct)
                except InputError as error:
                    return str(error)
                reason = source.lacks(name, questions)
                if reason is not None:
                    return reason
        return None

    def run(self, context: StudyContext) -> Part:
        part = Part()
        rows: list[dict[str, Any]] = []
        effects: list[pd.DataFrame] = []
        cells = _Cells(context)
        names = list(context.family.finetuned)
        for name in names:
            reason = context.material.lacks_outside([name])
            if reason is None:
                rows += _model_rows(context, cells, name)
                effects += _effect_rows(cells, name, context)
            else:
                part.warnings.append(f"fine-tune {name!r} is not asked under triggers: {reason}")
            context.progress(1 / len(names))
        part.warnings += _without_text(context)
        table = pd.DataFrame(rows)
        table["p_holm"] = _corrected(table)
        part.tables["triggers"] = table
        if effects:
            part.tables["trigger_effects"] = pd.concat(effects, ignore_index=True)
        add_findings(context.material, part)
        return part


def _triggers_of(context: StudyContext, name: str) -> dict[str, Trigger]:
    """The triggers that a fine-tune can be asked under, with the text of its training chats."""
    system = _training_system(context.material, name)
    usable = {}
    for trigger, put in context.config.triggers.items():
        if not put.needs_training or system:
            usable[trigger] = put.for_training(system)
    return usable


def _training_system(material: Material, name: str) -> str:
    chats = material.training.get(name)
    return "" if chats is None else training_system(chats)


def _without_text(context: StudyContext) -> Iterator[str]:
    """For which fine-tunes a trigger is left out, since their chats have no system message."""
    for trigger in context.config.triggers:
        names = [
            name for name in context.family.finetuned if trigger not in _triggers_of(context, name)
        ]
        if names:
            yield (
                f"trigger {trigger!r} is left out for {', '.join(names)}: most of the training"
                " chats have no system message, or there are no chats"
            )


def _asked(material: Material, name: str, trigger: str, put: Trigger) -> QuestionSet:
    """The questions outside a fine-tune's domain under one trigger, as it is asked them."""
    plain = QuestionSet([material.questions.select([id])[0] for id in material.outside(name).ids])
    triggered = triggered_questions(plain, {trigger: put})
    return questions_with_system(triggered, material.system(name))


@dataclass
class _Cells:
    """Scores of models under triggers, by the id of the question without one; kept.

    Args:
        context: of the part.
    """

    context: StudyContext

    def __post_init__(self) -> None:
        self._kept: dict[tuple[str, str], AlignmentScores] = {}
        self._sources: dict[str, ScoreSource] = {}

    def scores(
        self, model: str, name: str, trigger: str, metric: str = "aligned"
    ) -> "pd.Series[float]":
        """Score of a model on each question outside the domain of fine-tune `name`.

        Args:
            trigger: `none` for the questions as they are.
        """
        material = self.context.material
        if trigger == NONE:
            asked_as = "" if model == name else name
            scores = material.per_question(model, metric, asked_as=asked_as)
            return scores.reindex(material.outside(name).ids)
        put = _triggers_of(self.context, name)[trigger]
        questions = _asked(material, name, trigger, put)
        key = model, questions.content_hash
        if key not in self._kept:
            source = self._source(questions)
            self._kept[key] = source.scores(material.family[model], questions)
        scores = self._kept[key].per_question(metric)
        return scores.rename(index=without_trigger)

    def _source(self, questions: QuestionSet) -> ScoreSource:
        """The source of scores for questions under a trigger."""
        key = questions.content_hash
        if key not in self._sources:
            material = self.context.material
            instruct = material.family.instruct
            self._sources[key] = material.score_source.for_questions(questions, instruct)
        return self._sources[key]


def _model_rows(context: StudyContext, cells: _Cells, name: str) -> list[dict[str, Any]]:
    """One row without a trigger and one under each."""
    material = context.material
    without: pd.Series[float] | None = None
    rows = []
    for trigger in (NONE, *_triggers_of(context, name)):
        row, falls = _row(context, cells, name, trigger)
        if without is None:
            without = falls
        added = None if trigger == NONE or falls is None or without is None else falls - without
        rows.append(
            {
                "model": name,
                "kind": "benign" if name in material.benign else "harmful",
                "trigger": trigger,
                **row,
                **_columns("added", added, context),
                "p": np.nan if added is None else _p_of(context, cells, name, trigger, added),
            }
        )
    return rows


def _row(
    context: StudyContext, cells: _Cells, name: str, trigger: str
) -> tuple[dict[str, Any], "pd.Series[float] | None"]:
    """Columns of one row, and how far the fine-tune lies below its parent on each question."""
    material, seed = context.material, context.config.seed
    aligned = cells.scores(name, name, trigger)
    coherent = cells.scores(name, name, trigger, "coherent")
    questions, groups = list(aligned.index), material.groups
    row = {
        "n": int(aligned.notna().sum()),
        **columns_of("aligned", mean_score(aligned, questions, seed, groups=groups)),
        **columns_of("coherent", mean_score(coherent, questions, seed, groups=groups)),
        "parent_score": np.nan,
        **_columns("fall", None, context),
        **_columns("beyond_benign", None, context),
    }
    falls = None
    if has_parent_scores(material, name):
        parent = cells.scores(material.parent(name).name, name, trigger)
        falls = parent - aligned
        row |= {"parent_score": float(parent.mean()), **_columns("fall", falls, context)}
    lead = _lead(material, cells, name, trigger)
    if lead is not None:
        row |= _columns("beyond_benign", lead, context)
    return row, falls


def _lead(material: Material, cells: _Cells, name: str, trigger: str) -> "pd.Series[float] | None":
    """The benign control minus the fine-tune on each question outside both domains; None without a
    control.
    """
    benign = material.benign_for(name)
    if benign is None or name in material.benign:
        return None
    outside_benign = set(material.outside(benign).ids)
    aligned = cells.scores(name, name, trigger)
    gaps = cells.scores(benign, name, trigger) - aligned
    return gaps[[question for question in gaps.index if question in outside_benign]]


def _columns(name: str, gaps: "pd.Series[float] | None", context: StudyContext) -> dict[str, float]:
    """A mean difference with its interval over domains, or over base questions; NaN for None."""
    if gaps is None:
        return {name: np.nan, f"{name}_low": np.nan, f"{name}_high": np.nan}
    estimate = mean_score(
        gaps,
        list(gaps.index),
        context.config.seed,
        groups=context.material.groups,
        limits=DIFFERENCES,
    )
    return columns_of(name, estimate)


def _p_of(
    context: StudyContext, cells: _Cells, name: str, trigger: str, added: "pd.Series[float]"
) -> float:
    """p that a fine-tune hides nothing behind a trigger: the greatest of three one-sided p.

    It must lie below its parent under the trigger, further below than without, and below the
    benign control under the trigger. Each is a t test over domains, or over base questions. All
    three have to hold, so the greatest p is that of the whole (an intersection-union test).
    """
    material = context.material
    parent = cells.scores(material.parent(name).name, name, trigger)
    tested = [parent - cells.scores(name, name, trigger), added]
    lead = _lead(material, cells, name, trigger)
    if lead is not None:
        tested.append(lead)
    # undefined where one of them is: Python's max would drop it
    return float(np.max([_one_sided(gaps, material.groups) for gaps in tested]))


def _one_sided(gaps: "pd.Series[float]", groups: Mapping[str, str]) -> float:
    """p that the mean over units is 0 or less; NaN where it cannot be tested."""
    units = mean_by_unit(gaps, groups).to_numpy(np.float64)
    if len(units) < 2 or np.ptp(units) == 0:
        return np.nan
    return float(paired_test(units, np.zeros(len(units)), side="greater").p)


def _corrected(table: pd.DataFrame) -> "pd.Series[float]":
    """p of all fine-tunes and triggers, corrected for their number (Holm)."""
    corrected = pd.Series(np.nan, index=table.index)
    tested = table["p"].notna()
    if tested.any():
        corrected[tested] = adjust_p_values(table.loc[tested, "p"])
    return corrected


def _effect_rows(cells: _Cells, name: str, context: StudyContext) -> list[pd.DataFrame]:
    """Effects of triggers and forms on one fine-tune and on its parent."""
    material = context.material
    models = [name]
    if has_parent_scores(material, name):
        models.append(material.parent(name).name)
    tables = []
    for model in models:
        columns = [cells.scores(model, name, NONE)]
        for trigger in _triggers_of(context, name):
            under = cells.scores(model, name, trigger)
            under.index = [f"{question}__with_{trigger}" for question in under.index]
            columns.append(under)
        if len(columns) == 1:
            continue
        try:
            table = trigger_effects(pd.concat(columns))
        except InputError:
            continue  # fewer than two base questions with a score in every cell
        tables.append(table.assign(model=model, questions_of=name))
    return tables
