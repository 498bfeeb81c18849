"""Heatmaps of subspace overlap by layer: the tested one and its controls on one colour scale."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emlens.figures.kinds import Facet
from emlens.figures.labels import position_name
from emlens.figures.style import (
    BAR_ROOM,
    INK,
    SEQUENTIAL,
    add_panel_title,
    apply_layout,
    colour_bar,
    layer_axis,
    panels_height,
    row_spacing,
)
from emlens.figures.table_kinds import TableKind, TableNeed, models_in
from emlens.figures.tables import distinct, layers_in, require_columns, rows_where
from emlens.results.overlap_labels import (
    BENIGN,
    CEILING,
    CENTRED,
    ISOTROPIC,
    TESTED,
    TRAIN_NEUTRAL,
    UNCENTRED,
)

NAME = "overlap_heatmaps"
COLUMNS = (
    "model",
    "layer",
    "position",
    "center",
    "comparison",
    "value",
    "null_kind",
    "null_mean",
    "null_q95",
)
OTHER_ROWS = {
    BENIGN: "benign fine-tune",
    TRAIN_NEUTRAL: "neutral text",
    CEILING: "split-half ceiling",
}
CENTRING = {CENTRED: "centred", UNCENTRED: "uncentred"}
MOST_NUMBERED = 12
"""Layers up to which a cell has room for its number."""
ROW_PIXELS = 27
GAP_PIXELS = 80


@dataclass(frozen=True)
class _Row:
    """A row of the heatmap: the column of the table that it shows, of one comparison.

    null: the null that its rows must have; any where None.
    """

    name: str
    comparison: str
    column: str
    null: str | None = None

    def values(self, table: pd.DataFrame, layers: list[int]) -> "np.ndarray[Any, Any]":
        """One value per layer; NaN where there is none."""
        is_shown = table["comparison"] == self.comparison
        if self.null is not None:
            is_shown &= table["null_kind"] == self.null
        by_layer = table[is_shown].drop_duplicates("layer").set_index("layer")[self.column]
        return by_layer.reindex(layers).to_numpy(dtype=float)


def overlap_heatmaps(
    overlap: pd.DataFrame, *, model: str | None = None, center: str = CENTRED
) -> go.Figure:
    """Overlap (0 to 1) by layer, one panel per position, the tested one above its controls.

    Rows: train–evaluation, samples of one population (95th percentile, mean), benign fine-tune,
    neutral text, ceiling, random subspaces.

    Args:
        overlap: columns model, layer, position, center, comparison, value, null, null_mean,
            null_q95.
        center: `"true"` or `"false"` for overlaps of centred or uncentred shifts.

    Raises:
        InputError: a column is missing, or the model or `center` is not in the table.
    """
    require_columns(overlap, COLUMNS, NAME)
    table = rows_where(overlap, "model", model, NAME)
    table = rows_where(table, "center", center, NAME)
    positions, layers, rows = distinct(table, "position"), layers_in(overlap), _rows(table)
    height = ROW_PIXELS * len(rows)
    spacing = row_spacing(len(positions), height, GAP_PIXELS)
    figure = make_subplots(len(positions), 1, vertical_spacing=spacing)
    for panel, position in enumerate(positions, start=1):
        _add_panel(figure, table[table["position"] == position], rows, layers, panel)
        figure.update_xaxes(**layer_axis(layers), showgrid=False, row=panel, col=1)
        add_panel_title(figure, position_name(position), panel)
    bar = colour_bar([0, 0.5, 1], ["overlap 0", "0.5", "1"])
    figure.update_layout(
        coloraxis={"colorscale": SEQUENTIAL, "cmin": 0, "cmax": 1, "colorbar": bar}
    )
    total = 150 + panels_height(len(positions), height, GAP_PIXELS)
    apply_layout(figure, total, legend=False, title_lines=1)
    return figure.update_layout(margin={"t": BAR_ROOM})


def _add_panel(
    figure: go.Figure, table: pd.DataFrame, rows: list[_Row], layers: list[int], panel: int
) -> None:
    """The heatmap of one position; `panel` counts from 1, from above."""
    names = [row.name for row in rows]
    figure.add_heatmap(
        z=np.stack([row.values(table, layers) for row in rows]),
        x=layers,
        y=list(range(len(rows))),
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
        texttemplate="%{z:.2f}" if len(layers) <= MOST_NUMBERED else None,
        textfont={"size": 12, "color": INK},
        customdata=[[name] * len(layers) for name in names],
        hovertemplate="%{customdata}, layer %{x}: %{z:.3f}<extra></extra>",
        row=panel,
        col=1,
    )
    figure.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=names,
        autorange="reversed",
        showgrid=False,
        row=panel,
        col=1,
    )


def _rows(table: pd.DataFrame) -> list[_Row]:
    """The rows that the table has values for."""
    rows = [_Row("<b>train–evaluation</b>", TESTED, "value")]
    nulls = list(map(str, distinct(table[table["comparison"] == TESTED], "null_kind")))
    for null in nulls:
        if null.startswith("covariance"):
            rows.append(_Row("one population, 95 %", TESTED, "null_q95", null))
            rows.append(_Row("one population, mean", TESTED, "null_mean", null))
    for comparison, name in OTHER_ROWS.items():
        if (table["comparison"] == comparison).any():
            rows.append(_Row(name, comparison, "value"))
    if ISOTROPIC in nulls:
        rows.append(_Row("isotropic, mean", TESTED, "null_mean", ISOTROPIC))
    return rows


def _facets(tables: Mapping[str, pd.DataFrame]) -> list[Facet]:
    """Centred, then uncentred, of every model."""
    facets = []
    for model in models_in(tables["overlap"]):
        for center, word in CENTRING.items():
            facets.append(Facet((model, center), f"{model}, {word}"))
    return facets


KIND = TableKind(
    name=NAME,
    reads=(TableNeed("overlap", COLUMNS),),
    draw_figure=overlap_heatmaps,
    facets_by=("model", "center"),
    list_facets=_facets,
)
