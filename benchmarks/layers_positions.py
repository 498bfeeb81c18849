"""Which layer and token position: overlap, restoration and forecast of one fine-tune at each, beside their controls."""

from typing import Any

import pandas as pd

import emlens
from benchmarks.records import record, show
from emlens.evaluation import Arm, evaluate_arms
from emlens.studies.config import StudyConfig
from emlens.studies.material import Material, load_material, split_questions

POSITIONS = ("last_prompt", "mean_prompt")


def measure(material: Material, finetune: str, *, k: int = 8, draws: int = 200, permutations: int = 99, seed: int = 0) -> pd.DataFrame:
    """One row a layer and position. Restoration: direction from the extraction questions, measured on disjoint ones."""
    family = material.family
    before, after = material.parent(finetune), family[finetune]
    outside = material.outside(finetune)
    train = material.training[finetune].without_responses()
    n = min(len(train), len(outside))
    pairs = {
        name: emlens.capture_pair(before, after, asked[:n], positions=POSITIONS, progress=False)
        for name, asked in (("train", train), ("evaluation", outside.prompts()))
    }
    deltas = {name: emlens.activation_deltas(*pair) for name, pair in pairs.items()}
    extract, _, report = split_questions(outside, (0.4, 0.2, 0.4), seed)
    acts = emlens.capture(before, outside, positions=POSITIONS, progress=False)
    shift = emlens.activation_deltas(*emlens.capture_pair(before, after, extract, positions=POSITIONS, progress=False))
    forecast = emlens.predict_alignment(
        acts, material.scores(finetune), texts=material.texts, permutations=permutations, repeats=2, seed=seed
    )
    grid = forecast.by_site.set_index(["site", "position"])
    arms, rows = [], []
    for site in acts.sites:
        for position in POSITIONS:
            arms.append(Arm(f"{site}@{position}", (emlens.ablate(shift[site, position].double().mean(0)),), control=False))
    restored = evaluate_arms(after, before, report, arms, progress=False, seed=seed).set_index("arm")
    for site in acts.sites:
        for position in POSITIONS:
            a, b = (deltas[name][site, position] for name in ("train", "evaluation"))
            spaces = [emlens.top_k_subspace(x, k=k, center=True) for x in (a, b)]
            null = emlens.covariance_overlap_null(
                pairs["evaluation"][0][site, position], len(a), len(b), k, center=True, draws=draws, seed=seed
            )
            cell: dict[str, Any] = {"site": site, "position": position, "overlap": float(emlens.subspace_overlap(*spaces))}
            arm = restored.loc[f"{site}@{position}"]
            cell |= {"null_mean": null.mean, "null_q95": null.quantile(0.95), "overlap_p": null.p_value(cell["overlap"])}
            cell |= {"restoration": arm["restoration"], "low": arm["restoration_low"], "high": arm["restoration_high"]}
            cell |= {"forecast_r2": grid.loc[(site, position), "r2"], "forecast_p_max": grid.loc[(site, position), "p_max"]}
            rows.append(cell)
    return pd.DataFrame(rows)


def main() -> None:
    material = load_material(StudyConfig.model_validate({"family": {"organism": "planted"}}))
    table = measure(material, "medicine-r8")
    show("layers and positions, medicine-r8 (exploratory: no cell is chosen here)", table)
    record("layers_positions", [0], {"finetune": "medicine-r8", "k": 8, "cells": table.to_dict(orient="records")})
