"""The arms of one fine-tune: what removing its direction does, beside every control."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pandas as pd
from torch import Tensor

from emlens.data import QuestionSet
from emlens.evaluation import QuestionRoles, ablation_arms, affine_form, evaluate_arms
from emlens.evaluation.ablation_forms import BLOCKS, PLAIN
from emlens.evaluation.arms import Arm
from emlens.foundation.files import safe_name
from emlens.models import HookedModel
from emlens.studies.arms_on_ray import measure_elsewhere
from emlens.studies.config import StudyConfig
from emlens.studies.direction_candidates import Candidates, excluded
from emlens.studies.material import Material

MASSIVE: Final = 5
CHOSEN: Final = "chosen on the selection questions"
LAST: Final = "last layer"


@dataclass(frozen=True, eq=False)
class CandidatesOfFineTune:
    """One fine-tune with its candidate directions and what they are measured on."""

    name: str
    material: Material
    config: StudyConfig
    roles: QuestionRoles
    candidates: Candidates
    contrast: Tensor | None
    """Unembedding contrast of the parent, where there is one."""
    ray_actors: int
    folder: Path
    """Of the study's part."""

    @property
    def model(self) -> HookedModel:
        return self.material.family[self.name]

    @property
    def parent(self) -> HookedModel:
        return self.material.parent(self.name)

    @cached_property
    def report(self) -> QuestionSet:
        """The questions that results are reported on, without the topics it was trained on."""
        return self.material.untrained(self.roles.report, self.name)

    @property
    def excluded(self) -> list[str]:
        """Groups of questions that no restoration is measured on."""
        return excluded(self.material, self.name)


def measured_arms(fine_tune: CandidatesOfFineTune, key: str, role: str) -> pd.DataFrame:
    """Every arm of one candidate, on the report questions.

    The direction of the last layer comes without its parts and without other forms of ablation.
    """
    material, config, parent = fine_tune.material, fine_tune.config, fine_tune.parent
    candidates, origin = fine_tune.candidates, fine_tune.candidates.origin(key)
    direction, complete = candidates.directions[key], role == CHOSEN
    before, after = origin.rows(key)
    questions = material.untrained(fine_tune.roles.extract, fine_tune.name)
    benign = material.benign_for(fine_tune.name)
    others = {} if benign is None else {"benign": material.family[benign]}
    forms = [candidates.form]
    further: dict[str, Any] = {"delta_components": (2,)}
    if complete:
        after_blocks = affine_form(
            parent, questions, sites=BLOCKS, name="affine, after every block"
        )
        forms += [PLAIN, after_blocks]
        further = {
            "text_content": candidates.text_content(key),
            "delta_components": (2, 3),
            "massive": min(MASSIVE, parent.d_model // 2),
        }
    arms = ablation_arms(
        direction,
        instruct_activations=before,
        deltas=after.double() - before.double(),
        forms=forms,
        benign=None if benign is None else origin.of_another(material.family[benign], key),
        unembedding=fine_tune.contrast,
        random_draws=config.random_directions,
        also_on=list(others),
        seed=config.seed,
        **further,
    )
    out = _measured_on_ray(fine_tune, benign, arms, role)
    table = evaluate_arms(
        fine_tune.model,
        parent,
        fine_tune.report,
        arms,
        others=others,
        exclude_groups=fine_tune.excluded,
        neutral=material.neutral,
        score=material.score_of_edits,
        out=out,
        progress=False,
        seed=config.seed,
    )
    table.insert(0, "model", fine_tune.name)
    table.insert(1, "site", str(direction.site))
    table.insert(2, "role", role)
    return table


def _measured_on_ray(
    fine_tune: CandidatesOfFineTune, benign: str | None, arms: Sequence[Arm], role: str
) -> Path | None:
    """Where actors left what they measured of the arms; None where this process measures them.

    Actors load the configuration's family: a fine-tune that the study trains itself is not in it.
    """
    config, name = fine_tune.config, fine_tune.name
    if not fine_tune.ray_actors or config.family is None or name not in config.family.finetuned:
        return None
    from emlens.runs.ray_actors import RayExecutor

    out = fine_tune.folder / "arms" / safe_name(f"{name}-{role}")
    measure_elsewhere(
        RayExecutor(fine_tune.ray_actors),
        config,
        name,
        benign,
        fine_tune.report,
        fine_tune.excluded,
        arms,
        out,
    )
    return out
