"""Which direction carries the misalignment, what removing it does, and whether it works in other
fine-tunes.

Extracted, selected and reported on disjoint questions. Candidates are a fine-tune's shifts against
its parent on prompts, as they are and whitened, at every layer and position, and, where scores come
with answers, the contrasts of its judged answers; one is selected on the selection questions among
layers ≤ L−2, because a direction that works only after the last block is a readout. The same
extraction at the last layer is reported beside it. Every arm removes its direction where attention
and MLP write, towards the parent's mean (`emlens.evaluation.ablation_forms`); the direction itself
is also removed after every block, plainly and towards that mean. The measuring is done in
`emlens.evaluation`; what is measured is on disk at once. Judged files know no intervention: from
them the contrasts are extracted and described, and nothing is selected or removed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field
from torch import Tensor

from emlens.data import QuestionSet
from emlens.data.base_questions import units_of
from emlens.data.system_messages import questions_with_system
from emlens.evaluation import (
    QuestionRoles,
    affine_form,
    dose_response,
    transfer_matrix,
    unembedding_contrast,
    usable_window,
)
from emlens.evaluation.dosing import UsableWindow
from emlens.evaluation.measurements import shared_measurements
from emlens.evaluation.selecting import MAX_KL
from emlens.foundation.errors import InputError
from emlens.geometry import Direction, random_directions_like
from emlens.interventions import steer
from emlens.results.study_result import Part
from emlens.studies.answer_candidates import AnswerCandidates, candidates_of_focus
from emlens.studies.answer_tokens import answer_tokens
from emlens.studies.config import Options as PartOptions, StudyConfig
from emlens.studies.direction_arms import (
    CHOSEN,
    LAST,
    CandidatesOfFineTune,
    measured_arms,
)
from emlens.studies.direction_candidates import (
    Candidates,
    by_layer,
    choose,
    is_last,
    scored_candidates,
)
from emlens.studies.direction_findings import add_findings, controls_of, nothing_chosen
from emlens.studies.direction_section import SECTION
from emlens.studies.extractions import at_every_layer
from emlens.studies.material import Material, split_questions
from emlens.studies.rehearsal import RehearsedScores
from emlens.studies.shift_candidates import shift_candidates
from emlens.studies.study import Study, StudyContext

DOSES = (0.0, 0.5, 1.0, 2.0, 4.0)
TABLES = ("candidates", "directions", "arms", "steering", "windows")
MEASURED = "measured"
"""Folder of what was measured under edits, in the part's own: a run that was cut measures none of
it again.
"""


class Options(PartOptions):
    """What `direction_transfer` reads."""

    contrasts: tuple[Literal["answers", "models", "both"], ...] = ("answers", "models", "both")
    """Which contrasts of judged answers are candidates, where scores come with answers: misaligned
    minus aligned answers; fine-tune minus parent on misaligned answers; fine-tune on misaligned
    minus parent on aligned ones. Each adds as many candidates as there are layers.
    """
    weighting: Literal["token", "example"] = "token"
    """Of means over answers: every token counts the same, or every answer."""
    least_answers: int = Field(10, ge=2)
    """Answers that each class must have; with fewer there is no contrast."""
    ray_actors: int = Field(0, ge=0)
    """Actors of a Ray cluster that measure the arms; 0 measures them in this process."""


class DirectionTransfer(Study):
    """Which direction carries the misalignment, and what does removing it do?"""

    name = "direction_transfer"
    title = "Which direction carries the misalignment, and what does removing it do?"
    options = Options
    section = SECTION
    needs_outside = True
    wants = ("plain",)
    can_be_rehearsed = True
    cost = 9

    def left_out(self, context: StudyContext) -> str | None:
        """Without interventions and without answers there is nothing to do."""
        no_arms, no_answers = context.source.can("interventions"), context.source.can("answers")
        if no_arms is not None and no_answers is not None:
            return f"{no_arms}; {no_answers}"
        if no_arms is not None:
            return None
        return _too_few_questions(context)

    def run(self, context: StudyContext) -> Part:
        # a rehearsal measures nothing that a run may find
        kept_in = None if isinstance(context.source, RehearsedScores) else context.folder / MEASURED
        # candidates, arms, doses and transfers ask for the same models and edits
        with shared_measurements(kept_in):
            return self._run(context)

    def _run(self, context: StudyContext) -> Part:
        material, config = context.material, context.config
        options: Options = context.options
        part, focus = Part(), material.focus(config)
        roles = QuestionRoles(*split_questions(material.questions, config.shares, config.seed))
        part.tables["question_sets"] = roles.table
        answers = candidates_of_focus(
            context,
            focus,
            roles.extract,
            part,
            kinds=options.contrasts,
            weighting=options.weighting,
            least=options.least_answers,
        )
        no_arms = context.source.can("interventions")
        if no_arms is not None:
            part.warnings.append(f"arms, doses and transfer are left out: {no_arms}")
            return part
        contrasts = _contrasts(material, focus, roles.extract, part)
        tables: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
        candidates: dict[str, Candidates] = {}
        chosen: dict[str, Direction] = {}
        for name in focus:
            candidates[name] = _candidates(material, name, roles, config, answers.get(name))
            contrast = contrasts.get(material.parent(name).name)
            fine_tune = CandidatesOfFineTune(
                name,
                material,
                config,
                roles,
                candidates[name],
                contrast,
                options.ray_actors,
                context.folder,
            )
            best = _add_candidates(fine_tune, tables, part)
            context.progress(0.25 / len(focus))
            if best is None:
                part.findings.append(nothing_chosen(name, tables["candidates"][-1]))
                context.progress(0.65 / len(focus))
                continue
            chosen[name] = candidates[name].directions[best]
            measured = {CHOSEN: best}
            deepest = list(at_every_layer(candidates[name].directions, best))[-1]
            if is_last(candidates[name].directions[deepest], fine_tune.parent):
                measured[LAST] = deepest
            for role, key in measured.items():
                tables["arms"].append(measured_arms(fine_tune, key, role))
                context.progress(0.2 / len(focus))
            steering, windows = _steering(fine_tune, best)
            tables["steering"].append(steering)
            tables["windows"].append(windows)
            context.progress(0.25 / len(focus))
        for table, frames in tables.items():
            if frames:
                part.tables[table] = pd.concat(frames, ignore_index=True)
        if chosen:
            part.tables["transfer"] = _transfer(
                material, chosen, candidates, roles.report, part.tables["arms"], config
            )
            add_findings(part, material)
            tokens = answer_tokens(material, chosen, roles.report)
            if len(tokens):
                part.tables["answer_tokens"] = tokens
        _warn(part, material, focus, roles.report)
        return part


def _too_few_questions(context: StudyContext) -> str | None:
    """Why the questions cannot be divided into three uses; None where they can.

    Restoration resamples base questions, or their groups, outside a fine-tune's domain: two of them
    are needed to select and two to report.
    """
    material, config = context.material, context.config
    try:
        _, select, report = split_questions(material.questions, config.shares, config.seed)
    except InputError as error:
        return str(error)
    for name in material.focus(config):
        outside = set(material.outside(name).ids)
        for use, questions in (("select", select), ("report", report)):
            units = set(units_of([q for q in questions if q.id in outside])[0])
            if len(units) < 2:
                return (
                    f"to {use} a direction of {name!r} there are {len(units)} base questions, or"
                    " groups of them, outside its domain, and 2 are needed; add questions, or"
                    " change shares"
                )
    return None


def _candidates(
    material: Material,
    name: str,
    roles: QuestionRoles,
    config: StudyConfig,
    answers: AnswerCandidates | None,
) -> Candidates:
    """All candidates of a fine-tune, those from prompts first."""
    shifts = shift_candidates(material, name, roles.extract, config)
    form = affine_form(material.parent(name), material.untrained(roles.extract, name))
    return Candidates(form, (shifts,) if answers is None else (shifts, answers))


def _warn(part: Part, material: Material, focus: Sequence[str], report: QuestionSet) -> None:
    """Warnings of few domains and of what is missing beside the tables."""
    units, kind = units_of(report)
    n = len(set(units))
    if n < 10:
        what = {"group": "domains", "question": "base questions"}[kind]
        part.warnings.append(
            f"restoration resamples {n} {what}; with fewer than 10 its interval is too short"
        )
    if any(material.benign_for(name) is None for name in focus):
        part.warnings.append(
            "a fine-tune in focus has no benign fine-tune of the same parent:"
            " the arm with its direction is missing"
        )
    if material.neutral is None:
        part.warnings.append("no neutral text: damage (KL) is missing")


def _contrasts(
    material: Material, names: Sequence[str], questions: QuestionSet, part: Part
) -> dict[str, Tensor]:
    """Unembedding contrast of each parent, where its reference answers differ in their first
    token.
    """
    contrasts = {}
    for parent in sorted({material.parent(name).name for name in names}):
        try:
            contrasts[parent] = unembedding_contrast(material.family[parent], questions)
        except InputError as error:
            part.warnings.append(f"{parent}: {error}; the arms with it are missing")
    return contrasts


def _add_candidates(
    fine_tune: CandidatesOfFineTune, tables: dict[str, list[pd.DataFrame]], part: Part
) -> str | None:
    """Score every candidate on the selection questions; the key of the one that is chosen, if
    any.
    """
    material, name, candidates = fine_tune.material, fine_tune.name, fine_tune.candidates
    scored = scored_candidates(material, name, candidates, fine_tune.roles.select, fine_tune.config)
    best = choose(scored, name, material, part)
    scored = scored.assign(chosen=scored.index == best)
    table = scored.reset_index(names="candidate")
    table.insert(0, "model", name)
    tables["candidates"].append(table)
    if best is None:
        return None
    tables["directions"].append(
        by_layer(material, name, candidates, best, scored, fine_tune.contrast, fine_tune.config)
    )
    return best


def _steering(fine_tune: CandidatesOfFineTune, key: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Dose–response: the direction added to the parent and subtracted in the fine-tune, beside a
    random direction of the same length.

    The second table has the window of doses in which coherence stays and damage is bounded.
    """
    questions = QuestionSet([q for q in fine_tune.report if q.group not in fine_tune.excluded])
    direction = fine_tune.candidates.directions[key]
    site, seed = str(direction.site), fine_tune.config.seed
    before, _ = fine_tune.candidates.origin(key).rows(key)
    random = random_directions_like(before.double(), 1, seed=seed)[0] * direction.norm
    vectors = {
        "direction": direction.vector.double(),
        "random, activation covariance": random,
    }
    doses, windows = [], []
    for label, vector in vectors.items():
        for model, sign in ((fine_tune.parent, 1.0), (fine_tune.model, -1.0)):
            place = {"model": fine_tune.name, "steered": model.name, "vector": label, "site": site}
            table = dose_response(
                model,
                questions,
                _steer_at(site, vector),
                [sign * dose for dose in DOSES],
                neutral=fine_tune.material.neutral,
                score=fine_tune.material.score_of_edits,
                progress=False,
                seed=seed,
            )
            window = _window(table, fine_tune.material.neutral is not None)
            windows.append({**place, **_window_columns(window)})
            for number, (column, value) in enumerate(place.items()):
                table.insert(number, column, value)
            table["usable"] = table["coefficient"].isin(window.coefficients)
            doses.append(table)
    return pd.concat(doses, ignore_index=True), pd.DataFrame(windows)


def _steer_at(site: str, vector: Tensor) -> Callable[[float], list[Any]]:
    """Dose → the intervention that adds so much of the vector at a site; of none there is none."""
    return lambda dose: [steer(vector, dose, at=[site])] if dose else []


def _window(table: pd.DataFrame, has_neutral: bool) -> UsableWindow:
    """The doses in which coherence stays and, where it was measured, damage is bounded."""
    return usable_window(table, max_kl=MAX_KL if has_neutral else None)


def _window_columns(window: UsableWindow) -> dict[str, Any]:
    """The ends of the window, and for either end what ended it."""
    columns: dict[str, Any] = {"dose_low": window.low, "dose_high": window.high}
    for side, reason in window.ended.items():
        columns[f"ended_{side}"] = reason
    return columns


def _transfer(
    material: Material,
    chosen: dict[str, Direction],
    candidates: Mapping[str, Candidates],
    report: QuestionSet,
    arms: pd.DataFrame,
    config: StudyConfig,
) -> pd.DataFrame:
    """Restoration in fine-tune j by the direction of fine-tune i, on questions outside both
    training domains.

    Beside it the strongest control of fine-tune j at its own chosen layer, from the table of arms;
    missing where i was trained in another domain, since those arms were measured on other
    questions.
    """
    tables = []
    for system in dict.fromkeys(map(material.system, chosen)):
        targets = [name for name in chosen if material.system(name) == system]
        table = transfer_matrix(
            chosen,
            {name: material.family[name] for name in targets},
            {name: material.parent(name) for name in targets},
            questions_with_system(report, system),
            domains={name: material.domain(name) for name in chosen},
            trained=material.trained,
            edit=lambda direction, target: candidates[target].form.remove(direction),
            neutral=material.neutral,
            score=material.score_of_edits,
            progress=False,
            seed=config.seed,
        )
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    strongest = _strongest_controls(arms[arms["role"] == CHOSEN])
    controls = []
    for source, target in zip(table["direction_of"], table["ablated_in"], strict=True):
        same_domain = material.domain(source) == material.domain(target)
        controls.append(strongest[target] if same_domain else np.nan)
    return table.assign(strongest_control=controls)


def _strongest_controls(arms: pd.DataFrame) -> dict[str, float]:
    """Fine-tune → the most that any of its controls restored, single random draws included."""
    columns = ["restoration", "restoration_max_draw"]
    return {
        str(name): float(controls_of(rows)[columns].astype(float).max().max())
        for name, rows in arms.groupby("model")
    }
