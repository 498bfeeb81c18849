"""Tables on disk: one CSV file per table, which reads back as it was written.

A CSV file does not tell the text "007" from the number 7, so the names of the columns that hold
text are kept beside it, in the record of the part and in `result.json`.
"""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pandas as pd

from emlens.foundation.files import write_text

TEXT_COLUMNS = frozenset(
    (
        "model",
        "run",
        "question",
        "group",
        "domain",
        "id",
        "text",
        "direction_of",
        "ablated_in",
        "steered",
        "answer",
        "refused",
        "questions_of",
    )
)
"""Columns that hold what users named or wrote; text even where every cell is empty."""


def text_columns(table: pd.DataFrame) -> list[str]:
    """The columns that hold text, in their order: a CSV does not distinguish "007" from 7, so this
    is kept beside it.
    """
    return [
        name
        for name in table.columns
        if not pd.api.types.is_numeric_dtype(table[name])
        and any(isinstance(c, str) and c for c in table[name])
    ]


def write_table(path: Path, table: pd.DataFrame) -> None:
    """CSV with 10 significant digits; an empty cell is a missing value."""
    buffer = io.StringIO()
    alone = any("\r" in str(cell) for name in text_columns(table) for cell in table[name])
    # the writer does not quote a lone \r, which readers take for a line's end
    quoting: Literal[0, 1] = csv.QUOTE_ALL if alone else csv.QUOTE_MINIMAL
    table.to_csv(buffer, index=False, float_format="%.10g", lineterminator="\n", quoting=quoting)
    write_text(path, buffer.getvalue())


def read_table(path: Path, text: Iterable[str] = ()) -> pd.DataFrame:
    """A table as `write_table` wrote it: a column is numeric, boolean or text as a whole.

    The columns named by `text` (see `text_columns`) and ids stay text whatever they look like
    ("NA", "007").
    """
    stays_text = TEXT_COLUMNS.union(text)
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    for column in table.columns:
        if column not in stays_text:
            table[column] = _with_its_type(table[column])
    return table


def _with_its_type(cells: pd.Series) -> pd.Series:
    """Cells that were read as text, as numbers or as yes and no where all of them are."""
    filled = cells != ""
    if not filled.any():
        return pd.Series(float("nan"), index=cells.index)
    numbers = pd.to_numeric(cells.where(filled), errors="coerce")
    if numbers[filled].notna().all():
        return numbers
    if filled.all() and set(cells) <= {"True", "False"}:
        return cells == "True"
    return cells
