"""Which direction carries the misalignment, what removing it does, and whether it works in other
fine-tunes.

Extracted, selected and reported on disjoint questions. Candidates are a fine-tune's shifts against
its parent, as they are and whitened, at every layer and position; one is selected on the selection
questions among layers ≤ L−2, because a direction that works only after the last block is a readout.
The same extraction at the last layer is reported beside it. Every arm removes its direction where
attention and MLP write, towards the parent's mean (`emlens.evaluation.ablation_forms`); the
direction itself is also removed after every block, plainly and towards that mean. The measuring is
done in `emlens.evaluation`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from emlens.activations import capture_many
from emlens.data import QuestionSet
from emlens.evaluation import (
    QuestionRoles,
    ablation_arms,
    affine_form,
    dose_response,
    evaluate_arms,
    text_contrast,
    transfer_matrix,
    unembedding_contrast,
    usable_window,
)
from emlens.evaluation.ablation_forms import BLOCKS, PLAIN
from emlens.evaluation.selecting import MAX_KL
from emlens.foundation.errors import InputError
from emlens.geometry import Direction, random_directions_like
from emlens.interventions import steer
from emlens.results.study_result import Advance, Part
from emlens.studies.config import StudyConfig
from emlens.studies.direction_candidates import (
    Extracted,
    by_layer,
    choose,
    direction_between,
    excluded,
    extract,
    scored_candidates,
)
from emlens.studies.direction_findings import add_findings, controls_of
from emlens.studies.direction_section import SECTION
from emlens.studies.material import Material, split_questions
from emlens.studies.study import Study, StudyContext

DOSES = (0.0, 1.0, 2.0, 4.0)
MASSIVE = 5
CHOSEN, LAST = "chosen on the selection questions", "last layer"


def run(material: Material, config: StudyConfig, advance: Advance) -> Part:
    part = Part()
    roles = QuestionRoles(*split_questions(material.questions, config.shares, config.seed))
    focus = material.focus(config)
    contrast = _contrast(material, focus, roles.extract, part)
    tables: dict[str, list[pd.DataFrame]] = {
        name: [] for name in ("candidates", "directions", "arms", "steering", "windows")
    }
    extracted: dict[str, Extracted] = {}
    chosen: dict[str, Direction] = {}
    for name in focus:
        mine = extracted[name] = extract(material, name, roles.extract, config)
        scored = scored_candidates(material, name, mine, roles.select, config)
        best = choose(scored, name, material, part)
        advance(0.25 / len(focus))
        chosen[name] = mine.candidates[best]
        scored = scored.assign(chosen=scored.index == best)
        tables["candidates"].append(scored.reset_index(names="candidate").assign(model=name))
        tables["directions"].append(
            by_layer(
                material, name, mine, best, scored, contrast.get(material.parent(name).name), config
            )
        )
        for direction, role in (
            (chosen[name], CHOSEN),
            (list(mine.alike(best).values())[-1], LAST),
        ):
            tables["arms"].append(
                _arms(
                    material,
                    name,
                    mine,
                    direction,
                    best.rpartition(", ")[2],
                    role,
                    roles,
                    contrast,
                    config,
                )
            )
            advance(0.2 / len(focus))
        steering, windows = _steering(material, name, mine, chosen[name], roles.report, config)
        tables["steering"].append(steering)
        tables["windows"].append(windows)
        advance(0.25 / len(focus))
    part.tables["question_sets"] = roles.table
    part.tables |= {name: pd.concat(found, ignore_index=True) for name, found in tables.items()}
    part.tables["candidates"].insert(0, "model", part.tables["candidates"].pop("model"))
    part.tables["transfer"] = _transfer(
        material, chosen, extracted, roles.report, part.tables["arms"], config
    )
    add_findings(part, material)
    _warn(part, material, focus, roles.report)
    return part


def _warn(part: Part, material: Material, focus: Sequence[str], report: QuestionSet) -> None:
    if len(set(report.groups)) < 10:
        part.warnings.append(
            f"restoration resamples {len(set(report.groups))} domains;"
            " with fewer than 10 its interval is too short"
        )
    if any(material.benign_for(name) is None for name in focus):
        part.warnings.append(
            "a fine-tune in focus has no benign fine-tune of the same parent:"
            " the arm with its direction is missing"
        )
    if material.neutral is None:
        part.warnings.append("no neutral text: damage (KL) is missing")


def _contrast(
    material: Material, names: Sequence[str], asked: QuestionSet, part: Part
) -> dict[str, Tensor]:
    """Unembedding contrast of each parent, where its reference answers differ in their first
    token.
    """
    found = {}
    for parent in sorted({material.parent(name).name for name in names}):
        try:
            found[parent] = unembedding_contrast(material.family[parent], asked)
        except InputError as error:
            part.warnings.append(f"{parent}: {error}; the arm with it is missing")
    return found


def _arms(
    material: Material,
    name: str,
    mine: Extracted,
    direction: Direction,
    extraction: str,
    role: str,
    roles: QuestionRoles,
    contrasts: Mapping[str, Tensor],
    config: StudyConfig,
) -> pd.DataFrame:
    """Every arm of one direction, on the report questions; of the last layer's without its parts
    and other forms.
    """
    site, whole = str(direction.site), role == CHOSEN
    before, after = mine.rows(direction)
    parent = material.parent(name)
    questions = material.untrained(roles.extract, name)
    benign, others = material.benign_for(name), {}
    benign_direction = None
    if benign is not None:
        others = {"benign": material.family[benign]}
        found = capture_many(
            {"b": parent, "a": others["benign"]},
            questions.prompts(),
            sites=[site],
            positions=str(direction.position),
            progress=False,
        )
        if not torch.equal(found["a"][site], found["b"][site]):
            where: dict[str, Any] = {"site": site, "position": direction.position}
            benign_direction = direction_between(
                extraction, found["a"][site].double(), found["b"][site].double(), **where
            )
    forms = [mine.form]
    if whole:
        blocks = affine_form(parent, questions, sites=BLOCKS, name="affine, after every block")
        forms += [PLAIN, blocks]
    arms = ablation_arms(
        direction,
        instruct_activations=before,
        deltas=after.double() - before.double(),
        forms=forms,
        benign=benign_direction,
        unembedding=contrasts.get(parent.name),
        text_content=text_contrast(parent, questions, site) if whole else None,
        delta_components=(2, 3) if whole else (2,),
        massive=min(MASSIVE, parent.d_model // 2) if whole else 0,
        random_draws=config.random_directions,
        also_on=list(others),
        seed=config.seed,
    )
    table = evaluate_arms(
        material.family[name],
        parent,
        material.untrained(roles.report, name),
        arms,
        others=others,
        exclude_groups=excluded(material, name),
        neutral=material.neutral,
        progress=False,
        seed=config.seed,
    )
    table.insert(0, "model", name)
    table.insert(1, "site", site)
    table.insert(2, "role", role)
    return table


def _steering(
    material: Material,
    name: str,
    mine: Extracted,
    direction: Direction,
    report: QuestionSet,
    config: StudyConfig,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Dose–response: the direction added to instruct and taken from the fine-tune, beside a random
    direction of the same length.

    The second table has the window of doses in which coherence stays and damage is bounded.
    """
    kept = QuestionSet(
        [q for q in material.untrained(report, name) if q.group not in excluded(material, name)]
    )
    site = str(direction.site)
    random = (
        random_directions_like(mine.rows(direction)[0].double(), 1, seed=config.seed)[0]
        * direction.norm
    )
    doses, windows = [], []
    for label, vector in (
        ("direction", direction.vector.double()),
        ("random, activation covariance", random),
    ):
        for model, sign in ((material.parent(name), 1.0), (material.family[name], -1.0)):

            def edit(dose: float, vector: Tensor = vector) -> list[Any]:
                return [steer(vector, dose, at=[site])]

            table = dose_response(
                model,
                kept,
                edit,
                [sign * dose for dose in DOSES],
                neutral=material.neutral,
                progress=False,
                seed=config.seed,
            )
            facts = {"model": name, "steered": model.name, "vector": label, "site": site}
            doses.append(table.assign(**facts))
            window = usable_window(table, max_kl=None if material.neutral is None else MAX_KL)
            windows.append(
                {
                    **facts,
                    "low": window.low,
                    "high": window.high,
                    **{f"ended_{side}": why for side, why in window.ended.items()},
                }
            )
    together = pd.concat(doses, ignore_index=True)
    facts_first = ["model", "steered", "vector", "site"]
    return together[
        facts_first + [c for c in together.columns if c not in facts_first]
    ], pd.DataFrame(windows)


def _transfer(
    material: Material,
    chosen: dict[str, Direction],
    extracted: Mapping[str, Extracted],
    report: QuestionSet,
    arms: pd.DataFrame,
    config: StudyConfig,
) -> pd.DataFrame:
    """Restoration in fine-tune j by the direction of fine-tune i, on questions outside both
    training domains.

    Beside it the strongest control of fine-tune j at its own chosen layer, from the table of arms;
    none where i was trained in another domain, since those arms were measured on other questions.
    """
    table = transfer_matrix(
        chosen,
        {name: material.family[name] for name in chosen},
        {name: material.parent(name) for name in chosen},
        report,
        domains={name: material.domain(name) for name in chosen},
        trained=material.trained,
        edit=lambda direction, target: extracted[target].form.remove(direction),
        neutral=material.neutral,
        progress=False,
        seed=config.seed,
    )
    mine = arms[arms["role"] == arms["role"].iloc[0]]
    columns = ["restoration", "restoration_max_draw"]
    strongest = {
        str(name): float(controls_of(rows)[columns].astype(float).max().max())
        for name, rows in mine.groupby("model")
    }
    pairs = zip(table["direction_of"], table["ablated_in"], strict=True)
    return table.assign(
        strongest_control=[
            strongest[j] if material.domain(i) == material.domain(j) else np.nan for i, j in pairs
        ]
    )


class DirectionTransfer(Study):
    """Which direction carries the misalignment, and what does removing it do?"""

    name = "direction_transfer"
    title = "Which direction carries the misalignment, and what does removing it do?"
    section = SECTION
    cost = 9

    def run(self, context: StudyContext) -> Part:
        return run(context.material, context.config, context.progress)
