"""What removing a fine-tune's own direction restores, beside every control."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from emlens.figures.labels import interval, label, number, stacked
from emlens.figures.style import (
    BLACK,
    BLUE,
    GREY,
    VERMILLION,
    add_panel_note,
    apply_layout,
    rgba,
)
from emlens.figures.table_kinds import TableKind, TableNeed
from emlens.figures.tables import distinct, error_bars, require_columns, rows_where

NAME = "restoration_forest"
COLUMNS = (
    "model",
    "role",
    "arm",
    "on",
    "control",
    "restoration",
    "restoration_low",
    "restoration_high",
    "n",
)
NEED = TableNeed("arms", COLUMNS, fixed={"model": "", "role": ""})
OWN, STRONGEST, OTHER = "own direction", "strongest control", "other controls"
LOOKS = {OWN: (VERMILLION, "circle"), STRONGEST: (BLUE, "square"), OTHER: (GREY, "diamond")}
UNEDITED = "no ablation"
ROW = 33


def restoration_forest(arms: pd.DataFrame, *, model: str | None = None) -> go.Figure:
    """Restoration of every arm on the fine-tune with its 95 % interval, the highest on top.

    Restoration is a share: 0 is nothing restored, 1 all lost alignment. Drawn is the first role of
    the table (the site that was chosen), and of it the arms that edit the fine-tune.

    Args:
        arms: columns arm, on, control, and restoration with `_low`, `_high`; n, as `evaluate_arms`
            gives them; model and role where there are several. Where there is a column lead
            (`_low`, `_high`), the lead of the direction over a control is in its hover box.

    Raises:
        InputError: a column is missing, or the model is not in the table.
    """
    arms = NEED.filled(arms)
    require_columns(arms, COLUMNS, NAME)
    rows = _rows(rows_where(arms, "model", model, NAME))
    figure = go.Figure()
    for series in LOOKS:
        _add_series(figure, rows[rows["series"] == series], series)
    ticks = [_tick(row) for _, row in rows.iterrows()]
    figure.update_yaxes(
        tickvals=list(range(len(ticks))),
        ticktext=ticks,
        range=[len(ticks) - 0.4, -0.6],
        tickfont={"size": 12},
    )
    figure.add_vline(x=0, line={"color": rgba(BLACK, 0.5), "width": 1})
    figure.add_vline(x=1, line={"color": rgba(BLACK, 0.35), "width": 1, "dash": "dot"})
    figure.update_xaxes(title_text="share of lost alignment")
    if not np.isfinite(rows["restoration"].to_numpy(dtype=float)).any():
        add_panel_note(figure, "undefined: no clear loss to restore")
        figure.update_xaxes(range=[-0.2, 1.2])
    return apply_layout(figure, 120 + ROW * max(len(rows), 3))


def _rows(table: pd.DataFrame) -> pd.DataFrame:
    """The arms to draw, highest restoration first, with the series that each belongs to."""
    is_chosen = table["role"] == distinct(table, "role")[0]
    is_edited = (table["on"] == "finetuned") & (table["arm"] != UNEDITED)
    rows = table[is_chosen & is_edited].sort_values(
        "restoration", ascending=False, kind="stable", na_position="last"
    )
    is_control = rows["control"].astype(bool).to_numpy()
    series = np.where(is_control, OTHER, OWN).astype(object)
    if is_control.any() and rows["restoration"].notna().any():
        series[int(np.flatnonzero(is_control)[0])] = STRONGEST
    return rows.assign(series=series, place=range(len(rows)))


def _tick(row: pd.Series) -> str:
    text = stacked(row["arm"], 24, 44)
    return text if row["series"] == OTHER else f"<b>{text}</b>"


def _add_series(figure: go.Figure, rows: pd.DataFrame, series: str) -> None:
    if not len(rows):
        return
    colour, symbol = LOOKS[series]
    low, high = rows["restoration_low"], rows["restoration_high"]
    figure.add_scatter(
        x=rows["restoration"],
        y=rows["place"],
        mode="markers",
        name=series,
        marker={"color": colour, "symbol": symbol, "size": 9},
        error_x=error_bars(rows["restoration"], low, high, colour),
        customdata=[_box(row) for _, row in rows.iterrows()],
        hovertemplate="%{customdata}<extra></extra>",
    )


def _box(row: pd.Series) -> str:
    if not np.isfinite(row["restoration"]):
        return f"{label(row['arm'], 80)}: undefined"
    ends = interval(row["restoration_low"], row["restoration_high"])
    text = (
        f"{label(row['arm'], 80)}: {number(row['restoration'])} {ends}, {int(row['n'])} questions"
    )
    if np.isfinite(row.get("lead", np.nan)):
        lead = f"{number(row['lead'])} {interval(row['lead_low'], row['lead_high'])}"
        text += f"<br>lead of the direction over it: {lead}"
    return text


KIND = TableKind(
    name=NAME,
    reads=(NEED,),
    draw_figure=restoration_forest,
    facets_by=("model",),
)
