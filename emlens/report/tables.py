"""Tables of a study as HTML, shortened and rounded for reading, and as the CSV that a button
downloads in full.

A text that a spreadsheet would run as a formula is set off by an apostrophe in the download; the
study's own files keep it as it is.
"""

import base64
import csv
import gzip
import io
from typing import Any, Literal

import numpy as np
import pandas as pd

from emlens.report.escaping import escape

ROWS_SHOWN = 50
DIGITS = 4
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What a spreadsheet takes for the beginning of a formula, also behind blanks, which some skip."""


def csv_text(table: pd.DataFrame) -> str:
    """The whole table with ten significant digits, as a study writes it, but formulas set off."""
    buffer = io.StringIO()
    safe = table.apply(
        lambda column: column if pd.api.types.is_numeric_dtype(column) else column.map(_set_off)
    )
    torn = any(
        "\r" in str(value)
        for name in safe.columns
        if not pd.api.types.is_numeric_dtype(safe[name])
        for value in safe[name]
    )
    # a lone \r is not quoted, and readers take it for a line's end
    quoting: Literal[0, 1] = csv.QUOTE_ALL if torn else csv.QUOTE_MINIMAL
    safe.rename(columns=_set_off).to_csv(
        buffer, index=False, float_format="%.10g", lineterminator="\n", quoting=quoting
    )
    return buffer.getvalue()


def packed(text: str) -> str:
    """A text as base64 of gzip, which the page unpacks when its button is pressed: tables repeat
    themselves, and shrink tenfold.
    """
    return base64.b64encode(gzip.compress(text.encode("utf-8"), compresslevel=9, mtime=0)).decode(
        "ascii"
    )


def _set_off(value: Any) -> Any:
    if not isinstance(value, str) or not (
        value.startswith(FORMULA) or value.lstrip().startswith(FORMULA)
    ):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def cell(value: object) -> str:
    """One value in few digits: a dash where it is missing."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        value = float(value)
        if np.isnan(value):
            return "–"
        return str(int(value)) if value.is_integer() and abs(value) < 1e9 else f"{value:.{DIGITS}g}"
    return escape(value)


def html_table(table: pd.DataFrame, caption: str) -> str:
    """The first rows of a table; numbers to the right."""
    numeric = [
        pd.api.types.is_numeric_dtype(table[c]) and not pd.api.types.is_bool_dtype(table[c])
        for c in table.columns
    ]
    head = "".join(
        f'<th scope="col"{_number(n)}>{escape(c)}</th>'
        for c, n in zip(table.columns, numeric, strict=True)
    )
    body = []
    for row in table.head(ROWS_SHOWN).itertuples(index=False):
        body.append(
            "<tr>"
            + "".join(f"<td{_number(n)}>{cell(v)}</td>" for v, n in zip(row, numeric, strict=True))
            + "</tr>"
        )
    return (
        '<div class="scroll" tabindex="0" role="region"'
        f' aria-label="{escape(caption)}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{chr(10).join(body)}\n</tbody></table></div>"
    )


def details(name: str, table: pd.DataFrame, about: str) -> str:
    """A closed table with its description and its download button."""
    shown = (
        f"The first {ROWS_SHOWN} of {len(table)} rows; the download has all."
        if len(table) > ROWS_SHOWN
        else f"{len(table)} rows."
    )
    return (
        f'<details class="table"><summary>Table <code>{escape(name)}</code> ({len(table)}'
        " rows)</summary>"
        f"<p>{escape(about)} {shown} Numbers are rounded here, not in the download. "
        f'<button type="button" class="download" data-csv="{escape(name)}">Download'
        f" {escape(name)}.csv</button></p>"
        f"{html_table(table, f'table {name}')}</details>"
    )


def _number(numeric: bool) -> str:
    return ' class="number"' if numeric else ""
