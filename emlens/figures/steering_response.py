"""Steering dose and response: the direction beside a random vector of the same length.

The window of doses in which the model stays usable is shaded, and what lies outside it is grey,
where the table marks them.
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
    GREEN,
    GREY,
    SYMBOLS,
    VERMILLION,
    add_panel_title,
    apply_layout,
    rgba,
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
NEED = TableNeed(
    "steering", COLUMNS, fixed={"model": "", "steered": "model", "vector": "edit", "site": ""}
)
COLOURS = (VERMILLION, BLUE, *CYCLE[2:])
"""The direction, which comes first, has the colour of harmful fine-tunes."""
UNUSABLE = "#b5b5b5"
HEIGHT = 400
SPACING = 0.03


def steering_response(steering: pd.DataFrame, *, model: str | None = None) -> go.Figure:
    """Mean alignment and coherence (0–100) against the signed coefficient, a panel a steered model.

    The panels lie beside each other, the model with the lowest doses first: the direction is taken
    from the fine-tune (left) and added to the parent (right). Alignment has a 95 % band, coherence
    is a thin dotted line. The doses at which the direction leaves the model usable are shaded; what
    lies outside them is grey: there it is the effect of a broken model.

    Args:
        steering: columns coefficient, aligned, aligned_low, aligned_high, coherent, n, as
            `dose_response` gives them; model, steered and vector where there are several; usable
            (True or False) where the window is known.

    Raises:
        InputError: a column is missing, or the model is not in the table.
    """
    steering = NEED.filled(steering)
    require_columns(steering, COLUMNS, NAME)
    table = rows_where(steering, "model", model, NAME)
    panels = _panels(table)
    figure = make_subplots(1, len(panels), shared_yaxes=True, horizontal_spacing=SPACING)
    has_unusable = False
    for col, steered in enumerate(panels, start=1):
        rows = table[table["steered"] == steered]
        for i, vector in enumerate(distinct(rows, "vector")):
            doses = rows[rows["vector"] == vector].sort_values("coefficient")
            usable = doses
            if "usable" in doses.columns:
                usable = doses[doses["usable"].astype(bool)]
            if len(usable) < len(doses):
                _add_unusable(figure, doses, i, col, showlegend=not has_unusable)
                has_unusable = True
            _add_alignment(figure, usable, label(vector), i, col)
            _add_coherence(figure, doses, label(vector), i, col)
        _shade_window(figure, rows, col)
        add_panel_title(figure, label(steered, 22), 1, col)
        figure.update_xaxes(title_text="coefficient (× length)", row=1, col=col)
        figure.update_yaxes(range=[-3, 103], row=1, col=col)
    figure.update_yaxes(title_text="0–100", row=1, col=1)
    return apply_layout(figure, HEIGHT, title_lines=1)


def _panels(table: pd.DataFrame) -> list[object]:
    """The steered models, that with the lowest dose first."""
    lowest = table.groupby("steered", sort=False)["coefficient"].min()
    return list(lowest.sort_values(kind="stable").index)


def _shade_window(figure: go.Figure, rows: pd.DataFrame, col: int) -> None:
    """The doses from the lowest to the highest usable one of the direction, which comes first."""
    if "usable" not in rows.columns:
        return
    of_direction = rows[rows["vector"] == distinct(rows, "vector")[0]]
    usable = of_direction.loc[of_direction["usable"].astype(bool), "coefficient"]
    if not len(usable):
        return
    figure.add_vrect(
        x0=usable.min(),
        x1=usable.max(),
        fillcolor=rgba(GREEN, 0.13),
        line_width=0,
        layer="below",
        row=1,
        col=col,
    )


def _add_alignment(figure: go.Figure, doses: pd.DataFrame, name: str, i: int, col: int) -> None:
    """The alignment of the i-th vector, in a band from the lower to the upper end."""
    colour = COLOURS[i]
    common: dict[str, Any] = {"x": doses["coefficient"], "row": 1, "col": col}
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
        showlegend=col == 1,
        customdata=doses[["aligned_low", "aligned_high", "n"]].to_numpy(),
        hovertemplate=(
            "coefficient %{x}: alignment %{y:.1f} [%{customdata[0]:.1f}, %{customdata[1]:.1f}],"
            " %{customdata[2]} questions<extra></extra>"
        ),
        **common,
    )


def _add_unusable(
    figure: go.Figure, doses: pd.DataFrame, i: int, col: int, *, showlegend: bool
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
        row=1,
        col=col,
    )


def _add_coherence(figure: go.Figure, doses: pd.DataFrame, name: str, i: int, col: int) -> None:
    colour = GREY if i == 0 else COLOURS[i]
    figure.add_scatter(
        x=doses["coefficient"],
        y=doses["coherent"],
        mode="lines",
        name=f"coherence, {name}",
        legendgroup=f"coherence {i}",
        legendrank=1001,
        line={"color": rgba(colour, 0.8), "dash": "dot", "width": 1.5},
        showlegend=col == 1,
        hovertemplate="coefficient %{x}: coherence %{y:.1f}<extra></extra>",
        row=1,
        col=col,
    )


KIND = TableKind(
    name=NAME,
    reads=(NEED,),
    draw_figure=steering_response,
    facets_by=("model",),
)
