"""Which layer and token position on SmolLM2: the grid of `layers_positions` for one harmful and one
benign fine-tune of medicine.

Three blocks and two positions, two questions of each domain. What bad advice did is what the
harmful fine-tune shows and the benign one does not, so both have the same cells. Scores are by
contrast: `aligned` is the logistic function of content, so 25 points are one nat where content is
near 0. A direction from one question of each domain is removed towards the parent's mean, and
measured on the other. The fine-tunes and what is finished lie below EMLENS_REAL_FAMILY. One seed;
exploratory, no cell is chosen. About 3 CPU minutes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import pandas as pd

from benchmarks.layers_positions import RANDOM, measure
from benchmarks.real_kept import KeptFamily
from benchmarks.real_studies import Case, Places, configured
from benchmarks.records import record, show
from emlens.real.demonstration import study_name
from emlens.real.family import Kind, Member
from emlens.studies.config import read_config
from emlens.studies.layer_position_grid import Options
from emlens.studies.material_loading import load_material

KINDS: Final[tuple[Kind, ...]] = ("harmful", "benign")
LAYERS: Final = (4, 14, 24)
"""Blocks, of SmolLM2's 30."""
CASE: Final = Case(
    "layer_position_grid",
    KINDS,
    {"positions": ["last_prompt", "mean_prompt"], "permutations": 39, "draws": 99, "repeats": 1},
    per_domain=2,
    training_rows=24,
)
FLIPS: Final = 199
SHARES: Final = (0.5, 0.5)
"""One question of each domain gives directions, the other is reported on."""


def of_family(places: Places, case: Case = CASE) -> pd.DataFrame:
    """The cells of each fine-tune, one table below the other."""
    folder = places.work / "layers_positions"
    config = read_config(configured(case, places, folder))
    material = load_material(config)
    tables = []
    for kind in case.kinds:
        name = study_name(Member(kind, "medicine"))
        table = measure(
            material,
            name,
            config,
            Options(flips=FLIPS),
            shares=SHARES,
            is_affine=True,
            out=folder / "arms" / kind,
        )
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def cells_table(values: Mapping[str, Any]) -> str:
    """Markdown for docs/real_model.md: measures of each cell beside the 95th percentile of a null.

    The AUROC of the shift's direction is left out: its null permutes scores within domains, and
    half of two questions of a domain is one.
    """
    lines = [
        "| trained on | block | position | shift | cosine (null) | overlap (null) |"
        " forecast R² (null) |",
        "|---|---|---|---|---|---|---|",
    ]
    cells_of_one = len(values["cells"]) // len({row["model"] for row in values["cells"]})
    for row in values["cells"]:
        measures = [
            f"{row['shift']:.2f}",
            _beside(row, "cosine", "cosine_null", row["cosine_p"] * cells_of_one),
            _beside(row, "overlap", "overlap_null_q95", row["overlap_p_max"]),
            _beside(row, "forecast_r2", "forecast_null_max_q95", row["forecast_p_max"]),
        ]
        lines.append(f"| {' | '.join([*_place(row), *measures])} |")
    return "\n".join(lines)


def removed_table(values: Mapping[str, Any]) -> str:
    """Markdown for docs/real_model.md: what removing each cell's direction does."""
    lines = [
        "| trained on | block | position | its direction removed | random direction removed |",
        "|---|---|---|---|---|",
    ]
    for row in values["cells"]:
        effects = [_ends(row, f"{prefix}aligned_change") for prefix in ("", RANDOM)]
        lines.append(f"| {' | '.join([*_place(row), *effects])} |")
    return "\n".join(lines)


def _beside(row: Mapping[str, Any], name: str, null: str, p: float | None) -> str:
    """A measure and its null; a star where p, corrected over the cells of one fine-tune (the
    cosine's by Bonferroni), is below .05.
    """
    star = " *" if p is not None and p < 0.05 else ""
    return f"{row[name]:.2f} ({row[null]:.2f}){star}"


def _place(row: Mapping[str, Any]) -> Sequence[str]:
    kind = row["model"].partition("-")[0]
    return kind, row["site"].rpartition(".")[2], f"`{row['position']}`"


def _ends(row: Mapping[str, Any], name: str) -> str:
    return f"{row[name]:+.1f} [{row[f'{name}_low']:+.1f}, {row[f'{name}_high']:+.1f}]"


def main() -> None:
    family = KeptFamily.found([])
    places = Places(family.parent, family.folder, family.folder, LAYERS)
    table = of_family(places)
    show("layers and positions on SmolLM2 (exploratory: no cell is chosen here)", table)
    cells = table.astype(object).where(table.notna(), None).to_dict("records")
    record("real_layers_positions", [0], {"layers": list(LAYERS), "cells": cells})
