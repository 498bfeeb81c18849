"""Ablation arms as a forest: restoration, alignment, coherence and damage, beside every control."""

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emlens.figures.labels import label
from emlens.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    VERMILLION,
    add_panel_note,
    add_panel_title,
    apply_layout,
    rgba,
)
from emlens.figures.table_kinds import TableKind, TableNeed
from emlens.figures.tables import distinct, error_bars, require_columns, rows_where

NAME = "ablation_forest"


class _Panel(NamedTuple):
    """One panel: a column of the table, and what is said where no arm has it."""

    column: str
    title: str
    unit: str
    has_interval: bool
    if_missing: str = "not measured"


PANELS = (
    _Panel("restoration", "restoration", "share of lost alignment", True, "undefined"),
    _Panel("aligned", "alignment", "0–100", True),
    _Panel("coherent", "coherence", "0–100", True),
    _Panel("kl", "damage", "KL (nats per token)", False),
)
INTERVALS = tuple(panel.column for panel in PANELS if panel.has_interval)
COLUMNS = (
    "model",
    "site",
    "role",
    "arm",
    "on",
    "control",
    "kl",
    "n",
    *(f"{column}{end}" for column in INTERVALS for end in ("", "_low", "_high")),
)
MARKS = ((VERMILLION, "circle"), (BLUE, "square"), (GREY, "diamond"), (GREEN, "triangle-up"))
ROW = 34


def ablation_forest(arms: pd.DataFrame, *, model: str | None = None) -> go.Figure:
    """Four panels side by side, one row per arm.

    Colour and symbol say which site the direction was taken from. Arms of the direction itself are
    set in bold, controls are not; the last rows are the parent under the same edit.

    Args:
        arms: columns model, site, role, arm, on, control, and value, `_low`, `_high` of
            restoration, aligned, coherent; kl, n.

    Raises:
        InputError: a column is missing, or the model is not in the table.
    """
    require_columns(arms, COLUMNS, NAME)
    table = rows_where(arms, "model", model, NAME)
    names = _arm_names(table)
    places = {name: len(names) - 1 - i for i, name in enumerate(names)}
    figure = make_subplots(1, len(PANELS), shared_yaxes=True, horizontal_spacing=0.035)
    for col, panel in enumerate(PANELS, start=1):
        _add_arms(figure, table, panel, places, col)
        add_panel_title(figure, panel.title, 1, col)
        figure.update_xaxes(title_text=panel.unit, row=1, col=col)
        if table[panel.column].isna().all():
            add_panel_note(figure, panel.if_missing, row=1, col=col)
            figure.update_xaxes(range=[-0.2, 1.2], row=1, col=col)
    nothing_restored = {"color": rgba(BLACK, 0.5), "width": 1}
    all_restored = {"color": rgba(BLACK, 0.35), "width": 1, "dash": "dot"}
    figure.add_vline(x=0, line=nothing_restored, row=1, col=1)
    figure.add_vline(x=1, line=all_restored, row=1, col=1)
    for col in (2, 3):
        figure.update_xaxes(range=[-4, 104], row=1, col=col)
    figure.update_yaxes(
        tickvals=list(places.values()),
        ticktext=_tick_texts(table, names),
        range=[-0.6, len(names) - 0.4],
    )
    return apply_layout(figure, 150 + ROW * len(names), title_lines=1)


def _arm_names(table: pd.DataFrame) -> list[object]:
    """Arms from top to bottom: in the order of the table, those on the parent last."""
    on_parent = set(table.loc[table["on"] == "instruct", "arm"])
    return sorted(distinct(table, "arm"), key=lambda name: name in on_parent)


def _tick_texts(table: pd.DataFrame, names: list[object]) -> list[str]:
    is_control = table["control"].astype(bool)
    tested = set(map(str, table.loc[~is_control, "arm"]))
    texts = []
    for name in names:
        text = label(name, 44)
        texts.append(f"<b>{text}</b>" if name in tested else text)
    return texts


def _add_arms(
    figure: go.Figure, table: pd.DataFrame, panel: _Panel, places: Mapping[object, int], col: int
) -> None:
    """One series per site that a direction was taken from."""
    roles = list(dict.fromkeys(zip(table["role"], table["site"], strict=True)))
    for i, (role, site) in enumerate(roles):
        rows = table[(table["role"] == role) & (table["site"] == site)]
        colour, symbol = MARKS[i % len(MARKS)]
        # Series lie beside each other within the middle half of a row.
        offset = (0.5 - (i + 0.5) / len(roles)) * 0.5
        value = low = high = rows[panel.column]
        bars, ends = None, ""
        if panel.has_interval:
            low, high = rows[f"{panel.column}_low"], rows[f"{panel.column}_high"]
            bars = error_bars(value, low, high, colour)
            ends = " [%{customdata[1]:.3g}, %{customdata[2]:.3g}]"
        names = [label(arm, 80) for arm in rows["arm"]]
        figure.add_scatter(
            x=value,
            y=[places[arm] + offset for arm in rows["arm"]],
            mode="markers",
            name=f"{label(site)}: {label(role, 60)}",
            legendgroup=f"role {i}",
            showlegend=col == 1,
            marker={"color": colour, "symbol": symbol, "size": 8},
            error_x=bars,
            customdata=list(map(list, zip(names, low, high, strict=True))),
            hovertemplate=f"%{{customdata[0]}}: %{{x:.3g}}{ends}<extra></extra>",
            row=1,
            col=col,
        )


KIND = TableKind(
    name=NAME,
    reads=(TableNeed("arms", COLUMNS),),
    draw_figure=ablation_forest,
    facets_by=("model",),
    is_full_width=True,
)
