"""What a figure asks of its table: that columns are there, and the rows of one model."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line

MOST_IN_MESSAGE = 40


def require_columns(table: pd.DataFrame, columns: Iterable[str], figure: str) -> None:
    """Refuse a table that lacks columns, or rows.

    Raises:
        InputError: names the figure and the columns.
    """
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise InputError(
            f"{figure}: the table has no column {', '.join(missing)};"
            f" it has {_some(table.columns) or 'none'}",
            name=missing[0],
            known=table.columns,
        )
    if not len(table):
        raise InputError(f"{figure}: the table has no rows; pass one with at least one measurement")


def _some(names: Iterable[object]) -> str:
    """The first names and how many more there are: a message stays a line."""
    texts = [one_line(str(name), 60) for name in names]
    more = len(texts) - MOST_IN_MESSAGE
    return ", ".join(texts[:MOST_IN_MESSAGE]) + (f" and {more} more" if more > 0 else "")


def rows_where(table: pd.DataFrame, column: str, value: object, figure: str) -> pd.DataFrame:
    """The rows whose column holds the value; `None` stands for the only value there is.

    Raises:
        InputError: no row holds it, or it is None and the column holds several values.
    """
    present = distinct(table, column)
    if value is None:
        if len(present) > 1:
            raise InputError(
                f"{figure}: the table holds several values of {column}"
                f" ({_some(present)}); pass {column}="
            )
        return table
    if value not in present:
        raise InputError(
            f"{figure}: {column}={value!r} is not in the table; it holds {_some(present)}",
            name=value,
            known=present,
        )
    return table[table[column] == value]


def distinct(table: pd.DataFrame, column: str) -> list[object]:
    """Values of a column in order of first appearance."""
    return list(dict.fromkeys(table[column].tolist()))


def layers_in(table: pd.DataFrame) -> list[int]:
    """The layers of a table, ascending."""
    return sorted({int(layer) for layer in table["layer"]})


def layers_of_sites(sites: Sequence[object]) -> list[int]:
    """Block indices of site names such as `resid_post.3`."""
    return [int(str(site).rsplit(".", 1)[1]) for site in sites]


def error_bars(
    value: pd.Series, low: pd.Series, high: pd.Series, colour: str | None = None
) -> dict[str, object]:
    """Error bars from the ends of intervals; where an end is missing there is no bar."""
    up, down = (high - value).to_numpy(dtype=float), (value - low).to_numpy(dtype=float)
    bars: dict[str, object] = {
        "type": "data",
        "symmetric": False,
        "array": np.nan_to_num(up),
        "arrayminus": np.nan_to_num(down),
        "thickness": 1.5,
        "width": 3,
    }
    if colour is not None:
        bars["color"] = colour
    return bars
