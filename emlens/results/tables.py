"""What a table holds, declared before it is written, and the check that it holds it.

A study declares each of its tables in its `Section`. A part's tables are checked before they are
written: a column that nobody declared, a declared one that is missing, a cell of another type or
outside the range of its column.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from emlens.foundation.errors import IntegrityError
from emlens.foundation.files import one_line
from emlens.results.columns import KIND_NAMES, Column, Measure
from emlens.results.vocabulary import word

STRICT_VARIABLE = "EMLENS_STRICT_TABLES"
"""Environment variable: where it is 1, a table of emlens itself that breaks its declaration is an
error; else it is a line in the log, so that a slip of ours costs nobody a long run.
"""
ROUNDING = 1e-9
"""By this share of a range a value may lie outside it: rounding of a cosine of 1."""

Item = str | Column | Measure
"""How a table lists columns: names of the vocabulary, a column, or a number with its interval."""

_log = logging.getLogger("emlens")


@dataclass(frozen=True)
class Table:
    """One table of a study.

    Args:
        row: one sentence on what a row is: "One row per fine-tune and layer."
        columns: each a `Column`, a `Measure`, or a text that names columns of the vocabulary
            (`docs/tables.md`), separated by spaces.
        optional: the same, for columns that may be absent.
        further: what further columns mean, where the table may have columns that users named;
            empty where it has none.
    """

    row: str
    columns: Sequence[Item]
    optional: Sequence[Item] = ()
    further: str = ""

    @property
    def required_columns(self) -> dict[str, Column]:
        """Name → column that every such table has."""
        return {column.name: column for column in _columns(self.columns)}

    @property
    def all_columns(self) -> dict[str, Column]:
        """Name → column that such a table can have."""
        return {column.name: column for column in _columns([*self.columns, *self.optional])}

    @property
    def measures(self) -> list[Measure]:
        """The numbers that have an interval, in their order."""
        items = [*self.columns, *self.optional]
        return [item for item in items if isinstance(item, Measure)]

    def to_record(self) -> dict[str, Any]:
        """The table as JSON, with the meaning of every column."""
        return {
            "row": self.row,
            "columns": _item_records(self.columns),
            "optional": _item_records(self.optional),
            "further": self.further,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Table":
        return cls(
            row=record["row"],
            columns=[_item_from_record(item) for item in record["columns"]],
            optional=[_item_from_record(item) for item in record["optional"]],
            further=record["further"],
        )


def _item_records(items: Sequence[Item]) -> list[dict[str, Any]]:
    records = []
    for item in items:
        if isinstance(item, str):
            records += [word(name).to_record() for name in item.split()]
        else:
            records.append(item.to_record())
    return records


def _item_from_record(record: Mapping[str, Any]) -> Column | Measure:
    kind = Measure if "interval" in record else Column
    return kind.from_record(record)


def _columns(items: Sequence[Item]) -> Iterator[Column]:
    for item in items:
        if isinstance(item, Measure):
            yield from item.columns
        elif isinstance(item, Column):
            yield item
        else:
            yield from map(word, item.split())


def check_tables(
    tables: Mapping[str, pd.DataFrame], declared: Mapping[str, Table], *, own: bool = False
) -> None:
    """Refuse tables that are not as they were declared.

    Args:
        declared: the `tables` of a section.
        own: the tables are of emlens itself; what is wrong is then logged and no error, unless the
            environment variable EMLENS_STRICT_TABLES is 1, as it is under test.

    Raises:
        IntegrityError: the first thing that is wrong, by table and column, and what to write.
    """
    for name, frame in tables.items():
        fault = _first_fault(name, frame, declared)
        if fault is None:
            continue
        if own and os.environ.get(STRICT_VARIABLE) != "1":
            _log.warning("%s", fault)
        else:
            raise IntegrityError(fault)


def _first_fault(name: str, frame: pd.DataFrame, declared: Mapping[str, Table]) -> str | None:
    if name not in declared:
        lines = ", ".join(_line_to_write(frame[column]) for column in frame.columns)
        return (
            f"table {one_line(name)!r} is not declared; add to the section's tables:"
            f' "{one_line(name)}": Table("One row per ...", [{lines}])'
        )
    if not len(frame) and not len(frame.columns):
        return None  # no row, so nothing named the columns
    table = declared[name]
    fault = _column_fault(frame, table)
    if fault is not None:
        return f"table {name!r}: {fault}"
    for column, declaration in table.all_columns.items():
        if column in frame.columns:
            fault = _cell_fault(frame[column], declaration)
            if fault is not None:
                return f"table {name!r}, column {column!r}: {fault}"
    return None


def _column_fault(frame: pd.DataFrame, table: Table) -> str | None:
    """The first column that is too many or missing."""
    for column in frame.columns:
        if column not in table.all_columns and not table.further:
            return (
                f"column {one_line(str(column))!r} is not declared; add to its Table:"
                f" {_line_to_write(frame[column])}"
            )
    for column in table.required_columns:
        if column not in frame.columns:
            return f"column {column!r} is missing; fill it, or declare it under optional"
    return None


def _line_to_write(cells: pd.Series) -> str:
    """The declaration of a column that has none, guessed from its cells."""
    if pd.api.types.is_bool_dtype(cells):
        kind = "flag"
    elif pd.api.types.is_integer_dtype(cells):
        kind = "integer"
    elif pd.api.types.is_numeric_dtype(cells):
        kind = "number"
    else:
        kind = "text"
    return f'Column("{one_line(str(cells.name))}", "{kind}", "WHAT IT MEANS")'


def _cell_fault(cells: pd.Series, column: Column) -> str | None:
    """The first cell that the column cannot hold."""
    missing = cells.isna().to_numpy()
    if missing.any() and (column.names_row or column.kind == "flag"):
        return f"row {int(missing.argmax())} is empty, but the column names the row"
    values = cells[~missing]
    wrong = [not _is_of(column, value) for value in values]
    if any(wrong):
        value = values[wrong].tolist()[0]  # a plain value: numpy's own reads np.float64(1.5)
        return (
            f"row {values.index[wrong][0]} holds {one_line(repr(value), 60)},"
            f" but the column is declared as {KIND_NAMES[column.kind]}"
        )
    if column.kind in ("integer", "number") and len(values):
        return _range_fault(values, column)
    return None


def _is_of(column: Column, value: object) -> bool:
    if column.kind == "flag":
        return isinstance(value, bool | np.bool_)
    if column.kind == "text":
        return isinstance(value, str)
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
        return False
    return column.kind == "number" or float(value).is_integer()


def _range_fault(values: pd.Series, column: Column) -> str | None:
    numbers = values.to_numpy(dtype=float)
    ends = [abs(end) for end in (column.low, column.high) if np.isfinite(end)]
    slack = ROUNDING * max([1.0, *ends])
    outside = (numbers < column.low - slack) | (numbers > column.high + slack)
    if not outside.any():
        return None
    row = values.index[outside][0]
    return f"row {row} holds {numbers[outside][0]:g}, but the range is {column.range}"
