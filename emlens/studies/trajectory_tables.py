"""Tables of one followed run: its parameters, activations and behaviour over time, the path of its
update, how sharply that turns, and the series that are tested for change points.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Final

import numpy as np
import pandas as pd
from torch import Tensor

from emlens.geometry.trajectories import path_components
from emlens.geometry.turns import local_cosine, sharpest_turn, turn_null
from emlens.studies.followed_runs import Trajectory

SHARPEST_TURN: Final = "sharpest turn"
RANDOM_WALK: Final = (0.61, 0.15)
"""Shares that the first two principal components of a long random walk explain."""


def tables_of_run(run: Trajectory) -> dict[str, pd.DataFrame]:
    """Rows of one run in the tables over time; each begins with model and cumulative rate."""
    behaviour = run.behaviour
    summary = behaviour[behaviour["of"] != "domain"]
    summary = summary.assign(series=summary["metric"] + "_" + summary["of"])
    tables = {
        "trajectory_parameters": run.parameters.norms.melt("step", var_name="series").dropna(),
        "trajectory_activations": run.activations,
        "trajectory_behaviour": behaviour,
        "trajectory_behaviour_summary": summary[
            ["step", "series", "value", "value_low", "value_high"]
        ],
        "path_components": _path_components(run),
    }
    return {name: _with_time(table, run) for name, table in tables.items()}


def _with_time(table: pd.DataFrame, run: Trajectory) -> pd.DataFrame:
    times = dict(zip(run.parameters.steps, run.times, strict=True))
    table = table.copy()
    table.insert(0, "model", run.name)
    table.insert(1, "cumulative_rate", [times[step] for step in table["step"]])
    return table


def _path_components(run: Trajectory) -> pd.DataFrame:
    """The path of BA in its first two principal components, beside those of a random walk."""
    components = path_components(run.parameters.update, 2)
    first, second = components.explained_variance_ratio.tolist()
    return pd.DataFrame(
        {
            "step": run.parameters.steps,
            "first": components.coordinates[:, 0].numpy(),
            "second": components.coordinates[:, 1].numpy(),
            "first_explained": first,
            "first_random_walk": RANDOM_WALK[0],
            "second_explained": second,
            "second_random_walk": RANDOM_WALK[1],
        }
    )


@dataclass
class Turns:
    """Local cosines of a run's paths, the sharpest turn of each, and what could not be computed."""

    cosines: list[pd.DataFrame] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def turns_of_run(
    run: Trajectory, windows: Sequence[int], threshold: float, draws: int, seed: int
) -> Turns:
    """Local cosines of the paths of B and BA at each window, and the sharpest turn of each beside
    its null.

    Args:
        windows: in checkpoints. threshold: chords shorter than this have no direction.
        draws: of the null.
    """
    turns = Turns()
    paths = {"B": run.parameters.b, "BA": run.parameters.update}
    for (path, gram), window in product(paths.items(), windows):
        if len(gram) < 2 * window + 3:
            turns.warnings.append(
                f"{run.name}: {len(gram)} checkpoints are too few for a local cosine with window"
                f" {window}"
            )
            continue
        cosine = local_cosine(gram, window, threshold=threshold).numpy()
        if np.isfinite(cosine).sum() < 3:
            turns.warnings.append(
                f"{run.name}: chords of the path of {path} are shorter than {threshold:g} at"
                f" window {window}; no local cosine"
            )
            continue
        null = turn_null(gram, window, threshold=threshold, draws=draws, seed=seed)
        null_q95 = null.quantile(0.95)
        turns.cosines.append(
            pd.DataFrame(
                {
                    "model": run.name,
                    "path": path,
                    "window": window,
                    "step": run.parameters.steps,
                    "cosine": cosine,
                    # a turn is the excess of a peak over the median
                    "null_q95": float(np.nanmedian(cosine)) + null_q95,
                }
            )
        )
        turn = _sharpest_turn(run, gram, window, threshold)
        turns.rows.append(
            {
                "model": run.name,
                "series": f"turn of {path}, k={window}",
                "test": SHARPEST_TURN,
                **turn,
                "null_q95": null_q95,
                "p": null.p_value(),
                "n": len(gram),
            }
        )
    return turns


def _sharpest_turn(
    run: Trajectory, gram: Tensor, window: int, threshold: float
) -> dict[str, float]:
    excess, index = sharpest_turn(gram, window, threshold=threshold)
    return {
        "location": float(run.parameters.steps[index]),
        "location_low": np.nan,
        "location_high": np.nan,
        "size": excess,
        "statistic": excess,
    }


def tested_series(run: Trajectory, largest_layer: int) -> pd.DataFrame:
    """The series that are tested for change points, one column each, by step: behaviour, the norms
    of BA and B, and the projection of the shift at one layer.

    Args:
        largest_layer: the last layer that moved, up to this one, is taken.
    """
    series = pd.DataFrame(index=list(run.parameters.steps))
    behaviour = run.behaviour
    aligned = behaviour[(behaviour["of"] != "domain") & (behaviour["metric"] == "aligned")]
    for of, rows in aligned.groupby("of"):
        series[f"aligned_{of}"] = rows.set_index("step")["value"]
    series["norm_BA"] = run.parameters.norms["norm_BA"].to_numpy()
    series["norm_B"] = run.parameters.norms["norm_B"].to_numpy()
    if not len(run.activations):
        return series
    layers = run.activations["layer"]
    layers = layers[layers <= largest_layer]
    if len(layers):
        layer = int(layers.max())
        rows = run.activations[run.activations["layer"] == layer].set_index("step")
        # nothing is measured of the parent, whose shift is 0
        series[f"projection_{layer}"] = rows["projection"].reindex(series.index).fillna(0.0)
    return series
