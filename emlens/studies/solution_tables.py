"""Tables of `general_vs_narrow`, from one table of cells per measure, all seeds together: means
over seeds, and paired differences between the solutions.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pandas as pd

from emlens.foundation.estimate import Estimate
from emlens.results.study_result import columns_of
from emlens.stats import t_interval
from emlens.studies.solution_measures import GENERAL, NARROW, RANDOM, paired
from emlens.studies.solution_pairs import KEPT, LIFTED

COMPARED: Final = (
    ("efficiency", "loss", "share"),
    ("stability", "rise", "epsilon"),
    ("significance", "kl", "share"),
)
"""Measure, column of its value, column of its setting."""
SCORES: Final = ("own_trained", "own_held_out", "others")


def tables_over_seeds(cells: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The part's tables by name; what `cells` lacks is left out.

    Args:
        cells: measure → table with one row per cell and a column `seed`: efficiency, stability,
            line, and where they were measured significance and drift.
    """
    tables: dict[str, pd.DataFrame] = {}
    for name, value, setting in COMPARED:
        if name in cells:
            tables[name] = _differences(cells[name], value, setting)
            tables[f"{name}_means"] = means(cells[name], value, ["solution", "data", setting])
    points = cells["line"]
    ends = points[points["t"].isin((0.0, 1.0))]
    solution = np.where(ends["t"] > 0, NARROW, GENERAL)
    tables["solutions"] = ends.assign(solution=solution).drop(columns="t")
    tables["interpolation"] = means(_long(points, ["t"]), "value", ["measure", "t"])
    tables["interpolation_loss"] = means(points, "loss", ["t"])
    if "drift" in cells:
        drift = _long(cells["drift"], ["step", "solution"])
        drift["value"] *= 100
        tables["drift"] = _drift(drift)
        tables["drift_means"] = means(drift, "value", ["solution", "measure", "step"])
    return tables


def _differences(cells: pd.DataFrame, value: str, setting: str) -> pd.DataFrame:
    """Narrow minus general in each cell, and the mean of random updates where there are some."""
    table = paired(cells, value, ["data", setting])
    random = cells[cells["solution"] == RANDOM]
    if len(random):
        table[RANDOM] = random.groupby(["data", setting])[value].mean().to_numpy()
    return table


def means(table: pd.DataFrame, value: str, cells: Sequence[str]) -> pd.DataFrame:
    """Mean over seeds in each cell with a 95 % t interval; none with one seed."""
    rows = []
    for key, group in table.dropna(subset=[value]).groupby(list(cells), sort=True):
        values = group[value].to_numpy()
        if len(values) > 1:
            mean = t_interval(values)
        else:
            mean = Estimate(float(values[0]), np.nan, np.nan, 1, "one seed")
        rows.append(
            {
                **dict(zip(cells, key, strict=True)),
                **columns_of(value, mean),
                "seeds": len(values),
            }
        )
    return pd.DataFrame(rows)


def _long(table: pd.DataFrame, cells: Sequence[str]) -> pd.DataFrame:
    """One row per cell, seed and score, with columns measure and value."""
    return table.melt(
        id_vars=[*cells, "seed"],
        value_vars=list(SCORES),
        var_name="measure",
        value_name="value",
    )


def _drift(drift: pd.DataFrame) -> pd.DataFrame:
    """Lifted minus kept at each step, and the change of the lifted run since it was lifted."""
    against_kept = paired(drift, "value", ["measure", "step"], LIFTED, KEPT)
    return against_kept.merge(_since_lifted(drift), on=["measure", "step"])


def _since_lifted(drift: pd.DataFrame) -> pd.DataFrame:
    """Paired change of the lifted run from its own first step, at which the penalty was lifted."""
    lifted = drift[drift["solution"] == LIFTED].drop(columns="solution")
    first = lifted[lifted["step"] == lifted["step"].min()].drop(columns="step")
    start = lifted.drop(columns="value").merge(first, on=["measure", "seed"])
    changes = paired(
        pd.concat([lifted.assign(solution="now"), start.assign(solution="start")]),
        "value",
        ["measure", "step"],
        "now",
        "start",
    )
    return changes.drop(columns=["now", "seeds"]).rename(
        columns={
            "start": "when_lifted",
            "difference": "since_lifted",
            "difference_low": "since_lifted_low",
            "difference_high": "since_lifted_high",
            "p": "since_lifted_p",
        }
    )
