"""Lines with bands, and points, from any tidy table: one line or one kind of point a group, the
null dotted.
"""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from emlens.figures.plot_marks import (
    Asked,
    Axis,
    Look,
    looks,
    say,
    thinned,
    told,
    undefined,
    unnamed,
)
from emlens.figures.style import GREY, dress, rgba
from emlens.figures.tables import arms

HEIGHT = 400


def lines(table: pd.DataFrame, asked: Asked) -> go.Figure:
    """y over x, a band from `<y>_low` to `<y>_high` where they stand; points without a line where
    an x comes twice in a group.
    """
    table, fewer = thinned(table, asked.colour, asked.x)
    axis, groups = Axis(table[asked.x]), looks(table, asked.colour)
    figure = go.Figure()
    several = False
    for part, look in groups:
        rows = _ordered(part, axis, asked)
        twice = bool(rows[asked.x].duplicated().any())
        several |= twice
        places = axis.places(rows[asked.x])
        alone = (
            _band(figure, rows, places, asked, look)
            if asked.intervals and not twice
            else np.ones(len(rows), dtype=bool)
        )
        figure.add_scatter(
            x=places,
            y=rows[asked.y],
            mode="markers" if twice else "lines+markers" if len(rows) <= 60 else "lines",
            line={"color": look.colour, "dash": look.dash, "width": 2},
            **_marks(rows, asked, look, alone),
        )
    _null(figure, groups, axis, asked)
    notes = (
        fewer,
        unnamed(groups),
        "an x has several rows in a group: points without lines" if several else "",
    )
    return _finished(figure, table, axis, asked, groups, notes)


def points(table: pd.DataFrame, asked: Asked) -> go.Figure:
    """One mark a row, with its interval where it has one."""
    table, fewer = thinned(table, asked.colour, asked.y)
    axis, groups = Axis(table[asked.x]), looks(table, asked.colour)
    figure = go.Figure()
    for part, look in groups:
        figure.add_scatter(
            x=axis.places(part[asked.x]),
            y=part[asked.y],
            mode="markers",
            **_marks(part, asked, look, np.ones(len(part), dtype=bool)),
        )
    if asked.null:
        figure.add_scatter(
            x=axis.places(table[asked.x]),
            y=table[asked.null],
            mode="markers",
            name=_null_name(asked),
            legendrank=2000,
            hoverinfo="skip",
            marker={"symbol": "x-thin", "size": 6, "line": {"color": rgba(GREY, 0.7), "width": 1}},
        )
    return _finished(figure, table, axis, asked, groups, (fewer, unnamed(groups)))


def _marks(
    rows: pd.DataFrame, asked: Asked, look: Look, with_bars: "np.ndarray[Any, np.dtype[np.bool_]]"
) -> dict[str, Any]:
    """What a trace needs beside its places: name, symbol, hover text, and error bars on the chosen
    rows.
    """
    bars = None
    if asked.intervals and with_bars.any():
        low, high = rows[asked.low].where(with_bars), rows[asked.high].where(with_bars)
        if low.notna().any() or high.notna().any():
            bars = {**arms(rows[asked.y], low, high), "color": look.colour}
    return {
        "name": look.name,
        "legendgroup": look.name,
        "showlegend": look.listed,
        "marker": {
            "color": look.colour,
            "symbol": look.symbol,
            "size": 8,
            "line": {"width": 0.5, "color": "#FFFFFF"},
        },
        "error_y": bars,
        "customdata": told(rows, asked),
        "hovertemplate": "%{customdata}<extra></extra>",
    }


def _band(
    figure: go.Figure, rows: pd.DataFrame, places: list[float], asked: Asked, look: Look
) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    """One polygon for every run of rows with an interval; returns the rows whose interval stands
    alone, for bars instead.
    """
    low, high = (rows[c].to_numpy(dtype=float) for c in (asked.low, asked.high))
    known = np.isfinite(low) & np.isfinite(high)
    alone = np.zeros(len(rows), dtype=bool)
    x: list[float | None] = []
    y: list[float | None] = []
    for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(known.astype(int))) + 1):
        if not len(run) or not known[run[0]]:
            continue
        if len(run) == 1:
            alone[run] = True
            continue
        if x:
            x.append(None)
            y.append(None)
        x += [places[i] for i in run] + [places[i] for i in run[::-1]]
        y += [*low[run].tolist(), *high[run[::-1]].tolist()]
    if x:
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines",
            line={"width": 0},
            fill="toself",
            fillcolor=rgba(look.colour, 0.16),
            name=look.name,
            legendgroup=look.name,
            showlegend=False,
            hoverinfo="skip",
        )
    return alone


def _null(
    figure: go.Figure, groups: list[tuple[pd.DataFrame, Look]], axis: Axis, asked: Asked
) -> None:
    """Dotted: one grey line where all groups share the null, else one in each group's colour."""
    if not asked.null:
        return
    curves = []
    for part, look in groups:
        rows = _ordered(part, axis, asked).drop_duplicates([asked.x, asked.null])
        curves.append((axis.places(rows[asked.x]), rows[asked.null].to_numpy(dtype=float), look))
    x, y, _ = curves[0]
    shared = all(a == x and np.array_equal(b, y, equal_nan=True) for a, b, _ in curves[1:])
    for i, (x, y, look) in enumerate(curves[:1] if shared else curves):
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines",
            line={"color": GREY if shared else look.colour, "dash": "dot", "width": 1.5},
            name=_null_name(asked),
            legendgroup="null" if shared else look.name,
            legendrank=2000,
            showlegend=i == 0,
            hoverinfo="skip",
        )


def _null_name(asked: Asked) -> str:
    return "null" if asked.null == "null" else f"null ({asked.null.replace('_', ' ')})"


def _ordered(table: pd.DataFrame, axis: Axis, asked: Asked) -> pd.DataFrame:
    """Along x; names in their order of appearance in the whole table."""
    return table.iloc[np.argsort(axis.places(table[asked.x]), kind="stable")]


def _finished(
    figure: go.Figure,
    table: pd.DataFrame,
    axis: Axis,
    asked: Asked,
    groups: list[tuple[pd.DataFrame, Look]],
    notes: tuple[str, ...],
) -> go.Figure:
    undefined(figure, table[asked.y])
    say(figure, *notes)
    figure.update_xaxes(title_text=asked.title("x"), **axis.layout())
    figure.update_yaxes(title_text=asked.title("y"), zeroline=True)
    legend = bool(asked.null) or sum(look.listed for _, look in groups) > 1
    return dress(figure, HEIGHT, legend=legend, title_lines=int(any(notes)))
