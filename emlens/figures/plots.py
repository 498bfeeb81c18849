"""A figure from a record: a kind, a table and the columns that play a part, as
`emlens.results.Plot` names them.

Knows nothing of any study. Tables of thousands of rows are thinned, evenly and said above the plot,
because every mark is an element of the page. Refuses a table that lacks a column, and values that
are no numbers.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import pandas as pd
import plotly.graph_objects as go

from emlens.figures.plot_forest import forest
from emlens.figures.plot_heatmap import heatmap
from emlens.figures.plot_lines import lines, points
from emlens.figures.plot_marks import HIGH, LOW, Asked
from emlens.figures.tables import need
from emlens.foundation.errors import InputError

NAME = "draw_plot"


class PlotRecord(Protocol):
    """What is read of a record; `emlens.results.Plot` has it."""

    @property
    def kind(self) -> str: ...
    @property
    def table(self) -> str: ...
    @property
    def x(self) -> str: ...
    @property
    def y(self) -> str: ...
    @property
    def colour(self) -> str: ...
    @property
    def facet(self) -> str: ...
    @property
    def null(self) -> str: ...
    @property
    def hover(self) -> tuple[str, ...]: ...
    @property
    def x_title(self) -> str: ...
    @property
    def y_title(self) -> str: ...


KINDS: Mapping[str, Callable[[pd.DataFrame, Asked], go.Figure]] = {
    "line": lines,
    "points": points,
    "forest": forest,
    "heatmap": heatmap,
}


def draw_plot(
    tables: Mapping[str, pd.DataFrame], plot: PlotRecord, *, facet: object = None
) -> go.Figure:
    """The figure that a record describes: lines with bands, points, a forest or a heatmap, each
    with its null where the record names one.

    Args:
        tables: by name, as a study's result holds them.
        plot: kind, table and columns; the columns `<y>_low` and `<y>_high`, where the table has
            them, are the interval.
        facet: which value of the record's facet column to draw; may be left out where there is only
            one (`plot_facets` lists them).

    Raises:
        InputError: the table or a column is missing, the table is empty, several facets and none
            chosen, a kind that is unknown, or a column of values that are no numbers.
    """
    if plot.kind not in KINDS:
        raise InputError(f"{NAME}: kind {plot.kind!r} is unknown; pass one of {', '.join(KINDS)}")
    if plot.table not in tables:
        raise InputError(
            f"{NAME}: there is no table {plot.table!r};"
            f" there are {', '.join(map(str, tables)) or 'none'}"
        )
    table = tables[plot.table]
    need(
        table,
        [c for c in (plot.x, plot.y, plot.colour, plot.facet, plot.null, *plot.hover) if c],
        f"{NAME} of {plot.table}",
    )
    if plot.facet:
        table = _facet(table, plot.facet, facet)
    intervals = {f"{plot.y}{LOW}", f"{plot.y}{HIGH}"} <= set(table.columns)
    asked = Asked(
        plot.x,
        plot.y,
        plot.colour,
        plot.null,
        tuple(plot.hover),
        plot.x_title,
        plot.y_title,
        intervals,
    )
    for column in (
        plot.y,
        plot.null,
        *((f"{plot.y}{LOW}", f"{plot.y}{HIGH}") if intervals else ()),
    ):
        if column and not (
            pd.api.types.is_numeric_dtype(table[column]) or table[column].isna().all()
        ):
            raise InputError(
                f"{NAME} of {plot.table}: column {column!r} holds"
                f" {str(table[column].iloc[0])[:40]!r}; it must hold numbers"
            )
    return KINDS[plot.kind](table.reset_index(drop=True), asked)


def plot_facets(tables: Mapping[str, pd.DataFrame], plot: PlotRecord) -> list[str]:
    """Values of the record's facet column in order of appearance; one empty name where it has none,
    nothing without the table.
    """
    if plot.table not in tables or (plot.facet and plot.facet not in tables[plot.table].columns):
        return []
    return list(dict.fromkeys(map(str, tables[plot.table][plot.facet]))) if plot.facet else [""]


def _facet(table: pd.DataFrame, column: str, value: object) -> pd.DataFrame:
    named = table[column].map(str)
    present = list(dict.fromkeys(named))
    if value is None and len(present) > 1:
        raise InputError(
            f"{NAME}: column {column!r} holds several values ({', '.join(present[:8])});"
            " pass one of them as facet="
        )
    if value is not None and str(value) not in present:
        raise InputError(
            f"{NAME}: facet={str(value)!r} is not in column {column!r};"
            f" it holds {', '.join(present[:8])}"
        )
    return table if value is None else table[named == str(value)]
