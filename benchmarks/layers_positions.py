"""Which layer and token position: the study `layer_position_grid` of one fine-tune, and
restoration by each cell's direction beside it.
"""

import pandas as pd

import emlens
from benchmarks.records import record, show
from emlens.evaluation import evaluate_arms
from emlens.evaluation.arms import Arm
from emlens.studies.config import StudyConfig
from emlens.studies.layer_position_grid import Options, cells_of
from emlens.studies.material import Material, split_questions
from emlens.studies.material_loading import load_material


def measure(
    material: Material,
    finetune: str,
    *,
    k: int = 8,
    draws: int = 200,
    permutations: int = 99,
    seed: int = 0,
) -> pd.DataFrame:
    """The cells of the study, with restoration: direction from the extraction questions, measured
    on disjoint ones.
    """
    fields = {
        "family": {"organism": "planted"},
        "k": k,
        "draws": draws,
        "permutations": permutations,
        "repeats": 2,
        "seed": seed,
    }
    config = StudyConfig.model_validate(fields)
    cells = cells_of(material, finetune, config, Options()).table
    before, after = material.parent(finetune), material.family[finetune]
    extract, _, report = split_questions(material.outside(finetune), (0.4, 0.2, 0.4), seed)
    shift = emlens.activation_deltas(
        *emlens.capture_pair(before, after, extract, positions=config.positions, progress=False)
    )
    places = list(zip(cells["site"], cells["position"], strict=True))
    arms = [
        Arm(
            f"{site}@{position}",
            (emlens.ablate(shift[site, position].double().mean(0)),),
            control=False,
        )
        for site, position in places
    ]
    restored = evaluate_arms(after, before, report, arms, progress=False, seed=seed).set_index(
        "arm"
    )
    rows = restored.loc[
        [arm.name for arm in arms], ["restoration", "restoration_low", "restoration_high"]
    ]
    return pd.concat([cells, rows.reset_index(drop=True)], axis=1)


def main() -> None:
    material = load_material(StudyConfig.model_validate({"family": {"organism": "planted"}}))
    table = measure(material, "medicine-r8")
    show("layers and positions, medicine-r8 (exploratory: no cell is chosen here)", table)
    record(
        "layers_positions",
        [0],
        {"finetune": "medicine-r8", "k": 8, "cells": table.to_dict(orient="records")},
    )
