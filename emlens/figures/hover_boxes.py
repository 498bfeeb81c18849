"""What the hover box of every row says: texts first, then numbers with their interval and null."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from emlens.figures.labels import cell_text, four_digits, hover, label
from emlens.figures.plot_columns import PlotColumns


def hover_boxes(table: pd.DataFrame, columns: PlotColumns) -> list[str]:
    """The box of every row, escaped."""
    is_number = {name: pd.api.types.is_numeric_dtype(table[name]) for name in columns.hover}
    texts = [name for name in columns.hover if not is_number[name]]
    numbers = [name for name in columns.hover if is_number[name]]
    boxes = []
    for _, row in table.iterrows():
        boxes.append("<br>".join(filter(None, _lines(row, columns, texts, numbers))))
    return boxes


def _lines(
    row: pd.Series, columns: PlotColumns, texts: list[str], numbers: list[str]
) -> Iterator[str]:
    for name in texts:
        if cell_text(row[name]):
            yield hover(row[name])
    if columns.colour:
        yield f"{label(columns.colour)}: {label(cell_text(row[columns.colour]), 60)}"
    yield f"{columns.x_label}: {label(cell_text(row[columns.x]), 60)}"
    yield f"{columns.y_label} {_with_interval(row, columns)}"
    if columns.null:
        yield f"{label(columns.null.replace('_', ' '))} {four_digits(row[columns.null])}"
    for name in numbers:
        yield f"{label(name.replace('_', ' '))}: {label(cell_text(row[name]))}"


def _with_interval(row: pd.Series, columns: PlotColumns) -> str:
    value = four_digits(row[columns.y])
    if not columns.has_interval or not np.isfinite([row[columns.low], row[columns.high]]).all():
        return value
    return f"{value} [{four_digits(row[columns.low])}, {four_digits(row[columns.high])}]"
