"""Forecast against target, one point a question: hover shows the question."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emlens.figures.labels import label, number
from emlens.figures.questions import add_questions
from emlens.figures.style import GREY, dress, panel_title, spacing
from emlens.figures.tables import distinct, need, only

NAME = "forecast_scatter"
ROW = 290
GAP = 96


def forecast_scatter(
    predictions: pd.DataFrame,
    *,
    model: str | None = None,
    parent: str | None = None,
    summary: pd.DataFrame | None = None,
) -> go.Figure:
    """Out-of-fold forecasts of per-question alignment (0–100) against what was measured; one panel
    a way of holding out.

    Args:
        predictions: columns model, parent, held_out, id, group, text, target, predicted.
        summary: columns model, parent, held_out, r2, r2_low, r2_high, spearman; its numbers are
            written above the panels.

    Raises:
        InputError: a column is missing, or the model or parent is not in the table.
    """
    need(
        predictions,
        ("model", "parent", "held_out", "id", "group", "text", "target", "predicted"),
        NAME,
    )
    table = only(only(predictions, "model", model, NAME), "parent", parent, NAME)
    panels, groups = distinct(table, "held_out"), sorted({str(g) for g in table["group"]})
    figure = make_subplots(len(panels), 1, vertical_spacing=spacing(len(panels), ROW, GAP))
    for row, held_out in enumerate(panels, start=1):
        here = table[table["held_out"] == held_out]
        figure.add_scatter(
            x=[0, 100],
            y=[0, 100],
            mode="lines",
            line={"color": GREY, "dash": "dot", "width": 1},
            name="perfect forecast",
            legendgroup="perfect",
            legendrank=2000,
            showlegend=row == 1,
            hoverinfo="skip",
            row=row,
            col=1,
        )
        add_questions(
            figure, here, groups, "target", "predicted", "measured %{x:.1f}, forecast %{y:.1f}", row
        )
        panel_title(
            figure, f"{label(held_out)}s held out{_words(summary, model, parent, held_out)}", row
        )
        figure.update_xaxes(
            range=[-3, 103], title_text="measured after fine-tuning (0–100)", row=row, col=1
        )
        figure.update_yaxes(title_text="forecast (0–100)", row=row, col=1)
    return dress(figure, 190 + len(panels) * ROW + (len(panels) - 1) * GAP, title_lines=2)


def _words(
    summary: pd.DataFrame | None, model: str | None, parent: str | None, held_out: object
) -> str:
    if summary is None:
        return ""
    need(summary, ("model", "parent", "held_out", "r2", "r2_low", "r2_high", "spearman"), NAME)
    row = summary[
        (summary["held_out"] == held_out)
        & (summary["model"] == model)
        & (summary["parent"] == parent)
    ]
    if len(row) != 1:
        return ""
    r = row.iloc[0]
    return (
        f"</b><br>R² = {number(r['r2'])} [{number(r['r2_low'])}, {number(r['r2_high'])}],"
        f" Spearman {number(r['spearman'])}<b>"
    )
