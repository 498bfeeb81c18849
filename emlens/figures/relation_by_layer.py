"""The correlation of overlap and likeness of shifts at every layer, beside its permutation null."""

from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emlens.figures.labels import position_name
from emlens.figures.style import (
    BLUE,
    GREY,
    VERMILLION,
    add_panel_title,
    apply_layout,
    layer_axis,
    panels_height,
    rgba,
    row_spacing,
)
from emlens.figures.tables import (
    distinct,
    error_bars,
    layers_in,
    require_columns,
    rows_where,
)

NAME = "relation_by_layer"
COLUMNS = (
    "model",
    "layer",
    "position",
    "pearson",
    "low",
    "high",
    "null_mean",
    "null_q95",
    "partial",
    "partial_low",
    "partial_high",
)
ROW = 235
GAP = 118


class _Correlation(NamedTuple):
    """How one correlation is drawn: its columns and its look.

    sideways: how far it lies beside its layer, so that bars of two do not overlap.
    """

    value: str
    low: str
    high: str
    title: str
    colour: str
    symbol: str
    dash: str
    sideways: float


CORRELATIONS = (
    _Correlation("pearson", "low", "high", "Pearson r", BLUE, "circle", "solid", -0.06),
    _Correlation(
        "partial",
        "partial_low",
        "partial_high",
        "partial r (length, norms)",
        VERMILLION,
        "square",
        "dash",
        0.06,
    ),
)


def relation_by_layer(relations: pd.DataFrame, *, model: str | None = None) -> go.Figure:
    """The correlation at every layer, one panel per position: Pearson, partial, permutation null.

    Args:
        relations: columns model, layer, position, pearson, low, high, null_mean, null_q95, partial,
            partial_low, partial_high.

    Raises:
        InputError: a column is missing, or the model is not in the table.
    """
    require_columns(relations, COLUMNS, NAME)
    table = rows_where(relations, "model", model, NAME)
    positions, layers = distinct(table, "position"), layers_in(table)
    spacing = row_spacing(len(positions), ROW, GAP)
    figure = make_subplots(len(positions), 1, vertical_spacing=spacing)
    for row, position in enumerate(positions, start=1):
        rows = table[table["position"] == position].sort_values("layer")
        _add_null(figure, rows, row)
        for look in CORRELATIONS:
            _add_correlation(figure, rows, look, row)
        figure.update_yaxes(
            range=[-1.05, 1.05], zeroline=True, title_text="correlation", row=row, col=1
        )
        figure.update_xaxes(**layer_axis(layers), row=row, col=1)
        add_panel_title(figure, position_name(position), row)
    return apply_layout(figure, 190 + panels_height(len(positions), ROW, GAP), title_lines=1)


def _add_null(figure: go.Figure, rows: pd.DataFrame, row: int) -> None:
    """A band from the mean of the null to its 95th percentile."""
    common: dict[str, Any] = {
        "x": rows["layer"],
        "mode": "lines",
        "legendgroup": "null",
        "legendrank": 2000,
        "row": row,
        "col": 1,
        "line": {"color": rgba(GREY, 0.6), "width": 1},
    }
    figure.add_scatter(
        y=rows["null_mean"],
        showlegend=False,
        name="permutation null, mean",
        hovertemplate="null mean %{y:.2f}<extra></extra>",
        **common,
    )
    figure.add_scatter(
        y=rows["null_q95"],
        fill="tonexty",
        fillcolor=rgba(GREY, 0.25),
        showlegend=row == 1,
        name="permutation null, mean to 95 %",
        hovertemplate="null 95th percentile %{y:.2f}<extra></extra>",
        **common,
    )


def _add_correlation(figure: go.Figure, rows: pd.DataFrame, look: _Correlation, row: int) -> None:
    """One correlation over layers, with its interval."""
    value, low, high = rows[look.value], rows[look.low], rows[look.high]
    figure.add_scatter(
        x=rows["layer"] + look.sideways,
        y=value,
        mode="lines+markers",
        name=look.title,
        legendgroup=look.title,
        showlegend=row == 1,
        line={"color": look.colour, "width": 1.5, "dash": look.dash},
        marker={"symbol": look.symbol, "size": 8},
        error_y=error_bars(value, low, high, look.colour),
        customdata=rows["layer"],
        hovertemplate=f"{look.title}, layer %{{customdata}}: %{{y:.2f}}<extra></extra>",
        row=row,
        col=1,
    )
