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

from emlens.activations import Activations, capture_many
from emlens.data import QuestionSet
from emlens.evaluation import AblationForm, affine_form, select_direction
from emlens.evaluation.selecting import MAX_COHERENCE_LOSS, MAX_KL, score_candidates
from emlens.foundation.errors import InputError
from emlens.foundation.seeds import numpy_rng
from emlens.geometry import (
    Direction,
    direction_cosine,
    mean_difference_direction,
    whitened_direction,
)
from emlens.results.study_result import Part
from emlens.studies.config import StudyConfig
from emlens.studies.material import Material

SHRINKAGE = 0.5
"""Of the whitening; chosen on one organism's selection questions
(docs/evaluating_interventions.md).
"""
EXTRACTIONS = ("mean shift", "whitened shift")


@dataclass(frozen=True, eq=False)
class Extracted:
    """One fine-tune's activations on the extraction questions, and the directions between them."""

    before: Activations
    after: Activations
    form: AblationForm
    candidates: Mapping[str, Direction]

    def alike(self, key: str) -> dict[str, Direction]:
        """The candidates of the same extraction and position at every layer, in order of the
        layers.
        """
        return {
            other: direction
            for other, direction in self.candidates.items()
            if other.partition(" ")[2] == key.partition(" ")[2]
        }

    def rows(self, direction: Direction) -> tuple[Tensor, Tensor]:
        key = str(direction.site), str(direction.position)
        return self.before[key], self.after[key]


def extract(material: Material, name: str, asked: QuestionSet, config: StudyConfig) -> Extracted:
    """Shifts of a fine-tune at every layer and position that moved: as they are, and whitened."""
    questions = material.untrained(asked, name)
    models = {"before": material.parent(name), "after": material.family[name]}
    found = capture_many(
        models, questions.prompts(), positions=list(config.positions), progress=False
    )
    before, after = found["before"], found["after"]
    candidates = {}
    ids = {"questions": questions.ids}
    for position in before.positions:
        for site in before.sites:
            a, b = after[site, position].double(), before[site, position].double()
            if torch.equal(a, b):
                continue
            where: dict[str, Any] = {"site": site, "position": position, "ids": ids}
            for extraction in EXTRACTIONS:
                candidates[f"{site} {position}, {extraction}"] = direction_between(
                    extraction, a, b, **where
                )
    if not candidates:
        raise InputError(
            f"fine-tune {name!r} moves no activation at {', '.join(before.positions)};"
            " there is no direction to take"
        )
    return Extracted(before, after, affine_form(models["before"], questions), candidates)


def direction_between(extraction: str, after: Tensor, before: Tensor, **where: Any) -> Direction:
    """The shift from `before` to `after` (row, d_model), by one of `EXTRACTIONS`."""
    if extraction == EXTRACTIONS[0]:
        return mean_difference_direction(after, before, **where)
    return whitened_direction(after, before, shrinkage=SHRINKAGE, **where)


def scored_candidates(
    material: Material, name: str, mine: Extracted, select: QuestionSet, config: StudyConfig
) -> pd.DataFrame:
    """Every candidate on the selection questions, and which of them the rule allows."""
    return score_candidates(
        material.family[name],
        material.parent(name),
        mine.candidates,
        material.untrained(select, name),
        edit=mine.form.remove,
        exclude_groups=excluded(material, name),
        neutral=material.neutral,
        progress=False,
        seed=config.seed,
    ).assign(extraction=[key.rpartition(", ")[2] for key in mine.candidates])


def choose(table: pd.DataFrame, name: str, material: Material, part: Part) -> str:
    """The selected candidate. Where the rule leaves none, its bounds are given up one by one, and
    that is said.
    """
    layers = material.parent(name).n_layers
    try:
        return str(
            select_direction(
                table, n_layers=layers, max_kl=None if material.neutral is None else MAX_KL
            ).label
        )
    except InputError as error:
        part.warnings.append(f"{name}: {error}; bounds were given up until a candidate was left")
    bounds = [table["layer"] <= max(0, layers - 2), table["coherent_change"] >= -MAX_COHERENCE_LOSS]
    if material.neutral is not None:
        bounds.append(table["instruct_kl"] <= MAX_KL)
    for bound in bounds:
        table = table[bound[table.index]] if bound[table.index].any() else table
    return str(table["restoration"].fillna(-np.inf).idxmax())


def excluded(material: Material, *names: str) -> list[str]:
    return sorted({material.domain(name) for name in names} - {""})


def by_layer(
    material: Material,
    name: str,
    mine: Extracted,
    best: str,
    scored: pd.DataFrame,
    contrast: Tensor | None,
    config: StudyConfig,
) -> pd.DataFrame:
    """The selected extraction and position, layer by layer: length, reliability, what it points at,
    and what removing it does.
    """
    rows = []
    for key, direction in mine.alike(best).items():
        b, a = (x.double() for x in mine.rows(direction))
        halves = np.array_split(numpy_rng(config.seed, "halves", name).permutation(len(b)), 2)
        found: dict[Any, Any] = scored.loc[key].to_dict()
        halved = [
            direction_between(found["extraction"], a[half], b[half], site=direction.site)
            for half in map(torch.tensor, halves)
        ]
        rows.append(
            {
                "model": name,
                "site": str(direction.site),
                "position": direction.position,
                "extraction": found["extraction"],
                "layer": int(found["layer"]),
                "last": str(direction.site) == mine.before.sites[-1],
                "norm": direction.norm,
                "relative_norm": direction.norm / float(b.mean(0).norm()),
                "split_half_cosine": direction_cosine(*halved),
                "cosine_unembedding": (
                    np.nan if contrast is None else direction_cosine(direction, contrast)
                ),
                "cosine_planted": (
                    np.nan
                    if material.direction is None
                    else abs(direction_cosine(direction, material.direction))
                ),
                "restoration": found["restoration"],
                "low": found["restoration_low"],
                "high": found["restoration_high"],
                "coherent": found["coherent"],
                "coherence_loss": -found["coherent_change"],
                "kl": found["kl"],
                "instruct_kl": found["instruct_kl"],
                "questions": "select",
                "n": found["n"],
            }
        )
    return pd.DataFrame(rows)
