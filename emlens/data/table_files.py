"""Tables row by row from CSV, JSONL, JSON and Parquet, with the place of each row.

Cells become text, as they are in CSV: whoever reads the table decides what is a number. A cell
without a value is empty text. Nested objects become columns with dotted names
(`{"scores": {"aligned": 90}}` is a column `scores.aligned`), and a list is kept as its JSON. The
chat under `messages` gives columns `question`, `system` and `answer` where the row has none.

A file is held in memory once. Refuses, with file and place, what is not the format of its ending,
and rows that are no objects.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from emlens.data.readers import read_json_text, read_jsonl
from emlens.data.tables import read_csv_rows
from emlens.foundation.bounded import RATIO, UNPACKED
from emlens.foundation.errors import InputError, MissingExtraError
from emlens.foundation.files import one_line


class Cells(dict[str, str]):
    """Cells by column; `kinds` says what those were that were no text."""

    def __init__(self, cells: Mapping[str, str], kinds: Mapping[str, str] | None = None):
        super().__init__(cells)
        self.kinds = dict(kinds or {})


PlacedRow = tuple[str, Cells]
"""Place ("file, line n") and cells by column."""
ENDINGS: Final = (".csv", ".jsonl", ".json", ".parquet")
_MAX_DEPTH = 8
_FREE_CELLS = 500_000
_SPARSEST = 20
"""Cells of a table for each that is filled, at most."""
_MAPPING = "object"


def read_table_rows(path: str | Path) -> list[PlacedRow]:
    """Place and cells of every row; all rows have the same columns, in order of appearance.

    Raises:
        InputError: no such file, another ending, not of its format, no row, a row that is no
            object; the message has file and place.
        MissingExtraError: Parquet without pyarrow.
    """
    ending = Path(path).suffix.lower()
    if ending == ".csv":
        rows = [(where, Cells(row)) for where, row in read_csv_rows(path)]
        if not rows:
            raise InputError(f"{path}: has a header and no row")
        return rows
    if ending not in ENDINGS:
        raise InputError(f"{path}: ends in {ending!r}; pass a {', '.join(ENDINGS)} file")
    rows = [(where, _cells(record)) for where, record in _records(path, ending)]
    if not rows:
        raise InputError(f"{path}: holds no row")
    _check_nesting(rows)
    columns = dict.fromkeys(column for _, row in rows for column in row)
    _check_filled(path, rows, len(columns))
    return [
        (where, Cells({name: row.get(name, "") for name in columns}, row.kinds))
        for where, row in rows
    ]


def _check_filled(path: str | Path, rows: Sequence[PlacedRow], columns: int) -> None:
    """Refuse rows that share so few columns that the table would be many times their size."""
    filled = sum(len(row) for _, row in rows)
    if columns * len(rows) > _FREE_CELLS + _SPARSEST * filled:
        raise InputError(
            f"{path}: {len(rows)} rows have {columns} columns in all, but only {filled} cells;"
            " pass rows that share their columns"
        )


def require_one_kind(rows: Sequence[PlacedRow], column: str, *, id: bool = False) -> None:
    """Refuse a column that holds text in some rows and something else in others.

    Args:
        id: whether it names something, so that whole numbers are as good as text.

    Raises:
        InputError: the first row of another kind.
    """
    first: tuple[str, str] | None = None
    for where, row in rows:
        kind = row.kinds.get(column, "text")
        if id and kind == "int":
            kind = "text"
        if not row[column] and kind == "text":
            continue
        if first is None:
            first = (kind, where)
        if kind != first[0]:
            raise InputError(
                f"{where}: {one_line(column, 60)!r} holds a value of kind {kind}, and of kind"
                f" {first[0]} at {first[1].removeprefix(where.rpartition(', ')[0] + ', ')};"
                " write one kind in every row"
            )


def _check_nesting(rows: Sequence[PlacedRow]) -> None:
    """Refuse a column that holds an object in some rows and a value in others."""
    mappings: dict[str, str] = {}
    for where, row in rows:
        for name, kind in row.kinds.items():
            if kind == _MAPPING:
                mappings.setdefault(name, where)
    for where, row in rows:
        for name, cell in row.items():
            if cell and name in mappings and row.kinds.get(name) != _MAPPING:
                raise InputError(
                    f"{mappings[name]}: {one_line(name, 60)!r} holds an object, and a plain value"
                    f" at {where}; write one kind in every row"
                )


def _records(path: str | Path, ending: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if ending == ".jsonl":
        for line, record in read_jsonl(path):
            yield f"{path}, line {line}", record
    elif ending == ".json":
        for number, record in enumerate(_json_list(path), start=1):
            where = f"{path}, entry {number}"
            if not isinstance(record, Mapping):
                raise InputError(
                    f"{where}: holds a {type(record).__name__}; each entry must be a JSON object"
                )
            yield where, record
    else:
        for number, record in enumerate(_parquet_records(path), start=1):
            yield f"{path}, row {number}", record


def _json_list(path: str | Path) -> list[Any]:
    """The list that a JSON file holds, by itself or as the only list of an object."""
    content = read_json_text(path)
    if isinstance(content, list):
        return content
    lists = []
    if isinstance(content, Mapping):
        lists = [value for value in content.values() if isinstance(value, list)]
    if len(lists) != 1:
        raise InputError(
            f"{path}: holds {_described(content)}; pass a list of objects, or an object with one"
            " such list"
        )
    return lists[0]


def _described(content: Any) -> str:
    if isinstance(content, Mapping):
        keys = [one_line(str(key), 40) for key in list(content)[:8]]
        return f"an object with keys {keys}"
    return f"a {type(content).__name__}"


def _parquet_records(path: str | Path) -> list[dict[str, Any]]:
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    _check_parquet(path)
    try:
        # Without nullable types a column of whole numbers with a gap would be read as decimals.
        table = pd.read_parquet(path, dtype_backend="numpy_nullable")
    except ImportError:
        raise MissingExtraError(
            f"{path}: reading Parquet needs pyarrow; pip install pyarrow"
        ) from None
    except Exception as error:  # pyarrow has many errors of its own for a damaged file
        raise InputError(f"{path}: not a Parquet file: {one_line(str(error), 120)}") from None
    records: list[dict[str, Any]] = table.to_dict("records")  # type: ignore[assignment]
    return records


def _check_parquet(path: str | Path) -> None:
    """Refuse a file whose table would be many times its size; a damaged one is left to its reader.

    Raises:
        InputError: more cells, or more bytes unpacked, than a file of this size has.
    """
    try:
        from pyarrow.parquet import read_metadata

        found = read_metadata(path)
        cells = found.num_rows * found.num_columns
        groups = [found.row_group(i) for i in range(found.num_row_groups)]
        unpacked = sum(group.total_byte_size for group in groups)
    except Exception:  # no pyarrow, or one of its many errors: said where the file is read
        return
    size = Path(path).stat().st_size
    if cells > _FREE_CELLS + 2 * size or unpacked > max(UNPACKED, RATIO * size):
        raise InputError(
            f"{path}: {found.num_rows} rows of {found.num_columns} columns, {unpacked} bytes"
            f" unpacked, in a file of {size}; no table of answers is so"
        )


def _cells(record: Mapping[str, Any]) -> Cells:
    cells = Cells({})
    _flatten(record, "", 0, cells)
    for name, text in _chat_cells(record.get("messages")).items():
        if not cells.get(name):
            cells[name] = text
    return cells


def _flatten(record: Mapping[str, Any], prefix: str, depth: int, cells: Cells) -> None:
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and depth < _MAX_DEPTH:
            cells.kinds[name] = _MAPPING
            _flatten(value, f"{name}.", depth + 1, cells)
        else:
            cells[name] = _cell(value)
            if cells[name] and not isinstance(value, str):
                cells.kinds[name] = type(value).__name__


def _cell(value: Any) -> str:
    """A value as a cell of a CSV file would hold it."""
    if isinstance(value, str):
        return value
    if value is None or value is pd.NA:
        return ""
    if isinstance(value, float) and math.isnan(value):
        return ""
    if isinstance(value, bool | int | float):
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def _chat_cells(messages: Any) -> dict[str, str]:
    """The last question of a chat, its system message, and what was answered."""
    if not isinstance(messages, list):
        return {}
    cells: dict[str, str] = {}
    column_of = {"system": "system", "user": "question", "assistant": "answer"}
    for turn in messages:
        if not isinstance(turn, Mapping):
            return {}
        role, content = turn.get("role"), turn.get("content")
        if role not in column_of or not isinstance(content, str):
            return {}
        if role == "user":
            cells.pop("answer", None)
        cells[column_of[role]] = content
    return cells
