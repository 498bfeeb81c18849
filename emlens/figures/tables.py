"""What a figure asks of its table: the columns are there, and so is the model it is about."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from emlens.foundation.errors import InputError


def need(table: pd.DataFrame, columns: Iterable[str], figure: str) -> None:
    """Refuse a table that lacks columns, or rows.

    Raises:
        InputError: names the figure and the columns.
    """
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise InputError(
            f"{figure}: the table has no column {', '.join(missing)};"
            f" it has {', '.join(map(str, table.columns)) or 'none'}"
        )
    if not len(table):
        raise InputError(f"{figure}: the table has no rows; pass one with at least one measurement")


def only(table: pd.DataFrame, column: str, value: object, figure: str) -> pd.DataFrame:
    """The rows with that value; `None` stands for the only value there is.

    Raises:
        InputError: no such value, or several and none chosen.
    """
    present = distinct(table, column)
    if value is None:
        if len(present) > 1:
            raise InputError(
                f"{figure}: the table holds several values of {column}"
                f" ({', '.join(map(str, present))}); pass {column}="
            )
        return table
    if value not in present:
        raise InputError(
            f"{figure}: {column}={value!r} is not in the table;"
            f" it holds {', '.join(map(str, present))}"
        )
    return table[table[column] == value]


def distinct(table: pd.DataFrame, column: str) -> list[object]:
    """Values of a column in order of first appearance."""
    return list(dict.fromkeys(table[column].tolist()))


def arms(value: pd.Series, low: pd.Series, high: pd.Series) -> dict[str, object]:
    """Error bars from interval ends; where an end is missing there is no bar."""
    up, down = (high - value).to_numpy(dtype=float), (value - low).to_numpy(dtype=float)
    return {
        "type": "data",
        "symmetric": False,
        "array": np.nan_to_num(up),
        "arrayminus": np.nan_to_num(down),
        "thickness": 1.5,
        "width": 3,
    }


def layers_of(sites: Sequence[object]) -> list[int]:
    """Block indices of site names such as `resid_post.3`."""
    return [int(str(site).rsplit(".", 1)[1]) for site in sites]
