"""What a kind of figure is: which tables it reads, which figures it makes of them, and how.

There are two sorts. A generic kind (`generic_kinds`) draws any tidy table; the plot names the
columns. A table kind (`table_kinds`) is made for one table of one part of a study and knows its
columns. `registry` lists all of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go

from emlens.results import Plot

NAME = "draw_plot"
MOST_IN_MESSAGE = 8
"""Facets that a message lists."""

Tables = Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Facet:
    """One of the figures of a plot.

    Args:
        values: of the columns that tell the figures apart, in the order of the kind.
        label: the same in words; empty where there is only one figure.
    """

    values: tuple[str, ...] = ()
    label: str = ""


class Kind(ABC):
    """One way to draw figures."""

    name: str

    @abstractmethod
    def required_tables(self, plot: Plot) -> tuple[str, ...]:
        """Names of the tables without which there is no figure."""

    @abstractmethod
    def facets(self, tables: Tables, plot: Plot) -> list[Facet]:
        """The figures of the plot, in order; none where a column that separates them is missing."""

    @abstractmethod
    def draw(self, tables: Tables, plot: Plot, facet: tuple[str, ...] | None) -> go.Figure:
        """The figure of one facet; None stands for the only one there is."""

    @abstractmethod
    def facet_columns(self, plot: Plot) -> tuple[str, ...]:
        """The columns that tell the figures of a plot apart."""

    @abstractmethod
    def is_wide(self, figures: int) -> bool:
        """Whether each of this number of figures takes the full width of a page."""


def combinations(table: pd.DataFrame, columns: Sequence[str]) -> Iterable[tuple[str, ...]]:
    """Distinct values of columns, in order of appearance; none where a column is missing."""
    if not columns:
        return [()]
    if not set(columns) <= set(table.columns):
        return []
    rows = table[list(columns)].itertuples(index=False)
    return dict.fromkeys(tuple(map(str, row)) for row in rows)
