"""How much of a table is drawn: every mark is an element of the page, thousands make it slow."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

MOST_MARKS = 2000
"""Marks in one figure; more would tell nothing new."""
MOST_NAMES = 150
"""Different names (models, groups, arms, layers) of one column in one figure."""
PANEL_COLUMNS = ("position", "comparison")
MOST_PANELS = 16
"""Different names of such a column, which may have a panel each."""
MOST_ROWS = 10_000
"""Rows of a table that one figure reads, where it has no thinning of its own."""


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


def few_names(
    table: pd.DataFrame, columns: Iterable[str], most: int = MOST_ROWS
) -> tuple[pd.DataFrame, str]:
    """The rows of the first MOST_NAMES names of each column, at most `most` of them, and a note on
    what is left out.
    """
    notes = []
    for column in columns:
        names = table[column].map(str)
        present = names.unique()
        room = MOST_PANELS if column in PANEL_COLUMNS else MOST_NAMES
        if len(present) > room:
            table = table[names.isin(present[:room])]
            notes.append(f"the first {room} of {len(present)} {column.replace('_', ' ')}s")
    if len(table) > most:
        notes.append(f"{most} of {len(table)} rows, evenly")
        table = table.iloc[evenly(len(table), most)]
    if not notes:
        return table, ""
    return table, f"drawn: {'; '.join(notes)}; the table has all"


def _sortable(column: pd.Series) -> pd.Series:
    """Values of mixed types cannot be compared; their texts can."""
    return column.map(str) if column.dtype == object else column
