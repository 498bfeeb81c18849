"""Forecast against measurement, one point per question, with the question in the hover box."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emlens.figures.forecast_summary import summary_row
from emlens.figures.labels import interval, label, number
from emlens.figures.question_points import add_diagonal, add_question_points
from emlens.figures.style import add_panel_title, apply_layout, panels_height, row_spacing
from emlens.figures.table_kinds import TableKind, TableNeed, model_from_parent
from emlens.figures.tables import distinct, require_columns, rows_where

NAME = "forecast_scatter"
COLUMNS = ("model", "parent", "held_out", "id", "group", "text", "target", "predicted")
NEED = TableNeed(
    "forecast_predictions",
    COLUMNS,
    is_thinned=True,
    fixed={"model": "", "parent": "", "held_out": "question", "text": ""},
)
SUMMARY_COLUMNS = ("r2", "r2_low", "r2_high", "spearman")
ROW = 290
GAP = 96


def forecast_scatter(
    predictions: pd.DataFrame,
    *,
    model: str | None = None,
    parent: str | None = None,
    held_out: str | None = None,
    summary: pd.DataFrame | None = None,
) -> go.Figure:
    """Out-of-fold forecasts of alignment (0–100) against what was measured, per question.

    One panel per way of holding out.

    Args:
        predictions: columns id, group, target, predicted, as a `Forecast` has them; model, parent,
            held_out and text where there are several; where there is a column answer, it is shown
            in the hover box.
        held_out: the only panel to draw; one per way of holding out without it.
        summary: columns model, parent, held_out, r2, r2_low, r2_high, spearman; its numbers are
            written above the panels.

    Raises:
        InputError: a column is missing, or the model, parent or way of holding out is not in the
            table.
    """
    predictions = NEED.filled(predictions)
    require_columns(predictions, COLUMNS, NAME)
    table = rows_where(predictions, "model", model, NAME)
    table = rows_where(table, "parent", parent, NAME)
    if held_out is not None:
        table = rows_where(table, "held_out", held_out, NAME)
    panels, groups = distinct(table, "held_out"), sorted(set(map(str, table["group"])))
    figure = make_subplots(len(panels), 1, vertical_spacing=row_spacing(len(panels), ROW, GAP))
    for row, panel in enumerate(panels, start=1):
        add_diagonal(
            figure,
            "perfect forecast",
            legendgroup="perfect",
            showlegend=row == 1,
            row=row,
            col=1,
        )
        add_question_points(
            figure,
            table[table["held_out"] == panel],
            "target",
            "predicted",
            "measured %{x:.1f}, forecast %{y:.1f}",
            groups=groups,
            row=row,
        )
        numbers = _numbers(summary, model, parent, panel)
        add_panel_title(figure, f"{label(panel)}s held out{numbers}", row)
        figure.update_xaxes(
            range=[-3, 103], title_text="measured after fine-tuning (0–100)", row=row, col=1
        )
        figure.update_yaxes(title_text="forecast (0–100)", row=row, col=1)
    return apply_layout(figure, 190 + panels_height(len(panels), ROW, GAP), title_lines=2)


def _numbers(
    summary: pd.DataFrame | None, model: str | None, parent: str | None, held_out: object
) -> str:
    """R² and rank correlation as a second line of the panel's title, not in bold."""
    row = summary_row(summary, model, parent, held_out, columns=SUMMARY_COLUMNS, figure=NAME)
    if row is None:
        return ""
    r2 = f"{number(row['r2'])} {interval(row['r2_low'], row['r2_high'])}"
    return f"</b><br>R² = {r2}, Spearman {number(row['spearman'])}<b>"


def _with_answers(predictions: pd.DataFrame, questions: pd.DataFrame | None) -> pd.DataFrame:
    """The predictions with the fine-tune's most likely answer, where the profile has it."""
    if questions is None or not {"model", "question", "answer"} <= set(questions.columns):
        return predictions
    if not {"model", "id"} <= set(predictions.columns):
        return predictions
    first = questions.drop_duplicates(["model", "question"])
    answers = first.set_index(["model", "question"])["answer"]
    keys = pd.MultiIndex.from_frame(predictions[["model", "id"]])
    return predictions.assign(answer=answers.reindex(keys).to_numpy())


def _draw(
    predictions: pd.DataFrame,
    summary: pd.DataFrame | None,
    questions: pd.DataFrame | None,
    *,
    model: str,
    parent: str,
    held_out: str,
) -> go.Figure:
    table = _with_answers(predictions, questions)
    return forecast_scatter(table, model=model, parent=parent, held_out=held_out, summary=summary)


def _label(model: str, parent: str, held_out: str) -> str:
    return f"{model_from_parent(model, parent)}, {held_out}s held out"


KIND = TableKind(
    name=NAME,
    reads=(
        NEED,
        TableNeed("forecast", is_required=False),
        TableNeed("questions", is_required=False, is_thinned=True),
    ),
    draw_figure=_draw,
    facets_by=("model", "parent", "held_out"),
    facet_label=_label,
)
