"""Table `overlap_layers` of `delta_overlap`: what a fine-tune's shifts share at every layer, beside
what training without the content gives there.

`overlap_test` tests the means over these layers. A single layer is described and has no p: which of
several lies farthest out is a choice made after looking.
"""

from typing import Any

import numpy as np
import pandas as pd

from emlens.controls.null_training import TrainingNull
from emlens.controls.shift_statistics import DESCRIBED, TESTED
from emlens.studies.overlap_shifts import Place

LOW, HIGH = 0.05, 0.95
"""Quantiles of the null, as in `overlap_test`."""


def layer_rows(
    name: str,
    cells: pd.DataFrame,
    benign_cells: pd.DataFrame | None,
    null: TrainingNull | str,
    k: int,
) -> list[dict[str, Any]]:
    """One row per place and statistic.

    The columns of the null are NaN where there is none, or where not every adapter has the place.

    Args:
        cells, benign_cells: site, position, statistic, value of the fine-tune and of its benign
            control. null: or a sentence that says why there is none. k: dimension of the described
            subspaces.
    """
    draws = {} if isinstance(null, str) else _draws(null)
    benign = {} if benign_cells is None else _values(benign_cells)
    rows = []
    for key, value in _values(cells).items():
        site, position, statistic = key
        if statistic not in (*TESTED, *DESCRIBED):
            continue
        rows.append(
            {
                **Place(name, site, position).columns,
                "measure": statistic,
                "k": k,
                "value": value,
                **_spread(draws.get(key)),
                "benign_value": benign.get(key, np.nan),
            }
        )
    return rows


def _values(cells: pd.DataFrame) -> dict[tuple[str, str, str], float]:
    keys = cells[["site", "position", "statistic"]].astype(str).itertuples(index=False, name=None)
    return dict(zip(keys, cells["value"].astype(float), strict=True))


def _draws(null: TrainingNull) -> dict[tuple[str, str, str], np.ndarray]:
    """The values of all adapters at the places that all of them have."""
    draws = {}
    for key, rows in null.cells.groupby(["site", "position", "statistic"], sort=False):
        if rows["adapter"].nunique() == len(null.runs):
            site, position, statistic = map(str, key)
            draws[site, position, statistic] = rows["value"].to_numpy(np.float64)
    return draws


def _spread(draws: np.ndarray | None) -> dict[str, float]:
    if draws is None:
        return dict.fromkeys(("null_mean", "null_low", "null_q95"), np.nan)
    return {
        "null_mean": float(draws.mean()),
        "null_low": float(np.quantile(draws, LOW)),
        "null_q95": float(np.quantile(draws, HIGH)),
    }
