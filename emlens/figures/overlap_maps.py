"""Layer × position heatmaps of subspace overlap: the tested overlap and its controls on one colour
scale.
"""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emlens.figures.labels import position_name
from emlens.figures.style import (
    BAR_ROOM,
    SEQUENTIAL,
    colour_bar,
    dress,
    layer_axis,
    panel_title,
    spacing,
)
from emlens.figures.tables import distinct, need, only

NAME = "overlap_heatmaps"
COLUMNS = (
    "model",
    "layer",
    "position",
    "center",
    "comparison",
    "value",
    "null",
    "null_mean",
    "null_q95",
)
TESTED = "train–evaluation"
ROW = 27
GAP = 80


def overlap_heatmaps(
    overlap: pd.DataFrame, *, model: str | None = None, center: str = "true"
) -> go.Figure:
    """Overlap (0 to 1) by layer, one panel a position; rows: tested, covariance-matched null (95th
    percentile, mean), benign, neutral text, ceiling, isotropic.

    Args:
        overlap: columns model, layer, position, center, comparison, value, null, null_mean,
            null_q95.
        center: `"true"` or `"false"` for overlaps of centred or uncentred shifts.

    Raises:
        InputError: a column is missing, or the model or `center` is not in the table.
    """
    need(overlap, COLUMNS, NAME)
    table = only(only(overlap, "model", model, NAME), "center", center, NAME)
    positions, layers = distinct(table, "position"), sorted({int(i) for i in overlap["layer"]})
    rows = _rows(table)
    height = ROW * len(rows)
    figure = make_subplots(len(positions), 1, vertical_spacing=spacing(len(positions), height, GAP))
    for row, position in enumerate(positions, start=1):
        here = table[table["position"] == position]
        z = np.full((len(rows), len(layers)), np.nan)
        for i, (_, chosen, column) in enumerate(rows):
            values = here[chosen(here)].drop_duplicates("layer").set_index("layer")[column]
            z[i] = values.reindex(layers).to_numpy(dtype=float)
        figure.add_heatmap(
            z=z,
            x=layers,
            y=list(range(len(rows))),
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            texttemplate="%{z:.2f}" if len(layers) <= 12 else None,
            customdata=[[name] * len(layers) for name, _, _ in rows],
            hovertemplate="%{customdata}, layer %{x}: %{z:.3f}<extra></extra>",
            row=row,
            col=1,
        )
        figure.update_yaxes(
            tickvals=list(range(len(rows))),
            ticktext=[name for name, _, _ in rows],
            autorange="reversed",
            showgrid=False,
            row=row,
            col=1,
        )
        figure.update_xaxes(**layer_axis(layers), showgrid=False, row=row, col=1)
        panel_title(figure, position_name(position), row)
    bar = colour_bar([0, 0.5, 1], ["overlap 0", "0.5", "1"])
    figure.update_layout(
        coloraxis={"colorscale": SEQUENTIAL, "cmin": 0, "cmax": 1, "colorbar": bar}
    )
    dress(
        figure,
        150 + len(positions) * height + (len(positions) - 1) * GAP,
        legend=False,
        title_lines=1,
    )
    return figure.update_layout(margin={"t": BAR_ROOM})


def _rows(table: pd.DataFrame) -> list[tuple[str, "_Chosen", str]]:
    """Label, row filter and column of every heatmap row that the table has."""
    rows: list[tuple[str, _Chosen, str]] = [("<b>tested</b>", _Chosen(TESTED), "value")]
    nulls = [str(n) for n in distinct(table[table["comparison"] == TESTED], "null")]
    for name in [n for n in nulls if n.startswith("covariance")]:
        rows += [
            ("covariance null, 95 %", _Chosen(TESTED, name), "null_q95"),
            ("covariance null, mean", _Chosen(TESTED, name), "null_mean"),
        ]
    others = {
        "benign train–evaluation": "benign fine-tune",
        "train–neutral text": "neutral text",
        "split-half ceiling": "split-half ceiling",
    }
    rows += [
        (title, _Chosen(key), "value")
        for key, title in others.items()
        if (table["comparison"] == key).any()
    ]
    if "isotropic" in nulls:
        rows.append(("isotropic, mean", _Chosen(TESTED, "isotropic"), "null_mean"))
    return rows


class _Chosen:
    """Row filter: a comparison, and a null where it matters."""

    def __init__(self, comparison: str, null: str | None = None) -> None:
        self.comparison, self.null = comparison, null

    def __call__(self, table: pd.DataFrame) -> "pd.Series[bool]":
        chosen = table["comparison"] == self.comparison
        return chosen if self.null is None else chosen & (table["null"] == self.null)
