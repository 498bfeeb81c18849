"""Candidates from prompts: a fine-tune's shifts against its parent at every layer and position, as
they are and whitened.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emlens.activations import Activations
from emlens.data import QuestionSet
from emlens.data.base_questions import base_question
from emlens.evaluation import text_contrast
from emlens.foundation.errors import InputError
from emlens.foundation.seeds import numpy_rng
from emlens.geometry import (
    Direction,
    direction_cosine,
    mean_difference_direction,
    whitened_direction,
)
from emlens.models import HookedModel
from emlens.studies.config import StudyConfig
from emlens.studies.extractions import Extraction, extraction_of, key_of
from emlens.studies.material import Material
from emlens.studies.streams import read_streams

SHRINKAGE = 0.5
"""Of the whitening; chosen on one organism's selection questions
(docs/evaluating_interventions.md).
"""
EXTRACTIONS = ("mean shift", "whitened shift")


@dataclass(frozen=True, eq=False)
class ShiftCandidates(Extraction):
    """One fine-tune's activations on the extraction questions, and the directions between them."""

    name: str
    parent: HookedModel
    questions: QuestionSet
    config: StudyConfig
    before: Activations
    after: Activations
    directions: Mapping[str, Direction]

    def rows(self, key: str) -> tuple[Tensor, Tensor]:
        direction = self.directions[key]
        place = str(direction.site), str(direction.position)
        return self.before[place], self.after[place]

    def mean_before(self, key: str) -> Tensor:
        before, _ = self.rows(key)
        return before.double().mean(0)

    def split_half_cosine(self, key: str, seed: int) -> float:
        before, after = (rows.double() for rows in self.rows(key))
        site = self.directions[key].site
        halves = [
            direction_between(extraction_of(key), after[half], before[half], site=site)
            for half in self._halves(seed)
        ]
        return direction_cosine(*halves)

    def _halves(self, seed: int) -> list[Tensor]:
        """Rows of two random halves of the base questions, each with all its forms and paraphrases
        in one half.
        """
        units = [base_question(str(p.meta["question"])) for p in self.questions.prompts()]
        names = np.array(list(dict.fromkeys(units)))
        order = numpy_rng(seed, "halves", self.name).permutation(len(names))
        return [
            torch.tensor(np.flatnonzero(np.isin(units, names[half])))
            for half in np.array_split(order, 2)
        ]

    def of_another(self, fine_tune: HookedModel, key: str) -> Direction | None:
        site, position = str(self.directions[key].site), str(self.directions[key].position)
        captured = read_streams(
            {"before": self.parent, "after": fine_tune},
            self.questions.prompts(),
            self.config,
            sites=site,
            positions=position,
        )
        before, after = captured["before"][site], captured["after"][site]
        if torch.equal(after, before):
            return None
        return direction_between(
            extraction_of(key), after.double(), before.double(), site=site, position=position
        )

    def text_content(self, key: str) -> Tensor | None:
        """The parent's contrast of reference answers."""
        for question in self.questions:
            if not (question.answers.get("careful") and question.answers.get("harmful")):
                return None
        return text_contrast(self.parent, self.questions, str(self.directions[key].site))


def shift_candidates(
    material: Material, name: str, questions: QuestionSet, config: StudyConfig
) -> ShiftCandidates:
    """Shifts of a fine-tune at every layer and position that moved: as they are, and whitened.

    Raises:
        InputError: a fine-tune that moves no activation.
    """
    questions = material.untrained(questions, name)
    models = {"before": material.parent(name), "after": material.family[name]}
    captured = read_streams(models, questions.prompts(), config)
    before, after = captured["before"], captured["after"]
    directions: dict[str, Direction] = {}
    ids = {"questions": questions.ids}
    for position in before.positions:
        for site in before.sites:
            rows_after, rows_before = (
                after[site, position].double(),
                before[site, position].double(),
            )
            if torch.equal(rows_after, rows_before):
                continue
            for method in EXTRACTIONS:
                directions[key_of(site, position, method)] = direction_between(
                    method, rows_after, rows_before, site=site, position=position, ids=ids
                )
    if not directions:
        raise InputError(
            f"fine-tune {name!r} moves no activation at {', '.join(before.positions)};"
            " there is no direction to take"
        )
    parent = models["before"]
    return ShiftCandidates(name, parent, questions, config, before, after, directions)


def direction_between(extraction: str, after: Tensor, before: Tensor, **where: Any) -> Direction:
    """The shift from `before` to `after` (row, d_model), by one of `EXTRACTIONS`."""
    if extraction == EXTRACTIONS[0]:
        return mean_difference_direction(after, before, **where)
    return whitened_direction(after, before, shrinkage=SHRINKAGE, **where)
