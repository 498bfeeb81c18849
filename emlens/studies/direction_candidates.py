"""Candidates for a fine-tune's direction: extracted at every layer and position, measured on the
selection questions, one chosen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from emlens.activations import Activations
from emlens.data import QuestionSet
from emlens.evaluation import AblationForm, affine_form, select_direction
from emlens.evaluation.selecting import MAX_COHERENCE_LOSS, MAX_KL, score_candidates
from emlens.foundation.errors import InputError
from emlens.foundation.seeds import numpy_rng
from emlens.foundation.sites import Site
from emlens.geometry import (
    Direction,
    direction_cosine,
    mean_difference_direction,
    whitened_direction,
)
from emlens.models import HookedModel
from emlens.results.study_result import Part
from emlens.studies.config import StudyConfig
from emlens.studies.material import Material
from emlens.studies.streams import read_streams

SHRINKAGE = 0.5
"""Of the whitening; chosen on one organism's selection questions
(docs/evaluating_interventions.md).
"""
EXTRACTIONS = ("mean shift", "whitened shift")


@dataclass(frozen=True, eq=False)
class ShiftCandidates:
    """One fine-tune's activations on the extraction questions, and the directions between them."""

    before: Activations
    after: Activations
    form: AblationForm
    directions: Mapping[str, Direction]

    def at_every_layer(self, key: str) -> dict[str, Direction]:
        """The candidates of the same position and method as `key`, in order of the layers."""
        _, _, method = key.partition(" ")
        return {
            candidate: direction
            for candidate, direction in self.directions.items()
            if candidate.partition(" ")[2] == method
        }

    def rows(self, direction: Direction) -> tuple[Tensor, Tensor]:
        """Activations before and after at the place of a direction, (question, d) each."""
        key = str(direction.site), str(direction.position)
        return self.before[key], self.after[key]


def extract(
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
                directions[f"{site} {position}, {method}"] = direction_between(
                    method, rows_after, rows_before, site=site, position=position, ids=ids
                )
    if not directions:
        raise InputError(
            f"fine-tune {name!r} moves no activation at {', '.join(before.positions)};"
            " there is no direction to take"
        )
    form = affine_form(models["before"], questions)
    return ShiftCandidates(before, after, form, directions)


def direction_between(extraction: str, after: Tensor, before: Tensor, **where: Any) -> Direction:
    """The shift from `before` to `after` (row, d_model), by one of `EXTRACTIONS`."""
    if extraction == EXTRACTIONS[0]:
        return mean_difference_direction(after, before, **where)
    return whitened_direction(after, before, shrinkage=SHRINKAGE, **where)


def extraction_of(key: str) -> str:
    """Which of `EXTRACTIONS` a candidate comes from, by its key."""
    return key.rpartition(", ")[2]


def scored_candidates(
    material: Material,
    name: str,
    candidates: ShiftCandidates,
    select: QuestionSet,
    config: StudyConfig,
) -> pd.DataFrame:
    """Every candidate on the selection questions, and which of them the rule allows."""
    scores = score_candidates(
        material.family[name],
        material.parent(name),
        candidates.directions,
        material.untrained(select, name),
        edit=candidates.form.remove,
        exclude_groups=excluded(material, name),
        neutral=material.neutral,
        score=material.score_of_edits,
        progress=False,
        seed=config.seed,
    )
    return scores.assign(extraction=[extraction_of(key) for key in candidates.directions])


def choose(table: pd.DataFrame, name: str, material: Material, part: Part) -> str:
    """The key of the selected candidate.

    Where the rule leaves none, its bounds are given up one by one, and a warning reports it.
    """
    layers = material.parent(name).n_layers
    max_kl = None if material.neutral is None else MAX_KL
    try:
        return str(select_direction(table, n_layers=layers, max_kl=max_kl).label)
    except InputError as error:
        part.warnings.append(f"{name}: {error}; bounds were given up until a candidate was left")
    bounds = [table["layer"] <= max(0, layers - 2), table["coherent_change"] >= -MAX_COHERENCE_LOSS]
    if max_kl is not None:
        bounds.append(table["instruct_kl"] <= max_kl)
    for bound in bounds:
        within = bound[table.index]
        if within.any():
            table = table[within]
    return str(table["restoration"].fillna(-np.inf).idxmax())


def excluded(material: Material, *names: str) -> list[str]:
    """The domains that these fine-tunes were trained on."""
    return sorted({material.domain(name) for name in names} - {""})


def by_layer(
    material: Material,
    name: str,
    candidates: ShiftCandidates,
    best: str,
    scored: pd.DataFrame,
    contrast: Tensor | None,
    config: StudyConfig,
) -> pd.DataFrame:
    """The selected method and position, layer by layer: length, reliability, what it points at, and
    what removing it does.

    Args:
        best: key of the selected candidate. contrast: unembedding contrast of the parent.
    """
    rows = []
    for key, direction in candidates.at_every_layer(best).items():
        scores: dict[Any, Any] = scored.loc[key].to_dict()
        before, _ = candidates.rows(direction)
        rows.append(
            {
                "model": name,
                "site": str(direction.site),
                "position": direction.position,
                "extraction": scores["extraction"],
                "layer": int(scores["layer"]),
                "last": is_last(direction, material.parent(name)),
                "norm": direction.norm,
                "relative_norm": direction.norm / float(before.double().mean(0).norm()),
                "split_half_cosine": _split_half_cosine(
                    candidates, direction, scores["extraction"], config.seed, name
                ),
                "cosine_unembedding": _cosine(direction, contrast),
                "cosine_planted": abs(_cosine(direction, material.direction)),
                "restoration": scores["restoration"],
                "low": scores["restoration_low"],
                "high": scores["restoration_high"],
                "coherent": scores["coherent"],
                "coherence_loss": -scores["coherent_change"],
                "kl": scores["kl"],
                "instruct_kl": scores["instruct_kl"],
                "questions": "select",
                "n": scores["n"],
            }
        )
    return pd.DataFrame(rows)


def is_last(direction: Direction, model: HookedModel) -> bool:
    """Whether a direction was read after the last block."""
    return Site.parse(str(direction.site)).layer == model.n_layers - 1


def _split_half_cosine(
    candidates: ShiftCandidates, direction: Direction, method: str, seed: int, name: str
) -> float:
    """Cosine of the directions that two random halves of the questions give: reliability."""
    before, after = (rows.double() for rows in candidates.rows(direction))
    order = numpy_rng(seed, "halves", name).permutation(len(before))
    halves = [
        direction_between(method, after[half], before[half], site=direction.site)
        for half in map(torch.tensor, np.array_split(order, 2))
    ]
    return direction_cosine(*halves)


def _cosine(direction: Direction, reference: Direction | Tensor | None) -> float:
    """`nan` where there is no reference."""
    return np.nan if reference is None else direction_cosine(direction, reference)
