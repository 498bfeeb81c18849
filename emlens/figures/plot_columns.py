"""The columns of a table that a generic figure draws, as a plot names them."""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from emlens.figures.labels import label
from emlens.figures.tables import require_columns
from emlens.foundation.errors import InputError
from emlens.results import Plot

LOW, HIGH = "_low", "_high"


@dataclass(frozen=True)
class PlotColumns:
    """The columns of one figure, checked to be there.

    Args:
        x, y, colour, null, hover: as `emlens.results.Plot` names them; empty where there is none.
        x_title, y_title: titles of the axes; the column's name where empty.
        has_interval: whether the table has the columns `low` and `high`.
    """

    x: str
    y: str
    colour: str
    null: str
    hover: tuple[str, ...]
    x_title: str
    y_title: str
    has_interval: bool

    @property
    def low(self) -> str:
        """The column with the lower ends of the intervals."""
        return f"{self.y}{LOW}"

    @property
    def high(self) -> str:
        """The column with the upper ends of the intervals."""
        return f"{self.y}{HIGH}"

    @property
    def x_label(self) -> str:
        """What x is, for axes and hover boxes."""
        return label(self.x_title or self.x.replace("_", " "), 60)

    @property
    def y_label(self) -> str:
        """What y is, for axes and hover boxes."""
        return label(self.y_title or self.y.replace("_", " "), 60)

    def numeric(self) -> Iterator[str]:
        """The columns that must hold numbers."""
        yield self.y
        if self.null:
            yield self.null
        if self.has_interval:
            yield self.low
            yield self.high


def columns_of(table: pd.DataFrame, plot: Plot, name: str) -> PlotColumns:
    """The columns that a plot names, after checking that the table has them.

    Args:
        name: what messages call the figure.

    Raises:
        InputError: a column is missing, or one that must hold numbers does not.
    """
    roles = (plot.x, plot.y, plot.colour, *plot.facet.split(), plot.null, *plot.hover)
    require_columns(table, filter(None, roles), name)
    has_interval = {f"{plot.y}{LOW}", f"{plot.y}{HIGH}"} <= set(table.columns)
    return PlotColumns(
        plot.x,
        plot.y,
        plot.colour,
        plot.null,
        tuple(plot.hover),
        plot.x_title,
        plot.y_title,
        has_interval,
    )


def require_numbers(table: pd.DataFrame, columns: PlotColumns, name: str) -> None:
    """Refuse a table whose values, null or interval are not numbers.

    Raises:
        InputError: names the column and shows its first value.
    """
    for column in columns.numeric():
        values = table[column]
        if not pd.api.types.is_numeric_dtype(values) and not values.isna().all():
            raise InputError(
                f"{name}: column {column!r} holds {str(values.iloc[0])[:40]!r};"
                " it must hold numbers"
            )
