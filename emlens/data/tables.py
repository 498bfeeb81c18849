"""CSV files with a header, row by row, with the line each row starts at.

Cells stay text: whoever reads the table decides what is a number. Refuses, with file and
line, what is not CSV, rows of another length than the header, and columns of one name. One row is
in memory at a time; a cell is at most 131,072 characters (the limit of Python's `csv`).
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from emlens.data.readers import text_lines
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line


def read_csv_rows(path: str | Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield ("file, line n", {column: cell}) for every row under the header.

    Blank lines are skipped.

    Raises:
        InputError: no such file, not valid CSV, no header, a column given twice, a row of another
            length.
    """
    header: list[str] | None = None
    for where, row in _filled_rows(path):
        if header is None:
            header = [cell.strip() for cell in row]
            _check_header(header, where)
            continue
        if len(row) != len(header):
            raise InputError(f"{where}: has {len(row)} cells under {len(header)} columns")
        yield where, dict(zip(header, row, strict=True))
    if header is None:
        raise InputError(f"{path}: is empty; pass a CSV with a header")


def _filled_rows(path: str | Path) -> Iterator[tuple[str, list[str]]]:
    """Place and cells of every row that is not blank."""
    reader = csv.reader(_lines(path), strict=True)
    while True:
        where = f"{path}, line {reader.line_num + 1}"  # a quoted cell may span several lines
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{where}: not valid CSV: {error}") from None
        if row is None:
            return
        is_blank = not any(row) or (len(row) == 1 and not row[0].strip())
        if not is_blank:
            yield where, row


def _lines(path: str | Path) -> Iterator[str]:
    """Lines with their ends; a lone carriage return ends one too."""
    for _, line in text_lines(path):
        if "\r" in line:
            yield from io.StringIO(line, newline="")
        else:
            yield line


def _check_header(header: list[str], where: str) -> None:
    for name, count in Counter(header).items():
        if count > 1:
            raise InputError(f"{where}: column {one_line(name, 60)!r} is given twice")
