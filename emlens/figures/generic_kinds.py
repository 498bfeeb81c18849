"""Kinds that draw any tidy table: lines, points, forests and heatmaps."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go

from emlens.figures.kinds import MOST_IN_MESSAGE, NAME, Facet, Kind, Tables, combinations
from emlens.figures.plot_columns import PlotColumns, columns_of, require_numbers
from emlens.foundation.errors import InputError
from emlens.results import Plot


@dataclass(frozen=True)
class GenericKind(Kind):
    """Draws any tidy table by the columns that the plot names.

    Args:
        name: of the kind.
        draw_figure: the figure of a table.
    """

    name: str
    draw_figure: Callable[[pd.DataFrame, PlotColumns], go.Figure]

    def required_tables(self, plot: Plot) -> tuple[str, ...]:
        return (plot.table,)

    def facet_columns(self, plot: Plot) -> tuple[str, ...]:
        return (plot.facet,) if plot.facet else ()

    def facets(self, tables: Tables, plot: Plot) -> list[Facet]:
        if not plot.facet:
            return [Facet()]
        column = plot.facet
        values = combinations(tables[plot.table], (column,))
        return [Facet((value,), _generic_label(column, value)) for (value,) in values]

    def draw(self, tables: Tables, plot: Plot, facet: tuple[str, ...] | None) -> go.Figure:
        name = f"{NAME} of {plot.table}"
        table = tables[plot.table]
        columns = columns_of(table, plot, name)
        if plot.facet:
            table = _rows_of_facet(table, plot.facet, facet)
        require_numbers(table, columns, name)
        return self.draw_figure(table.reset_index(drop=True), columns)

    def is_wide(self, figures: int) -> bool:
        return figures == 1


def _generic_label(column: str, value: str) -> str:
    """The value, with the name of its column where it is a number, yes or no."""
    is_number = value.replace(".", "", 1).lstrip("-").isdigit()
    if is_number or value in ("True", "False", "nan"):
        return f"{column.replace('_', ' ')} {value}"
    return value


def _rows_of_facet(table: pd.DataFrame, column: str, facet: tuple[str, ...] | None) -> pd.DataFrame:
    texts = table[column].map(str)
    present = list(dict.fromkeys(texts))
    if facet is None:
        if len(present) > 1:
            raise InputError(
                f"{NAME}: column {column!r} holds several values"
                f" ({', '.join(present[:MOST_IN_MESSAGE])}); pass one of them as facet="
            )
        return table
    value = ", ".join(facet)
    if value not in present:
        raise InputError(
            f"{NAME}: facet={value!r} is not in column {column!r};"
            f" it holds {', '.join(present[:MOST_IN_MESSAGE])}"
        )
    return table[texts == value]
