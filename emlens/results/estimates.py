"""Every estimate of a result in one long table: what two results have in common.

An estimate is a number that its table declares as a `Measure`, with its interval; its key is every
column that names the row. Tables without one (one row per question or prompt) hold no estimates,
and of a table that declares no columns nothing is known.
"""

from collections.abc import Mapping

import pandas as pd

from emlens.results.columns import Measure
from emlens.results.tables import Table

COLUMNS = ("table", "figure", "key", "value", "low", "high", "null")


def estimates_of(tables: Mapping[str, pd.DataFrame], declared: Mapping[str, Table]) -> pd.DataFrame:
    """One row per estimate: table, figure (its column), key ("model=..., site=..."), value, low,
    high, and the value under its null where the table has one.
    """
    frames = []
    for name, table in tables.items():
        if name not in declared or not len(table):
            continue
        keys = _keys(table, declared[name])
        for measure in declared[name].measures:
            if {measure.value.name, *measure.ends} <= set(table.columns):
                frames.append(_estimates(name, table, measure, keys))
    if not frames:
        return pd.DataFrame(columns=list(COLUMNS))
    return pd.concat(frames, ignore_index=True)[list(COLUMNS)]


def _estimates(name: str, table: pd.DataFrame, measure: Measure, keys: list[str]) -> pd.DataFrame:
    """The rows of one measure that have a value."""
    low, high = measure.ends
    null = table[measure.null] if measure.null in table.columns else float("nan")
    rows = pd.DataFrame(
        {
            "table": name,
            "figure": measure.value.name,
            "key": keys,
            "value": table[measure.value.name],
            "low": table[low],
            "high": table[high],
            "null": null,
        }
    )
    return rows[rows["value"].notna()]


def _keys(table: pd.DataFrame, declared: Table) -> list[str]:
    """What names each row, in words."""
    columns = declared.all_columns
    naming = [name for name in table.columns if name in columns and columns[name].names_row]
    naming = [name for name in naming if table[name].notna().any()]
    keys = []
    for _, row in table[naming].iterrows():
        keys.append(", ".join(f"{name}={_in_words(row[name])}" for name in naming))
    return keys


def _in_words(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
