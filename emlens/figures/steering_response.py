"""Steering dose and response: the direction beside a random vector of the same length.

Doses outside the window in which the model stays usable are grey, where the table marks them.
"""

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emlens.figures.labels import label
from emlens.figures.style import (
    BLUE,
    CYCLE,
    DASHES,
    GREY,
    SYMBOLS,
    VERMILLION,
    add_panel_title,
    apply_layout,
    panels_height,
    rgba,
    row_spacing,
)
from emlens.figures.table_kinds import TableKind, TableNeed
from emlens.figures.tables import distinct, require_columns, rows_where

NAME = "steering_response"
COLUMNS = (
    "model",
    "steered",
    "vector",
    "site",
    "coefficient",
    "aligned",
    "aligned_low",
    "aligned_high",
    "coherent",
    "n",
)
COLOURS = (VERMILLION, BLUE, *CYCLE[2:])
"""The direction, which comes first, has the colour of harmful fine-tunes."""
UNUSABLE = "#b5b5b5"
ROW = 210
GAP = 84


def steering_response(steering: pd.DataFrame, *, model: str | None = None) -> go.Figure:
    """Mean alignment and coherence (0–100) against the coefficient, one panel per steered model.

    Alignment has a 95 % band, coherence is a thin dotted line. The direction is added to the parent
    and taken from the fine-tune. What lies outside the usable doses is grey: there it is the effect
    of a broken model.

    Args:
        steering: columns model, steered, vector, site, coefficient, aligned, aligned_low,
            aligned_high, coherent, n; usable (True or False) where the window is known.

    Raises:
        InputError: a column is missing, or the model is not in the table.
    """
    require_columns(steering, COLUMNS, NAME)
    table = rows_where(steering, "model", model, NAME)
    panels = distinct(table, "steered")
    figure = make_subplots(len(panels), 1, vertical_spacing=row_spacing(len(panels), ROW, GAP))
    has_unusable = False
    for row, steered in enumerate(panels, start=1):
        rows = table[table["steered"] == steered]
        for i, vector in enumerate(distinct(rows, "vector")):
            doses = rows[rows["vector"] == vector].sort_values("coefficient")
            usable = doses
            if "usable" in doses.columns:
                usable = doses[doses["usable"].astype(bool)]
            if len(usable) < len(doses):
                _add_unusable(figure, doses, i, row, showlegend=not has_unusable)
                has_unusable = True
            _add_alignment(figure, usable, label(vector), i, row)
            _add_coherence(figure, doses, label(vector), i, row)
        add_panel_title(figure, f"steering {label(steered)}", row)
        figure.update_xaxes(title_text="coefficient (× the direction’s length)", row=row, col=1)
        figure.update_yaxes(range=[-3, 103], title_text="0–100", row=row, col=1)
    return apply_layout(figure, 180 + panels_height(len(panels), ROW, GAP), title_lines=1)


def _add_alignment(figure: go.Figure, doses: pd.DataFrame, name: str, i: int, row: int) -> None:
    """The alignment of the i-th vector, in a band from the lower to the upper end."""
    colour = COLOURS[i]
    common: dict[str, Any] = {"x": doses["coefficient"], "row": row, "col": 1}
    band = common | {
        "mode": "lines",
        "line": {"width": 0},
        "fillcolor": rgba(colour, 0.16),
        "showlegend": False,
        "hoverinfo": "skip",
    }
    figure.add_scatter(y=doses["aligned_low"], name=f"{name}, low", **band)
    # plotly fills down to the trace before this one
    figure.add_scatter(y=doses["aligned_high"], name=f"{name}, high", fill="tonexty", **band)
    figure.add_scatter(
        y=doses["aligned"],
        mode="lines+markers",
        name=f"alignment, {name}",
        legendgroup=f"alignment {i}",
        legendrank=1000,
        line={"color": colour, "dash": DASHES[i % len(DASHES)]},
        marker={"symbol": SYMBOLS[i], "size": 8},
        showlegend=row == 1,
        customdata=doses[["aligned_low", "aligned_high", "n"]].to_numpy(),
        hovertemplate=(
            "coefficient %{x}: alignment %{y:.1f} [%{customdata[0]:.1f}, %{customdata[1]:.1f}],"
            " %{customdata[2]} questions<extra></extra>"
        ),
        **common,
    )


def _add_unusable(
    figure: go.Figure, doses: pd.DataFrame, i: int, row: int, *, showlegend: bool
) -> None:
    """Alignment at all doses of the i-th vector in grey; what is usable is drawn over it."""
    figure.add_scatter(
        x=doses["coefficient"],
        y=doses["aligned"],
        mode="lines+markers",
        name="outside the usable doses",
        legendgroup="unusable",
        legendrank=1002,
        line={"color": UNUSABLE, "width": 1.5, "dash": DASHES[i % len(DASHES)]},
        marker={"symbol": f"{SYMBOLS[i]}-open", "size": 8, "color": UNUSABLE},
        showlegend=showlegend,
        customdata=doses[["aligned_low", "aligned_high", "n"]].to_numpy(),
        hovertemplate=(
            "coefficient %{x}, outside the usable doses: alignment %{y:.1f}"
            " [%{customdata[0]:.1f}, %{customdata[1]:.1f}], %{customdata[2]} questions"
            "<extra></extra>"
        ),
        row=row,
        col=1,
    )


def _add_coherence(figure: go.Figure, doses: pd.DataFrame, name: str, i: int, row: int) -> None:
    colour = GREY if i == 0 else COLOURS[i]
    figure.add_scatter(
        x=doses["coefficient"],
        y=doses["coherent"],
        mode="lines",
        name=f"coherence, {name}",
        legendgroup=f"coherence {i}",
        legendrank=1001,
        line={"color": rgba(colour, 0.8), "dash": "dot", "width": 1.5},
        showlegend=row == 1,
        hovertemplate="coefficient %{x}: coherence %{y:.1f}<extra></extra>",
        row=row,
        col=1,
    )


KIND = TableKind(
    name=NAME,
    reads=(TableNeed("steering", COLUMNS),),
    draw_figure=steering_response,
    facets_by=("model",),
)
