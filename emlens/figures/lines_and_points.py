"""Lines with bands, and points, from any tidy table: one line or one kind of point per group."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from emlens.figures.axis import Axis
from emlens.figures.generic_kinds import GenericKind
from emlens.figures.groups import Group, groups_of, needs_legend, unlisted_note
from emlens.figures.hover_boxes import hover_boxes
from emlens.figures.notes import add_note_if_undefined, add_notes
from emlens.figures.plot_columns import PlotColumns
from emlens.figures.style import GREY, apply_layout, rgba
from emlens.figures.tables import error_bars
from emlens.figures.thinning import thinned

HEIGHT = 400
MOST_MARKED = 60
"""Points of a line up to which each has a mark."""

Mask = np.ndarray[Any, np.dtype[np.bool_]]


def lines(table: pd.DataFrame, columns: PlotColumns) -> go.Figure:
    """y over x with a band from `<y>_low` to `<y>_high` where the table has them, the null dotted.

    Points without a line are drawn where a group has an x twice: a line would go back and forth.
    """
    table, thinning_note = thinned(table, columns.colour, columns.x)
    axis, groups = Axis(table[columns.x]), groups_of(table, columns.colour)
    figure = go.Figure()
    repeats_note = ""
    for group in groups:
        rows = _along_x(group.rows, axis, columns)
        places = axis.places(rows[columns.x])
        if rows[columns.x].duplicated().any():
            repeats_note = "an x has several rows in a group: points without lines"
            mode, has_bar = "markers", np.ones(len(rows), dtype=bool)
        else:
            mode = "lines+markers" if len(rows) <= MOST_MARKED else "lines"
            has_bar = _add_band(figure, rows, places, columns, group)
        figure.add_scatter(
            x=places,
            y=rows[columns.y],
            mode=mode,
            line={"color": group.colour, "dash": group.dash, "width": 2},
            **_marks(rows, columns, group, has_bar),
        )
    if columns.null:
        _add_null_lines(figure, groups, axis, columns)
    _finish(figure, table, axis, columns)
    notes = (thinning_note, unlisted_note(groups), repeats_note)
    return _with_notes(figure, notes, needs_legend(groups, columns.null))


def points(table: pd.DataFrame, columns: PlotColumns) -> go.Figure:
    """One mark per row, with its interval where it has one, and its null as a cross."""
    table, thinning_note = thinned(table, columns.colour, columns.y)
    axis, groups = Axis(table[columns.x]), groups_of(table, columns.colour)
    figure = go.Figure()
    for group in groups:
        figure.add_scatter(
            x=axis.places(group.rows[columns.x]),
            y=group.rows[columns.y],
            mode="markers",
            **_marks(group.rows, columns, group, np.ones(len(group.rows), dtype=bool)),
        )
    if columns.null:
        figure.add_scatter(
            x=axis.places(table[columns.x]),
            y=table[columns.null],
            mode="markers",
            name=_null_name(columns),
            legendrank=2000,
            hoverinfo="skip",
            marker={"symbol": "x-thin", "size": 6, "line": {"color": rgba(GREY, 0.7), "width": 1}},
        )
    _finish(figure, table, axis, columns)
    notes = (thinning_note, unlisted_note(groups))
    return _with_notes(figure, notes, needs_legend(groups, columns.null))


def _along_x(rows: pd.DataFrame, axis: Axis, columns: PlotColumns) -> pd.DataFrame:
    """Rows in the order of x; names in their order of appearance in the whole table."""
    return rows.iloc[np.argsort(axis.places(rows[columns.x]), kind="stable")]


def _marks(rows: pd.DataFrame, columns: PlotColumns, group: Group, has_bar: Mask) -> dict[str, Any]:
    """What a trace needs beside its places: name, symbol, hover text, and bars where `has_bar`."""
    bars = None
    if columns.has_interval and has_bar.any():
        low, high = rows[columns.low].where(has_bar), rows[columns.high].where(has_bar)
        if low.notna().any() or high.notna().any():
            bars = error_bars(rows[columns.y], low, high, group.colour)
    return {
        "name": group.name,
        "legendgroup": group.name,
        "showlegend": group.is_listed,
        "marker": {
            "color": group.colour,
            "symbol": group.symbol,
            "size": 8,
            "line": {"width": 0.5, "color": "#FFFFFF"},
        },
        "error_y": bars,
        "customdata": hover_boxes(rows, columns),
        "hovertemplate": "%{customdata}<extra></extra>",
    }


def _add_band(
    figure: go.Figure,
    rows: pd.DataFrame,
    places: list[float],
    columns: PlotColumns,
    group: Group,
) -> Mask:
    """Draw one polygon for every run of rows that have an interval.

    A run of one row has no area: those rows are returned, to be drawn with bars. Without intervals
    that is every row.
    """
    if not columns.has_interval:
        return np.ones(len(rows), dtype=bool)
    low, high = rows[columns.low].to_numpy(dtype=float), rows[columns.high].to_numpy(dtype=float)
    has_interval = np.isfinite(low) & np.isfinite(high)
    is_alone = np.zeros(len(rows), dtype=bool)
    x: list[float | None] = []
    y: list[float | None] = []
    for run in _runs(has_interval):
        if len(run) == 1:
            is_alone[run] = True
            continue
        if x:  # a gap between two polygons of one trace
            x.append(None)
            y.append(None)
        there, back = run.tolist(), run[::-1].tolist()
        x += [places[i] for i in there + back]
        y += low[there].tolist() + high[back].tolist()
    if x:
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines",
            line={"width": 0},
            fill="toself",
            fillcolor=rgba(group.colour, 0.16),
            name=group.name,
            legendgroup=group.name,
            showlegend=False,
            hoverinfo="skip",
        )
    return is_alone


def _runs(mask: Mask) -> list[np.ndarray[Any, np.dtype[np.intp]]]:
    """Places of each unbroken run of True."""
    changes = np.flatnonzero(np.diff(mask.astype(int))) + 1
    runs = np.split(np.arange(len(mask)), changes)
    return [run for run in runs if len(run) and mask[run[0]]]


def _add_null_lines(
    figure: go.Figure, groups: list[Group], axis: Axis, columns: PlotColumns
) -> None:
    """The null, dotted: one grey line where all groups share it, else one per group."""
    curves = []
    for group in groups:
        rows = _along_x(group.rows, axis, columns).drop_duplicates([columns.x, columns.null])
        curve = axis.places(rows[columns.x]), rows[columns.null].to_numpy(dtype=float)
        curves.append(curve)
    if all(_same_curve(curve, curves[0]) for curve in curves[1:]):
        _add_null_line(figure, *curves[0], columns, GREY, "null", is_listed=True)
        return
    for i, ((x, y), group) in enumerate(zip(curves, groups, strict=True)):
        _add_null_line(figure, x, y, columns, group.colour, group.name, is_listed=i == 0)


def _same_curve(one: tuple[list[float], Any], two: tuple[list[float], Any]) -> bool:
    return one[0] == two[0] and np.array_equal(one[1], two[1], equal_nan=True)


def _add_null_line(
    figure: go.Figure,
    x: list[float],
    y: "np.ndarray[Any, np.dtype[np.float64]]",
    columns: PlotColumns,
    colour: str,
    legend_group: str,
    *,
    is_listed: bool,
) -> None:
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines",
        line={"color": colour, "dash": "dot", "width": 1.5},
        name=_null_name(columns),
        legendgroup=legend_group,
        legendrank=2000,
        showlegend=is_listed,
        hoverinfo="skip",
    )


def _null_name(columns: PlotColumns) -> str:
    return "null" if columns.null == "null" else f"null ({columns.null.replace('_', ' ')})"


def _finish(figure: go.Figure, table: pd.DataFrame, axis: Axis, columns: PlotColumns) -> None:
    add_note_if_undefined(figure, table[columns.y])
    figure.update_xaxes(title_text=columns.x_label, **axis.layout())
    figure.update_yaxes(title_text=columns.y_label, zeroline=True)


def _with_notes(figure: go.Figure, notes: tuple[str, ...], legend: bool) -> go.Figure:
    add_notes(figure, *notes)
    return apply_layout(figure, HEIGHT, legend=legend, title_lines=int(any(notes)))


LINE = GenericKind("line", lines)
POINTS = GenericKind("points", points)
