"""Which layer and token position: the study `layer_position_grid` of one fine-tune, and
restoration by each cell's direction beside it.

Beside each cell's own direction stands one draw from the covariance of the parent's activations in
that cell. `real_layers_positions` asks the same of fine-tunes of SmolLM2.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pandas as pd

import emlens
from benchmarks.records import record, show
from emlens.activations import Activations
from emlens.evaluation import AblationForm, affine_form, evaluate_arms
from emlens.evaluation.ablation_forms import PLAIN
from emlens.evaluation.arms import Arm
from emlens.geometry import random_directions_like
from emlens.studies.config import StudyConfig
from emlens.studies.layer_position_grid import Options, cells_of
from emlens.studies.material import Material, split_questions
from emlens.studies.material_loading import load_material

FINETUNE: Final = "medicine-r8"
ORGANISM: Final = StudyConfig.model_validate(
    {
        "family": {"organism": "planted"},
        "k": 8,
        "draws": 200,
        "permutations": 99,
        "repeats": 2,
        "seed": 0,
    }
)
SHARES: Final = (0.4, 0.2, 0.4)
"""Of the questions: directions come from the first set, effects are measured on the last."""
EFFECTS: Final = ("restoration", "aligned_change")
"""Of `evaluate_arms`, each with its interval."""
RANDOM: Final = "random_"
"""Before the effects of the random direction."""


def measure(
    material: Material,
    finetune: str,
    config: StudyConfig = ORGANISM,
    options: Options | None = None,
    *,
    shares: Sequence[float] = SHARES,
    is_affine: bool = False,
    out: Path | None = None,
) -> pd.DataFrame:
    """The cells of the study; in each, what removing its direction and a random one restores.

    Args:
        shares: of the questions; directions come from the first set, effects from the last.
        is_affine: remove towards the parent's mean; else towards 0.
        out: where arms are kept, so that a stopped call goes on.

    Returns:
        The table of `cells_of`, then restoration and the change of `aligned` (0 to 100) with their
        intervals, and `random_` before the same of one draw from the parent's covariance.
    """
    cells = cells_of(material, finetune, config, options or Options()).table
    before, after = material.parent(finetune), material.family[finetune]
    extract, *_, report = split_questions(material.outside(finetune), shares, config.seed)
    places = list(zip(cells["site"], cells["position"], strict=True))
    form = affine_form(before, extract) if is_affine else PLAIN
    streams = emlens.capture_pair(
        before,
        after,
        extract,
        layers=config.layers,
        positions=config.positions,
        progress=False,
    )
    restored = evaluate_arms(
        after,
        before,
        report,
        list(_arms(streams, places, form, config.seed)),
        score=material.score_of_edits,
        out=out,
        progress=False,
        seed=config.seed,
    ).set_index("arm")
    columns = [f"{name}{end}" for name in EFFECTS for end in ("", "_low", "_high")]
    effects = restored.loc[[_name(place) for place in places], columns]
    beside = restored.loc[[RANDOM + _name(place) for place in places], columns]
    parts = [cells, effects.reset_index(drop=True)]
    parts.append(beside.add_prefix(RANDOM).reset_index(drop=True))
    table = pd.concat(parts, axis=1)
    return table.assign(n_extract=len(extract), n_report=len(report))


def _arms(
    streams: tuple[Activations, Activations],
    places: Sequence[tuple[str, str]],
    form: AblationForm,
    seed: int,
) -> Iterator[Arm]:
    """Each cell's mean shift removed, and one random direction of the cell."""
    before, after = streams
    for place in places:
        acts = before[place].double()
        shift = (after[place].double() - acts).mean(0)
        (random,) = random_directions_like(acts, 1, seed=seed)
        yield Arm(_name(place), form.remove(shift), control=False)
        yield Arm(RANDOM + _name(place), form.remove(random))


def _name(place: tuple[str, str]) -> str:
    site, position = place
    return f"{site}@{position}"


def main() -> None:
    table = measure(load_material(ORGANISM), FINETUNE)
    show(f"layers and positions, {FINETUNE} (exploratory: no cell is chosen here)", table)
    record(
        "layers_positions",
        [ORGANISM.seed],
        {"finetune": FINETUNE, "k": ORGANISM.k, "cells": table.to_dict(orient="records")},
    )
