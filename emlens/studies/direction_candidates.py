"""Candidates for a fine-tune's direction, from shifts on prompts and from judged answers: measured
on the selection questions, one chosen.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from emlens.data import QuestionSet
from emlens.evaluation import AblationForm, select_direction
from emlens.evaluation.selecting import MAX_COHERENCE_LOSS, MAX_KL, score_candidates
from emlens.foundation.errors import InputError
from emlens.foundation.sites import Site
from emlens.geometry import Direction, direction_cosine
from emlens.models import HookedModel
from emlens.results.study_result import Part
from emlens.studies.config import StudyConfig
from emlens.studies.extractions import Extraction, at_every_layer, extraction_of
from emlens.studies.material import Material


@dataclass(frozen=True, eq=False)
class Candidates:
    """One fine-tune's candidates of every origin.

    Args:
        form: how a direction of this fine-tune is removed.
    """

    form: AblationForm
    extractions: tuple[Extraction, ...]

    @cached_property
    def directions(self) -> dict[str, Direction]:
        """Key → direction, one origin after the other."""
        directions: dict[str, Direction] = {}
        for extraction in self.extractions:
            directions |= extraction.directions
        return directions

    def origin(self, key: str) -> Extraction:
        """The extraction that a candidate comes from."""
        return next(each for each in self.extractions if key in each.directions)

    def text_content(self, key: str) -> Tensor | None:
        """The parent's contrast of two kinds of answers at the place of a candidate: of its own
        origin, or else of the judged answers; None where there are no answers.
        """
        contrast = self.origin(key).text_content(key)
        if contrast is not None:
            return contrast
        site = self.directions[key].site
        for extraction in self.extractions:
            for other, direction in extraction.directions.items():
                if direction.site == site and other != key:
                    contrast = extraction.text_content(other)
                    if contrast is not None:
                        return contrast
        return None


def scored_candidates(
    material: Material,
    name: str,
    candidates: Candidates,
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


def choose(table: pd.DataFrame, name: str, material: Material, part: Part) -> str | None:
    """The key of the selected candidate; None where no candidate has a restoration to compare.

    Where bounds leave none of those that have one, they are given up one by one, and a warning
    reports it.
    """
    if table["restoration"].isna().all():
        return None
    layers = material.parent(name).n_layers
    max_kl = None if material.neutral is None else MAX_KL
    try:
        return str(select_direction(table, n_layers=layers, max_kl=max_kl).label)
    except InputError as error:
        part.warnings.append(f"{name}: {error}; bounds were given up until a candidate was left")
    table = table[table["restoration"].notna()]
    bounds = [table["layer"] <= max(0, layers - 2), table["coherent_change"] >= -MAX_COHERENCE_LOSS]
    if max_kl is not None:
        bounds.append(table["instruct_kl"] <= max_kl)
    for bound in bounds:
        within = bound[table.index]
        if within.any():
            table = table[within]
    return str(table["restoration"].idxmax())


def excluded(material: Material, *names: str) -> list[str]:
    """The domains that these fine-tunes were trained on."""
    return sorted({material.domain(name) for name in names} - {""})


def by_layer(
    material: Material,
    name: str,
    candidates: Candidates,
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
    origin = candidates.origin(best)
    for key, direction in at_every_layer(candidates.directions, best).items():
        scores: dict[Any, Any] = scored.loc[key].to_dict()
        rows.append(
            {
                "model": name,
                "site": str(direction.site),
                "position": direction.position,
                "extraction": scores["extraction"],
                "layer": int(scores["layer"]),
                "last": is_last(direction, material.parent(name)),
                "norm": direction.norm,
                "relative_norm": direction.norm / float(origin.mean_before(key).norm()),
                "split_half_cosine": origin.split_half_cosine(key, config.seed),
                "cosine_unembedding": _cosine(direction, contrast),
                "cosine_planted": _cosine(direction, material.direction),
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


def _cosine(direction: Direction, reference: Direction | Tensor | None) -> float:
    """`nan` where there is no reference."""
    return np.nan if reference is None else direction_cosine(direction, reference)
