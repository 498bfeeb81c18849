"""A fine-tune's direction, layer by layer.

What removing it restores, how reliable it is, and what it points at.
"""

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emlens.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    VERMILLION,
    add_panel_note,
    add_panel_title,
    apply_layout,
    layer_axis,
    panels_height,
    rgba,
    row_spacing,
)
from emlens.figures.table_kinds import TableKind, TableNeed
from emlens.figures.tables import error_bars, layers_in, require_columns, rows_where

NAME = "direction_by_layer"
COSINES = (
    ("split_half_cosine", "split-half reliability", GREEN, "triangle-up", "dashdot"),
    ("cosine_planted", "cosine with the planted direction", BLUE, "circle", "solid"),
    ("cosine_unembedding", "cosine with the unembedding contrast", ORANGE, "square", "dash"),
)
COLUMNS = (
    "model",
    "layer",
    "last",
    *(column for column, *_ in COSINES),
    "restoration",
    "low",
    "high",
    "coherent",
    "n",
)
PANELS = (
    ("restoration by ablation", "share restored"),
    ("what the direction is", "cosine"),
    ("coherence under ablation", "0–100"),
)
RESTORATION, COSINE, COHERENCE = 1, 2, 3
"""Rows of the panels."""
ROW = 175
GAP = 66


def direction_by_layer(directions: pd.DataFrame, *, model: str | None = None) -> go.Figure:
    """Three panels over layers: restoration with its interval, cosines, coherence under ablation.

    Restoration is on the selection questions, with a 95 % interval; where it is undefined its panel
    says so. The last block is shaded: a direction that works only there is a readout, not a
    mediator. The planted direction is drawn only where one is known.

    Args:
        directions: columns model, layer, last, split_half_cosine, cosine_unembedding,
            cosine_planted, restoration, low, high, coherent, n.

    Raises:
        InputError: a column is missing, or the model is not in the table.
    """
    require_columns(directions, COLUMNS, NAME)
    table = rows_where(directions, "model", model, NAME).sort_values("layer")
    figure = make_subplots(3, 1, vertical_spacing=row_spacing(3, ROW, GAP))
    _add_restoration(figure, table)
    _add_cosines(figure, table)
    _add_coherence(figure, table)
    _shade_last_layer(figure, table)
    _label_panels(figure, layers_in(directions))
    lowest = -0.1
    if (table[["cosine_unembedding", "cosine_planted"]] < -0.05).any(axis=None):
        lowest = -1.05
    figure.update_yaxes(range=[lowest, 1.05], row=COSINE, col=1)
    figure.update_yaxes(range=[-3, 103], row=COHERENCE, col=1)
    figure.update_yaxes(rangemode="tozero", row=RESTORATION, col=1)
    return apply_layout(figure, 180 + panels_height(3, ROW, GAP), title_lines=1)


def _add_line(figure: go.Figure, table: pd.DataFrame, column: str, **options: Any) -> None:
    figure.add_scatter(x=table["layer"], y=table[column], mode="lines+markers", col=1, **options)


def _add_restoration(figure: go.Figure, table: pd.DataFrame) -> None:
    _add_line(
        figure,
        table,
        "restoration",
        name="restoration",
        showlegend=False,
        line={"color": VERMILLION},
        marker={"size": 9},
        error_y=error_bars(table["restoration"], table["low"], table["high"], VERMILLION),
        customdata=table[["low", "high", "n"]].to_numpy(),
        hovertemplate=(
            "restoration, layer %{x}: %{y:.2f} [%{customdata[0]:.2f}, %{customdata[1]:.2f}],"
            " %{customdata[2]} questions<extra></extra>"
        ),
        row=RESTORATION,
    )
    if table["restoration"].isna().all():
        note = "undefined: no clear loss to restore"
        add_panel_note(figure, note, row=RESTORATION, col=1, y=0.72)
        figure.update_yaxes(range=[-1, 1], row=RESTORATION, col=1)


def _add_cosines(figure: go.Figure, table: pd.DataFrame) -> None:
    for column, title, colour, symbol, dash in COSINES:
        if table[column].isna().all():
            continue
        _add_line(
            figure,
            table,
            column,
            name=title,
            line={"color": colour, "dash": dash},
            marker={"symbol": symbol, "size": 8},
            hovertemplate=f"{title}, layer %{{x}}: %{{y:.2f}}<extra></extra>",
            row=COSINE,
        )


def _add_coherence(figure: go.Figure, table: pd.DataFrame) -> None:
    _add_line(
        figure,
        table,
        "coherent",
        name="coherence under ablation",
        showlegend=False,
        line={"color": GREY, "dash": "dot"},
        marker={"symbol": "diamond", "size": 8},
        hovertemplate="coherence, layer %{x}: %{y:.1f}<extra></extra>",
        row=COHERENCE,
    )


def _shade_last_layer(figure: go.Figure, table: pd.DataFrame) -> None:
    last = table.loc[table["last"].astype(bool), "layer"]
    for layer in sorted(set(last))[-1:]:
        for row in (RESTORATION, COSINE, COHERENCE):
            figure.add_vrect(
                x0=layer - 0.35,
                x1=layer + 0.35,
                fillcolor=rgba(GREY, 0.14),
                line_width=0,
                layer="below",
                row=row,
                col=1,
            )


def _label_panels(figure: go.Figure, layers: list[int]) -> None:
    """Titles of panels and axes; that of the layers is below the last panel only."""
    ends = [min(layers) - 0.5, max(layers) + 0.5]
    for row, (title, unit) in enumerate(PANELS, start=1):
        is_last = row == len(PANELS)
        figure.update_xaxes(**layer_axis(layers), range=ends, row=row, col=1)
        figure.update_yaxes(title_text=unit, zeroline=not is_last, row=row, col=1)
        if not is_last:
            figure.update_xaxes(title_text=None, row=row, col=1)
        add_panel_title(figure, title, row)


KIND = TableKind(
    name=NAME,
    reads=(TableNeed("directions", COLUMNS),),
    draw_figure=direction_by_layer,
    facets_by=("model",),
)
