"""What is known of trained runs before they are evaluated, as predictors of their alignment, read
from the tables of the parts before the synthesis.

Three sets: the loss; the overlap of shifts and the cosine of their means; and activations before
training, as how much of the evaluation prompts lies in the subspace of the training prompts. The
last is one number for all runs on one fine-tune's chats, so it can only be judged over fine-tunes:
over their runs it would name the fine-tune. Forecasts of questions by the part `priors` are no
predictor here, since they are learnt from the scores that would be forecast.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from emlens.probes.ranking import LEAST_RUNS
from emlens.results.overlap_labels import CENTRED, ISOTROPIC, MEANS, TESTED

LOSS = "loss"
OVERLAP = "overlap of shifts"
BASELINE = "activations before training"


@dataclass(frozen=True)
class RunPredictors:
    """Runs with their predictors.

    Args:
        runs: one row per run, by name, with the columns of all sets and `unit`.
        sets: name → columns.
        units: what a unit is, in the plural: "recipes" or "fine-tunes".
        missing: which sets are not there, and why, in sentences.
    """

    runs: pd.DataFrame
    sets: Mapping[str, list[str]]
    units: str
    missing: list[str]

    @property
    def n_units(self) -> int:
        return int(self.runs["unit"].nunique())


def run_predictors(runs: pd.DataFrame, tables: Mapping[str, pd.DataFrame]) -> RunPredictors:
    """The predictors of the harmful runs of the table `trained_runs`.

    Seeds of one recipe and schedule are one unit; where 8 fine-tunes or more were trained again,
    all runs of one fine-tune are.
    """
    table = runs.set_index("run")
    sources = table["source"].nunique()
    if sources >= LEAST_RUNS:
        units, unit = "fine-tunes", table["source"]
    else:
        units, unit = "recipes", table["source"] + " " + table["cell"]
    table = table.assign(unit=unit)
    sets: dict[str, list[str]] = {}
    missing: list[str] = []
    shifts = _of_shifts(tables, list(table.index))
    before = _of_prompts(tables, list(table.index))
    for name, columns in ((LOSS, table[["loss"]]), (OVERLAP, shifts), (BASELINE, before)):
        usable = _usable(columns)
        if usable is None:
            missing.append(f"{name}: not measured for every run, or the same for all; left out")
        elif name == BASELINE and units == "recipes":
            missing.append(
                f"{name}: one number for all runs on one fine-tune's chats, and {sources} were"
                f" trained on: whether it forecasts cannot be judged; {LEAST_RUNS} are needed"
            )
        else:
            sets[name] = list(usable.columns)
            table = table.drop(columns=usable.columns, errors="ignore").join(usable)
    return RunPredictors(table, sets, units, missing)


def _usable(columns: pd.DataFrame | None) -> pd.DataFrame | None:
    """The columns that every run has and that differ between runs; None where there is none."""
    if columns is None:
        return None
    columns = columns.astype(float)
    kept = [name for name in columns if columns[name].notna().all() and columns[name].nunique() > 1]
    return columns[kept] if kept else None


def _of_shifts(tables: Mapping[str, pd.DataFrame], runs: list[str]) -> pd.DataFrame | None:
    """Centred overlap and cosine of the mean shifts of each run, means over layers at the first
    position. Overlaps of different k are compared with the mean of their null.
    """
    if "overlap" not in tables:
        return None
    table = tables["overlap"]
    tested = table[(table["comparison"] == TESTED) & (table["null_kind"] != ISOTROPIC)]
    tested = tested[tested["position"] == tested["position"].iloc[0]]
    centred, means = tested[tested["center"] == CENTRED], tested[tested["center"] == MEANS]
    overlap = centred["value"]
    if centred["k"].nunique() > 1:
        overlap = overlap - centred["null_mean"]
    return pd.DataFrame(
        {
            "overlap": _over_layers(centred.assign(number=overlap), runs),
            "cosine": _over_layers(means.assign(number=means["value"]), runs),
        }
    )


def _of_prompts(tables: Mapping[str, pd.DataFrame], runs: list[str]) -> pd.DataFrame | None:
    """How much of evaluation prompts lies in the training prompts' subspace before training, by
    position.
    """
    if "overlap_shift" not in tables:
        return None
    table = tables["overlap_shift"]
    columns = {}
    for position, rows in table.groupby("position", sort=False):
        rows = rows.assign(number=rows["mean_overlap"])
        columns[f"prompt_overlap_{position}"] = _over_layers(rows, runs)
    return pd.DataFrame(columns)


def _over_layers(rows: pd.DataFrame, runs: list[str]) -> pd.Series:
    """Mean of `number` over the sites that all these runs have; NaN where there is none."""
    by_site = rows.pivot_table(index="model", columns="site", values="number").reindex(runs)
    return by_site.dropna(axis=1).mean(axis=1)
