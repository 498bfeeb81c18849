"""How well activations forecast, beside everything simpler: R² with intervals and the null."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emlens.figures.forecast_summary import summary_row
from emlens.figures.labels import interval, label, number
from emlens.figures.style import (
    BLACK,
    BLUE,
    GREY,
    VERMILLION,
    add_panel_title,
    apply_layout,
    panels_height,
    row_spacing,
)
from emlens.figures.table_kinds import TableKind, TableNeed, model_from_parent
from emlens.figures.tables import distinct, error_bars, require_columns, rows_where

NAME = "forecast_scores"
COLUMNS = (
    "model",
    "parent",
    "held_out",
    "predictor",
    "r2",
    "r2_low",
    "r2_high",
    "gain",
    "gain_low",
    "gain_high",
)
ACTIVATIONS = "activations"
LOWEST = -1.0
"""The axis is cut here: below, a forecast is useless however low it goes; the hover box has the
number.
"""
LEAST_HIGHEST = 0.2
MARGIN = 0.05
ROW = 28
GAP = 84


def forecast_scores(
    baselines: pd.DataFrame,
    *,
    model: str | None = None,
    parent: str | None = None,
    summary: pd.DataFrame | None = None,
) -> go.Figure:
    """Out-of-fold R² of activations (filled) and of each baseline (open), with 95 % intervals.

    One panel per way of holding out. Zero is the training-fold mean; the dotted line is the 95th
    percentile with labels shuffled.

    Args:
        baselines: columns model, parent, held_out, predictor, r2, r2_low, r2_high, gain, gain_low,
            gain_high.
        summary: columns model, parent, held_out, null_q95, for the dotted line.

    Raises:
        InputError: a column is missing, or the model or parent is not in the table.
    """
    require_columns(baselines, COLUMNS, NAME)
    table = rows_where(baselines, "model", model, NAME)
    table = rows_where(table, "parent", parent, NAME)
    panels, predictors = distinct(table, "held_out"), distinct(table, "predictor")
    height = ROW * len(predictors)
    figure = make_subplots(len(panels), 1, vertical_spacing=row_spacing(len(panels), height, GAP))
    lowest, highest = _range(table)
    for row, held_out in enumerate(panels, start=1):
        rows = table[table["held_out"] == held_out].set_index("predictor").reindex(predictors)
        rows = rows.reset_index()
        # The first predictor is at the top.
        rows["place"] = np.arange(len(rows))[::-1]
        is_tested = rows["predictor"] == ACTIVATIONS
        _add_predictors(figure, rows[is_tested], "activations", BLUE, "circle", lowest, row)
        _add_predictors(figure, rows[~is_tested], "baselines", BLACK, "circle-open", lowest, row)
        figure.add_vline(x=0, line={"color": GREY, "width": 1}, row=row, col=1)
        null = _null_q95(summary, model, parent, held_out)
        if null is not None:
            _add_null(figure, null, len(predictors), row)
        figure.update_yaxes(
            tickvals=rows["place"].tolist(),
            ticktext=list(map(_tick_text, predictors)),
            range=[-0.6, len(predictors) - 0.4],
            row=row,
            col=1,
        )
        figure.update_xaxes(range=[lowest, highest], title_text="R², out of fold", row=row, col=1)
        add_panel_title(figure, f"{label(held_out)}s held out", row)
    return apply_layout(figure, 150 + panels_height(len(panels), height, GAP), title_lines=1)


def _range(table: pd.DataFrame) -> tuple[float, float]:
    """Ends of the axis: all intervals and 0, cut at LOWEST."""
    low, high = table["r2_low"].to_numpy(dtype=float), table["r2_high"].to_numpy(dtype=float)
    lowest = float(np.nanmin(low, initial=0)) - MARGIN
    highest = float(np.nanmax(high, initial=0)) + MARGIN
    return max(LOWEST, lowest), max(LEAST_HIGHEST, highest)


def _tick_text(predictor: object) -> str:
    return f"<b>{label(predictor)}</b>" if predictor == ACTIVATIONS else label(predictor)


def _add_predictors(
    figure: go.Figure,
    rows: pd.DataFrame,
    title: str,
    colour: str,
    symbol: str,
    lowest: float,
    row: int,
) -> None:
    """One mark per predictor; what lies below the axis is at its end."""
    boxes = zip(
        rows["predictor"].map(label),
        rows["r2"],
        rows["r2_low"],
        rows["r2_high"],
        map(_gain, rows["gain"], rows["gain_low"], rows["gain_high"]),
        strict=True,
    )
    figure.add_scatter(
        x=rows["r2"].clip(lower=lowest),
        y=rows["place"].tolist(),
        mode="markers",
        name=title,
        legendgroup=title,
        showlegend=row == 1,
        marker={"color": colour, "symbol": symbol, "size": 10},
        error_x=error_bars(rows["r2"], rows["r2_low"], rows["r2_high"], colour),
        customdata=list(map(list, boxes)),
        hovertemplate=(
            "%{customdata[0]}: R² %{customdata[1]:.3f}"
            " [%{customdata[2]:.3f}, %{customdata[3]:.3f}]%{customdata[4]}<extra></extra>"
        ),
        row=row,
        col=1,
    )


def _gain(gain: float, low: float, high: float) -> str:
    if not np.isfinite(gain):
        return ""
    return f"<br>activations gain {number(gain, 3)} {interval(low, high, 3)} over it"


def _add_null(figure: go.Figure, null: float, rows: int, row: int) -> None:
    figure.add_scatter(
        x=[null, null],
        y=[-0.6, rows - 0.4],
        mode="lines",
        line={"color": VERMILLION, "dash": "dot", "width": 2},
        name="shuffled labels, 95 %",
        legendgroup="null",
        showlegend=row == 1,
        hovertemplate="shuffled labels, 95th percentile: %{x:.3f}<extra></extra>",
        row=row,
        col=1,
    )


def _null_q95(
    summary: pd.DataFrame | None, model: str | None, parent: str | None, held_out: object
) -> float | None:
    row = summary_row(summary, model, parent, held_out, columns=("null_q95",), figure=NAME)
    if row is None or pd.isna(row["null_q95"]):
        return None
    return float(row["null_q95"])


def _draw(
    baselines: pd.DataFrame, summary: pd.DataFrame | None, *, model: str, parent: str
) -> go.Figure:
    return forecast_scores(baselines, model=model, parent=parent, summary=summary)


KIND = TableKind(
    name=NAME,
    reads=(
        TableNeed("forecast_baselines", COLUMNS),
        TableNeed("forecast", is_required=False),
    ),
    draw_figure=_draw,
    facets_by=("model", "parent"),
    facet_label=model_from_parent,
)
