"""Figures from plots: a `Plot` names a kind, its tables, and what distinguishes its figures.

Tables of thousands of rows are thinned, evenly, and the figure says so, because every mark is an
element of the page.
"""

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from emlens.figures.kinds import NAME, Facet
from emlens.figures.registry import kind_of
from emlens.foundation.errors import InputError
from emlens.results import Plot


def draw_plot(
    tables: Mapping[str, pd.DataFrame],
    plot: Plot,
    *,
    facet: Facet | str | Sequence[str] | None = None,
) -> go.Figure:
    """The figure that a plot describes, with its intervals and its null.

    Args:
        tables: by name, as a study's result holds them.
        plot: kind, tables and columns. Of a generic kind, the columns `<y>_low` and `<y>_high`,
            where the table has them, are the interval.
        facet: which of the plot's figures to draw: one that `plot_facets` lists, or its value; of
            several columns, a tuple of their values. May be left out where there is only one.

    Raises:
        InputError: the kind is unknown; a table or a column is missing; a table is empty; there are
            several figures and none is chosen; a column of values holds no numbers.
    """
    kind = kind_of(plot)
    for name in kind.required_tables(plot):
        if name not in tables:
            raise InputError(
                f"{NAME}: there is no table {name!r};"
                f" there are {', '.join(map(str, tables)) or 'none'}",
                name=name,
                known=tables,
            )
    return kind.draw(tables, plot, _facet_values(facet))


def plot_facets(tables: Mapping[str, pd.DataFrame], plot: Plot) -> list[Facet]:
    """The figures of a plot, in order of appearance: what to pass to `draw_plot` as `facet`.

    None without the tables, or without the columns that tell figures apart; one, with no values,
    where the plot makes a single figure.
    """
    if not set(kind_of(plot).required_tables(plot)) <= set(tables):
        return []
    return kind_of(plot).facets(tables, plot)


def missing_tables(tables: Mapping[str, pd.DataFrame], plot: Plot) -> list[str]:
    """Tables without which there is no figure, and which are absent or empty."""
    required = kind_of(plot).required_tables(plot)
    return [name for name in required if name not in tables or not len(tables[name])]


def _facet_values(facet: Facet | str | Sequence[str] | None) -> tuple[str, ...] | None:
    if facet is None:
        return None
    if isinstance(facet, Facet):
        return facet.values
    if isinstance(facet, list | tuple):
        return tuple(map(str, facet))
    return (str(facet),)
