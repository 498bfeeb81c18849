"""A forest from any tidy table: one row per name, its interval, and its null as a dotted mark."""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from emlens.figures.axis import names_of
from emlens.figures.generic_kinds import GenericKind
from emlens.figures.groups import Group, groups_of, needs_legend, unlisted_note
from emlens.figures.hover_boxes import hover_boxes
from emlens.figures.labels import stacked
from emlens.figures.notes import add_note_if_undefined, add_notes
from emlens.figures.plot_columns import PlotColumns
from emlens.figures.style import GREY, apply_layout
from emlens.figures.tables import error_bars
from emlens.figures.thinning import evenly, thinned

MOST_ROWS = 80
ROW = 34
ROW_PER_GROUP = 0.45
"""Share of a row's height that one of several groups takes."""
MOST_GROUP_HEIGHT = 8


def forest(table: pd.DataFrame, columns: PlotColumns) -> go.Figure:
    """x names the rows, from top to bottom in order of appearance; y runs across.

    Groups are beside each other within a row.
    """
    table, names, note = _at_most(table, columns.x)
    table, thinning_note = thinned(table, columns.x)
    places = {key: len(names) - 1 - i for i, key in enumerate(names)}
    groups = groups_of(table, columns.colour)
    figure = go.Figure()
    for i, group in enumerate(groups):
        offset = (0.5 - (i + 0.5) / len(groups)) * 0.7
        y = [places[str(value)] + offset for value in group.rows[columns.x]]
        if columns.null:
            _add_null(figure, group.rows[columns.null], y, i, len(groups))
        _add_group(figure, group, columns, y)
    add_note_if_undefined(figure, table[columns.y])
    add_notes(figure, note, thinning_note, unlisted_note(groups))
    figure.update_xaxes(title_text=columns.y_label, zeroline=True)
    figure.update_yaxes(
        tickvals=list(places.values()),
        ticktext=[stacked(name, 22, 60) for name in names.values()],
        range=[-0.6, len(names) - 0.4],
    )
    return apply_layout(
        figure,
        _height(len(names), len(groups)),
        legend=needs_legend(groups, columns.null),
        title_lines=int(bool(note or thinning_note)),
    )


def _at_most(table: pd.DataFrame, column: str) -> tuple[pd.DataFrame, Mapping[str, str], str]:
    """The rows of at most MOST_ROWS names, those names, and a note where there are more."""
    names = names_of(table[column])
    if len(names) <= MOST_ROWS:
        return table, names, ""
    note = f"{MOST_ROWS} of {len(names)} rows drawn, evenly; the table has all"
    keys = list(names)
    some = {keys[i]: names[keys[i]] for i in evenly(len(keys), MOST_ROWS)}
    return table[table[column].map(str).isin(list(some))], some, note


def _height(rows: int, groups: int) -> int:
    taller = max(1.0, min(groups, MOST_GROUP_HEIGHT) * ROW_PER_GROUP)
    return 150 + round(ROW * taller * rows)


def _add_null(figure: go.Figure, null: pd.Series, y: list[float], i: int, groups: int) -> None:
    """A grey bar across each row of a group at the value under the null."""
    figure.add_scatter(
        x=null,
        y=y,
        mode="markers",
        name="null",
        legendgroup="null",
        legendrank=2000,
        showlegend=i == 0,
        hoverinfo="skip",
        marker={
            "symbol": "line-ns",
            "size": max(8, 22 // groups),
            "line": {"color": GREY, "width": 2},
        },
    )


def _add_group(figure: go.Figure, group: Group, columns: PlotColumns, y: list[float]) -> None:
    rows = group.rows
    bars = None
    if columns.has_interval:
        bars = error_bars(rows[columns.y], rows[columns.low], rows[columns.high], group.colour)
    figure.add_scatter(
        x=rows[columns.y],
        y=y,
        mode="markers",
        name=group.name,
        legendgroup=group.name,
        showlegend=group.is_listed,
        marker={"color": group.colour, "symbol": group.symbol, "size": 9},
        error_x=bars,
        customdata=hover_boxes(rows, columns),
        hovertemplate="%{customdata}<extra></extra>",
    )


KIND = GenericKind("forest", forest)
