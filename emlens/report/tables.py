"""Tables of a study as HTML, shortened and rounded for reading, and as CSV for the download.

A text that a spreadsheet would run as a formula is set off by an apostrophe in the download; the
study's own files keep it as it is.
"""

import csv
import io
from typing import Any, Literal

import numpy as np
import pandas as pd

from emlens.report.escaping import escape

ROWS_SHOWN = 10
"""Rows that stand on the page before its script replaces them by all, in pages."""
DIGITS = 4
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What a spreadsheet takes for the beginning of a formula, also after blanks, which some skip."""
TABLE = """\
<div class="scroll" tabindex="0" role="region" aria-label="{caption}">\
<table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table></div>"""
DETAILS = """\
<details class="table" data-table="{name}"><summary>Table <code>{name}</code> ({rows} rows)\
</summary>
<p>{description} {shown} Numbers are rounded here, not in the download. \
<button type="button" class="download" data-csv="{name}">Download {name}.csv</button></p>
{table}</details>"""


def csv_text(table: pd.DataFrame) -> str:
    """The whole table with ten significant digits, as a study writes it, but formulas set off."""
    safe = table.apply(_safe_column).rename(columns=_set_off)
    quoting: Literal[0, 1] = csv.QUOTE_MINIMAL
    if _has_carriage_return(table):
        # pandas does not quote a lone \r, and readers take it for the end of a line
        quoting = csv.QUOTE_ALL
    buffer = io.StringIO()
    safe.to_csv(buffer, index=False, float_format="%.10g", lineterminator="\n", quoting=quoting)
    return buffer.getvalue()


def _safe_column(column: pd.Series) -> pd.Series:
    if pd.api.types.is_numeric_dtype(column):
        return column
    return column.map(_set_off)


def _has_carriage_return(table: pd.DataFrame) -> bool:
    for name in table.columns:
        column = table[name]
        if not pd.api.types.is_numeric_dtype(column) and any("\r" in str(v) for v in column):
            return True
    return False


def _set_off(value: Any) -> Any:
    """A text that begins like a formula, after an apostrophe; numbers stay as they are."""
    if not isinstance(value, str):
        return value
    is_formula = value.startswith(FORMULA) or value.lstrip().startswith(FORMULA)
    if is_formula and not _is_number(value):
        return f"'{value}"
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def cell(value: object) -> str:
    """One value in few digits: a dash where it is missing."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if not isinstance(value, float | np.floating):
        return escape(value)
    number = float(value)
    if np.isnan(number):
        return "–"
    if number.is_integer() and abs(number) < 1e9:
        return str(int(number))
    return f"{number:.{DIGITS}g}"


def html_table(table: pd.DataFrame, caption: str) -> str:
    """The first rows of a table; numbers to the right."""
    styles = [_style(table[name]) for name in table.columns]
    head = ""
    for name, style in zip(table.columns, styles, strict=True):
        head += f'<th scope="col"{style}>{escape(name)}</th>'
    body = []
    for row in table.head(ROWS_SHOWN).itertuples(index=False):
        cells = map("<td{}>{}</td>".format, styles, map(cell, row))
        body.append(f"<tr>{''.join(cells)}</tr>")
    return TABLE.format(caption=escape(caption), head=head, body="\n".join(body))


def _style(column: pd.Series) -> str:
    is_number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    return ' class="number"' if is_number else ""


def table_details(name: str, table: pd.DataFrame, description: str) -> str:
    """A closed table with its description and its download button."""
    shown = f"{len(table)} rows."
    if len(table) > ROWS_SHOWN:
        shown = f"The first {ROWS_SHOWN} of {len(table)} rows without JavaScript."
    return DETAILS.format(
        name=escape(name),
        rows=len(table),
        description=escape(description),
        shown=shown,
        table=html_table(table, f"table {name}"),
    )
