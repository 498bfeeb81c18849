"""How much of a table is drawn: every mark is an element of the page, thousands make it slow."""

import numpy as np
import pandas as pd

MOST_MARKS = 2000
"""Marks in one figure; more would tell nothing new."""


def evenly(n: int, most: int) -> list[int]:
    """At most `most` of n places, evenly spaced, the first and the last among them."""
    if n <= most:
        return list(range(n))
    return [round(place) for place in np.linspace(0, n - 1, most)]


def thinned(table: pd.DataFrame, *by: str) -> tuple[pd.DataFrame, str]:
    """At most MOST_MARKS rows, evenly along the columns `by`, and a note on how many there are."""
    if len(table) <= MOST_MARKS:
        return table, ""
    columns = [column for column in by if column]
    ordered = table.sort_values(columns, kind="stable", key=_sortable)
    rows = ordered.iloc[evenly(len(table), MOST_MARKS)].sort_index()
    return rows, f"{MOST_MARKS} of {len(table)} rows drawn, evenly; the table has all"


def _sortable(column: pd.Series) -> pd.Series:
    """Values of mixed types cannot be compared; their texts can."""
    return column.map(str) if column.dtype == object else column
