"""Every figure of a result in one long table: what two results, several families or several seeds
have in common.

A figure is a column that has an interval beside it (`<name>_low`, `<name>_high`, or the column
before `low`); its key is every column that names something. Tables without an interval (one row a
question or a prompt) hold no figures.
"""

from collections.abc import Mapping

import pandas as pd

from emlens.results.table_files import TEXT_COLUMNS

COLUMNS = ("table", "figure", "key", "value", "low", "high", "null")
_NUMBERS_THAT_NAME = frozenset(("layer", "k", "seed", "step", "steps", "coefficient", "rank"))
_NO_NAMES = frozenset(("method", "chosen", "text", "ended_below", "ended_above"))


def figures_of(
    tables: Mapping[str, pd.DataFrame], without: frozenset[str] = frozenset()
) -> pd.DataFrame:
    """One row a figure: table, figure, key ("model=..., site=..."), value, low, high, and the mean
    under its null where the table has one.

    Args:
        without: columns that are left out of the key (what the results are laid side by side over).
    """
    rows = []
    for name, table in tables.items():
        found = _intervals(table)
        if not found or not len(table):
            continue
        naming = [
            c for c in table.columns if _names(table, c) and c not in without and c not in found
        ]
        keys = _keys(table, naming)
        for figure, (low, high) in found.items():
            null = (
                "null_mean"
                if "null_mean" in table.columns and figure == next(iter(found))
                else None
            )
            part = pd.DataFrame(
                {"key": keys, "value": table[figure], "low": table[low], "high": table[high]}
            )
            part = part.assign(
                table=name, figure=figure, null=table[null] if null else float("nan")
            )
            rows.append(part[part["value"].notna()])
    if not rows:
        return pd.DataFrame(columns=list(COLUMNS))
    return pd.concat(rows, ignore_index=True)[list(COLUMNS)]


def _intervals(table: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Column → the columns of its interval."""
    columns = list(table.columns)
    found = {
        c: (f"{c}_low", f"{c}_high")
        for c in columns
        if {f"{c}_low", f"{c}_high"} <= set(columns) and _numeric(table, c)
    }
    if {"low", "high"} <= set(columns) and columns.index("low") > 0:
        before = columns[columns.index("low") - 1]
        if _numeric(table, before):
            found = {before: ("low", "high"), **found}
    return found


def _numeric(table: pd.DataFrame, column: str) -> bool:
    return (
        column not in TEXT_COLUMNS
        and pd.api.types.is_numeric_dtype(table[column])
        and not pd.api.types.is_bool_dtype(table[column])
    )


def _names(table: pd.DataFrame, column: str) -> bool:
    if column in _NO_NAMES:
        return False
    return (
        column in _NUMBERS_THAT_NAME
        or column in TEXT_COLUMNS
        or table[column].dtype == object
        or pd.api.types.is_string_dtype(table[column])
    )


def _keys(table: pd.DataFrame, naming: list[str]) -> list[str]:
    parts = [
        [f"{name}={_said(value)}" for value in table[name]]
        for name in naming
        if table[name].notna().any()
    ]
    return [", ".join(words) for words in zip(*parts, strict=True)] if parts else [""] * len(table)


def _said(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
