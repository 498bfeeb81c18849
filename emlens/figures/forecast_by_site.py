"""Where forecasts work: R² by layer and position, with p-values corrected over the whole grid."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emlens.figures.labels import label, number, position_name
from emlens.figures.style import (
    BAR_ROOM,
    DIVERGING,
    INK,
    add_panel_title,
    apply_layout,
    colour_bar,
    layer_axis,
    panels_height,
    row_spacing,
)
from emlens.figures.table_kinds import TableKind, TableNeed, model_from_parent
from emlens.figures.tables import distinct, layers_in, layers_of_sites, require_columns, rows_where

NAME = "forecast_by_site"
COLUMNS = ("model", "parent", "held_out", "site", "position", "r2", "p_max")
MOST_NUMBERED = 12
"""Layers up to which a cell has room for its numbers."""
ROW = 46
GAP = 76


def forecast_by_site(
    sites: pd.DataFrame, *, model: str | None = None, parent: str | None = None
) -> go.Figure:
    """R² at every layer (columns) and position (rows), and under it the p of the maximum.

    One panel per way of holding out. Exploratory: the best cell of a grid is never a headline.
    Colours run from −0.5 to 0.5.

    Args:
        sites: columns model, parent, held_out, site, position, r2, p_max.

    Raises:
        InputError: a column is missing, or the model or parent is not in the table.
    """
    require_columns(sites, COLUMNS, NAME)
    table = rows_where(sites, "model", model, NAME)
    table = rows_where(table, "parent", parent, NAME)
    table = table.assign(layer=layers_of_sites(table["site"].tolist()))
    panels, positions = distinct(table, "held_out"), distinct(table, "position")
    layers = layers_in(table)
    height = ROW * len(positions)
    figure = make_subplots(len(panels), 1, vertical_spacing=row_spacing(len(panels), height, GAP))
    for row, held_out in enumerate(panels, start=1):
        _add_grid(figure, table[table["held_out"] == held_out], positions, layers, row)
        figure.update_xaxes(**layer_axis(layers), showgrid=False, row=row, col=1)
        add_panel_title(figure, f"{label(held_out)}s held out", row)
    bar = colour_bar([-0.5, 0, 0.5], ["R² −0.5", "0", "0.5"])
    figure.update_layout(
        coloraxis={"colorscale": DIVERGING, "cmin": -0.5, "cmax": 0.5, "colorbar": bar}
    )
    total = 150 + panels_height(len(panels), height, GAP)
    apply_layout(figure, total, legend=False, title_lines=1)
    return figure.update_layout(margin={"t": BAR_ROOM})


def _add_grid(
    figure: go.Figure, table: pd.DataFrame, positions: list[object], layers: list[int], row: int
) -> None:
    """The heatmap of one way of holding out."""
    r2, p = _grid(table, "r2", positions, layers), _grid(table, "p_max", positions, layers)
    texts = []
    for values, p_values in zip(r2, p, strict=True):
        texts.append(list(map(_cell_text, values, p_values)))
    figure.add_heatmap(
        z=r2,
        x=layers,
        y=list(range(len(positions))),
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
        text=texts,
        texttemplate="%{text}" if len(layers) <= MOST_NUMBERED else None,
        textfont={"size": 11, "color": INK},
        customdata=p,
        hovertemplate="layer %{x}: R² %{z:.3f}, corrected p %{customdata:.3g}<extra></extra>",
        row=row,
        col=1,
    )
    figure.update_yaxes(
        tickvals=list(range(len(positions))),
        ticktext=list(map(position_name, positions)),
        autorange="reversed",
        showgrid=False,
        row=row,
        col=1,
    )


def _grid(
    table: pd.DataFrame, column: str, positions: list[object], layers: list[int]
) -> "np.ndarray[Any, Any]":
    """Values of a column, positions down and layers across; NaN where there is none."""
    cells = table.pivot_table(
        index="position", columns="layer", values=column, sort=False, dropna=False
    )
    return cells.reindex(index=positions, columns=layers).to_numpy(dtype=float)


def _cell_text(r2: float, p: float) -> str:
    return "" if np.isnan(r2) else f"{number(r2)}<br>p {_p_text(p)}"


def _p_text(p: float) -> str:
    if np.isnan(p):
        return "–"
    if p < 0.001:
        return "< .001"
    return f"{p:.2f}" if p >= 0.1 else f"{p:.3f}"


KIND = TableKind(
    name=NAME,
    reads=(TableNeed("forecast_sites", COLUMNS),),
    draw_figure=forecast_by_site,
    facets_by=("model", "parent"),
    facet_label=model_from_parent,
)
