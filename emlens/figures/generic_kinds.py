"""Kinds that draw any tidy table: lines, points, forests and heatmaps."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from emlens.figures.kinds import MOST_IN_MESSAGE, NAME, Facet, Kind, Tables, combinations
from emlens.figures.notes import add_left_out
from emlens.figures.plot_columns import PlotColumns, columns_of, require_numbers
from emlens.figures.thinning import few_names
from emlens.foundation.errors import InputError
from emlens.results import Plot


@dataclass(frozen=True)
class GenericKind(Kind):
    """Draws any tidy table by the columns that the plot names.

    Args:
        name: of the kind.
        draw_figure: the figure of a table.
        bounds_x: whether different x are as costly as different groups.
    """

    name: str
    draw_figure: Callable[[pd.DataFrame, PlotColumns], go.Figure]
    bounds_x: bool = False

    def required_tables(self, plot: Plot) -> tuple[str, ...]:
        return (plot.table,)

    def facet_columns(self, plot: Plot) -> tuple[str, ...]:
        return tuple(plot.facet.split())

    def facets(self, tables: Tables, plot: Plot) -> list[Facet]:
        columns = self.facet_columns(plot)
        if not columns:
            return [Facet()]
        facets = []
        for values in combinations(tables[plot.table], columns):
            facets.append(Facet(values, ", ".join(map(_generic_label, columns, values))))
        return facets

    def draw(self, tables: Tables, plot: Plot, facet: tuple[str, ...] | None) -> go.Figure:
        name = f"{NAME} of {plot.table}"
        table = tables[plot.table]
        columns = columns_of(table, plot, name)
        if plot.facet:
            table = _rows_of_facet(table, self.facet_columns(plot), facet)
        require_numbers(table, columns, name)
        names = [columns.colour, columns.x if self.bounds_x else ""]
        table, note = few_names(table, filter(None, names), len(table))
        return add_left_out(self.draw_figure(table.reset_index(drop=True), columns), note)

    def is_wide(self, figures: int) -> bool:
        return figures == 1


def _generic_label(column: str, value: str) -> str:
    """The value, with the name of its column where it is a number, yes or no."""
    is_number = value.replace(".", "", 1).lstrip("-").isdigit()
    if is_number or value in ("True", "False", "nan"):
        return f"{column.replace('_', ' ')} {value}"
    return value


def _rows_of_facet(
    table: pd.DataFrame, columns: tuple[str, ...], facet: tuple[str, ...] | None
) -> pd.DataFrame:
    if facet is not None and len(facet) == len(columns):
        is_in_facet = np.ones(len(table), dtype=bool)
        for name, text in zip(columns, facet, strict=True):
            is_in_facet &= (table[name].map(str) == text).to_numpy()
        if is_in_facet.any():
            return table[is_in_facet]
    column = " ".join(columns)
    rows = table[list(columns)].itertuples(index=False)
    texts = pd.Series([", ".join(map(str, row)) for row in rows], table.index, dtype=object)
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
            f" it holds {', '.join(present[:MOST_IN_MESSAGE])}",
            name=value,
            known=present,
        )
    return table[texts == value]
