"""A heatmap from any tidy table: x across, one row per group, cells coloured by y.

The hover box of a cell has its interval and its null.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from emlens.figures.axis import MOST_TICKS, is_number_column, names_of
from emlens.figures.generic_kinds import GenericKind
from emlens.figures.hover_boxes import hover_boxes
from emlens.figures.labels import four_digits, label, stacked
from emlens.figures.notes import add_note_if_undefined
from emlens.figures.plot_columns import PlotColumns
from emlens.figures.style import BAR_ROOM, DIVERGING, INK, SEQUENTIAL, apply_layout, colour_bar
from emlens.figures.thinning import evenly
from emlens.foundation.errors import InputError

ROW = 34
NULL_LINE = 14
MOST_LETTERS = 40
"""Letters of 11 pixels that fit beside each other on a phone: cells whose numbers need more stay
bare; the hover box has them.
"""

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class _Cells:
    """The cells of a heatmap: rows by columns.

    down, across: names of rows and columns: what tells them apart, and how they are written.
    values, null: NaN where there is none. boxes: the hover boxes.
    """

    down: dict[str, str]
    across: dict[str, str]
    values: Array
    null: Array
    boxes: "np.ndarray[Any, np.dtype[np.object_]]"


def heatmap(table: pd.DataFrame, columns: PlotColumns) -> go.Figure:
    """Cells by x and group, on a scale from the least to the greatest value.

    Where a value is negative, the scale runs as far below 0 as above it.

    Raises:
        InputError: two rows of the table for one cell.
    """
    cells = _cells(table, columns)
    texts = _cell_texts(cells)
    figure = go.Figure()
    figure.add_heatmap(
        z=cells.values,
        x=list(range(len(cells.across))),
        y=list(range(len(cells.down))),
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
        hoverongaps=False,
        text=texts,
        texttemplate=None if texts is None else "%{text}",
        textfont={"size": 11, "color": INK},
        customdata=cells.boxes,
        hovertemplate="%{customdata}<extra></extra>",
    )
    _label_axes(figure, cells, columns)
    add_note_if_undefined(figure, table[columns.y])
    figure.update_layout(coloraxis=_colour_axis(cells.values, columns.y_label))
    row = ROW
    if columns.null:
        row += NULL_LINE
    apply_layout(figure, 160 + row * max(2, len(cells.down)), legend=False)
    return figure.update_layout(margin={"t": BAR_ROOM})


def _cells(table: pd.DataFrame, columns: PlotColumns) -> _Cells:
    across = _names(table[columns.x])
    down = {"": ""}
    group_keys = pd.Series("", index=table.index)
    if columns.colour:
        down = _names(table[columns.colour])
        group_keys = table[columns.colour].map(str)
    null = pd.Series(np.nan, index=table.index)
    if columns.null:
        null = table[columns.null]
    shape = len(down), len(across)
    cells = _Cells(
        down=down,
        across=across,
        values=np.full(shape, np.nan),
        null=np.full(shape, np.nan),
        boxes=np.full(shape, "no measurement", dtype=object),
    )
    row_places = {key: i for i, key in enumerate(down)}
    column_places = {key: i for i, key in enumerate(across)}
    filled: set[tuple[int, int]] = set()
    x_keys = table[columns.x].map(str)
    rows = zip(x_keys, group_keys, table[columns.y], null, hover_boxes(table, columns), strict=True)
    for x, group, value, null_value, box in rows:
        cell = row_places[group], column_places[x]
        if cell in filled:
            raise InputError(_several_rows(x, group, columns))
        filled.add(cell)
        cells.values[cell], cells.null[cell], cells.boxes[cell] = value, null_value, box
    return cells


def _several_rows(x: str, group: str, columns: PlotColumns) -> str:
    where = f"{columns.x}={x}"
    if columns.colour:
        where += f", {columns.colour}={group}"
    return (
        f"draw_plot: heatmap has several rows for {where};"
        " name the column that tells them apart as colour or facet"
    )


def _colour_axis(values: Array, name: str) -> dict[str, Any]:
    """The scale and its bar, whose ticks are the ends and the middle."""
    finite = values[np.isfinite(values)]
    low, high = 0.0, 1.0
    if len(finite):
        low, high = float(finite.min()), float(finite.max())
    scale: Any = SEQUENTIAL
    if low < 0:
        scale, low, high = DIVERGING, -max(-low, high), max(-low, high)
    if high <= low:
        high = low + 1
    middle = low / 2 + high / 2
    ticks = [f"{name} {four_digits(low)}", four_digits(middle), four_digits(high)]
    bar = colour_bar([low, middle, high], ticks)
    return {"colorscale": scale, "cmin": low, "cmax": high, "colorbar": bar}


def _label_axes(figure: go.Figure, cells: _Cells, columns: PlotColumns) -> None:
    across, down = list(cells.across.values()), list(cells.down.values())
    ticks = evenly(len(across), MOST_TICKS)
    figure.update_xaxes(
        tickvals=ticks,
        ticktext=[stacked(across[i], 12, 30) for i in ticks],
        title_text=columns.x_label,
        showgrid=False,
    )
    figure.update_yaxes(
        tickvals=list(range(len(down))),
        ticktext=[stacked(name, 20, 44) for name in down],
        autorange="reversed",
        showgrid=False,
    )
    if columns.colour:
        figure.update_yaxes(title_text=label(columns.colour.replace("_", " ")))


def _cell_texts(cells: _Cells) -> list[list[str]] | None:
    """What is written in the cells: number and null, the number alone, or nothing, as they fit."""
    numbers = [list(map(_number, row)) for row in cells.values]
    with_null = []
    for row, nulls in zip(numbers, cells.null, strict=True):
        with_null.append([text + _null(null) for text, null in zip(row, nulls, strict=True)])
    for texts in (with_null, numbers):
        if len(cells.across) * (_longest_line(texts) + 1) <= MOST_LETTERS:
            return texts
    return None


def _number(value: float) -> str:
    return four_digits(round(float(value), 2)) if np.isfinite(value) else ""


def _null(value: float) -> str:
    return f"<br>null {_number(value)}" if np.isfinite(value) else ""


def _longest_line(texts: list[list[str]]) -> int:
    lines = "<br>".join(text for row in texts for text in row).split("<br>")
    return max(map(len, lines))


def _names(column: pd.Series) -> dict[str, str]:
    """Distinct values: numbers ascending, names in order of appearance."""
    if is_number_column(column):
        column = column.sort_values(kind="stable")
    return names_of(column)


KIND = GenericKind("heatmap", heatmap, bounds_x=True)
