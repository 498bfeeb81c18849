"""Does a direction taken from one fine-tune restore another? A matrix with intervals in cells."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from emlens.figures.labels import interval, key, label, number, stacked
from emlens.figures.style import BAR_ROOM, DIVERGING, INK, apply_layout, colour_bar
from emlens.figures.table_kinds import TableKind, TableNeed
from emlens.figures.tables import distinct, require_columns

NAME = "transfer_matrix"
COLUMNS = ("direction_of", "ablated_in", "restoration", "low", "high", "n")
CONTROL = "strongest_control"
ROW = 70
MOST_WORDED = 5
"""Directions up to which a cell has its interval and its control; beyond, only the box has them."""
LOW_ROW = 34
"""Height of a row whose cells hold a number alone."""


@dataclass(frozen=True)
class _Cells:
    """The matrix: restoration, the text in each cell, and its hover box."""

    restoration: "np.ndarray[Any, np.dtype[np.float64]]"
    texts: list[list[str]]
    boxes: list[list[str]]


def transfer_matrix(transfer: pd.DataFrame) -> go.Figure:
    """Restoration in the column's fine-tune by ablating the row's direction, with 95 % intervals.

    Colours run from −1 to 1. Of more than five directions the cells hold the number alone, and the
    boxes the rest.

    Args:
        transfer: columns direction_of, ablated_in, restoration, low, high, n; where there is a
            column strongest_control, the best restoration by any control arm is written under the
            interval.

    Raises:
        InputError: a column is missing.
    """
    require_columns(transfer, COLUMNS, NAME)
    sources, targets = distinct(transfer, "direction_of"), distinct(transfer, "ablated_in")
    cells = _cells(transfer, sources, targets)
    figure = go.Figure()
    _add_blank_cells(figure, cells)
    _add_cells(figure, cells)
    is_worded = max(len(sources), len(targets)) <= MOST_WORDED
    if is_worded:
        height, angle = ROW, 0
        names = [stacked(name, 9, 24) for name in targets]
    else:
        height, angle = LOW_ROW, -90
        names = [label(name, 24) for name in targets]
    figure.update_xaxes(
        tickvals=list(range(len(targets))),
        ticktext=names,
        tickangle=angle,
        automargin=True,
        title_text="ablated in",
        showgrid=False,
    )
    figure.update_yaxes(
        tickvals=list(range(len(sources))),
        ticktext=[stacked(source, 12, 24) for source in sources],
        title_text="direction of",
        autorange="reversed",
        showgrid=False,
    )
    bar = colour_bar([-1, 0, 1], ["restoration −1", "0", "1"])
    figure.update_layout(
        coloraxis={"colorscale": DIVERGING, "cmin": -1, "cmax": 1, "colorbar": bar}
    )
    figure.update_layout(meta={"rows": {"model": {key(m): i for i, m in enumerate(sources)}}})
    apply_layout(figure, 150 + height * len(sources), legend=False)
    return figure.update_layout(margin={"t": BAR_ROOM})


def _cells(transfer: pd.DataFrame, sources: list[object], targets: list[object]) -> _Cells:
    restoration = np.full((len(sources), len(targets)), np.nan)
    text_of = _short_text
    if max(len(sources), len(targets)) <= MOST_WORDED:
        text_of = _cell_text
    texts = [["–"] * len(targets) for _ in sources]
    boxes = [["no measurement"] * len(targets) for _ in sources]
    for _, row in transfer.iterrows():
        i, j = sources.index(row["direction_of"]), targets.index(row["ablated_in"])
        restoration[i, j] = row["restoration"]
        texts[i][j] = text_of(row)
        boxes[i][j] = (
            f"direction of {label(row['direction_of'])}, ablated in {label(row['ablated_in'])}"
            f"<br>{_box(row)}"
        )
    return _Cells(restoration, texts, boxes)


def _cell_text(row: pd.Series) -> str:
    if not np.isfinite(row["restoration"]):
        return "undefined"
    text = f"{number(row['restoration'])}<br>{interval(row['low'], row['high'])}"
    if np.isfinite(row.get(CONTROL, np.nan)):
        text += f"<br>control {number(row[CONTROL])}"
    return text


def _short_text(row: pd.Series) -> str:
    """The number alone, where cells are narrow."""
    if not np.isfinite(row["restoration"]):
        return "–"
    return number(row["restoration"], 1)


def _box(row: pd.Series) -> str:
    if not np.isfinite(row["restoration"]):
        return "restoration undefined: no clear loss to restore"
    ends = interval(row["low"], row["high"], 3)
    text = f"restoration {number(row['restoration'], 3)} {ends}, {int(row['n'])} questions"
    if np.isfinite(row.get(CONTROL, np.nan)):
        text += f"<br>strongest control: {number(row[CONTROL])}"
    return text


def _add_blank_cells(figure: go.Figure, cells: _Cells) -> None:
    """A grey layer below, because plotly leaves cells without a number empty, without a box."""
    is_defined = np.isfinite(cells.restoration)
    rows, columns = cells.restoration.shape
    figure.add_heatmap(
        z=np.zeros_like(cells.restoration),
        x=list(range(columns)),
        y=list(range(rows)),
        colorscale=[[0, "#EFEFEF"], [1, "#EFEFEF"]],
        showscale=False,
        xgap=2,
        ygap=2,
        text=np.where(is_defined, "", np.array(cells.texts)),
        texttemplate="%{text}",
        textfont={"size": 12, "color": INK},
        customdata=cells.boxes,
        hovertemplate="%{customdata}<extra></extra>",
    )


def _add_cells(figure: go.Figure, cells: _Cells) -> None:
    rows, columns = cells.restoration.shape
    figure.add_heatmap(
        z=cells.restoration,
        x=list(range(columns)),
        y=list(range(rows)),
        coloraxis="coloraxis",
        xgap=2,
        ygap=2,
        text=cells.texts,
        texttemplate="%{text}",
        textfont={"size": 12, "color": INK},
        hoverongaps=False,
        customdata=cells.boxes,
        hovertemplate="%{customdata}<extra></extra>",
    )


KIND = TableKind(
    name=NAME,
    reads=(TableNeed("transfer", COLUMNS),),
    draw_figure=transfer_matrix,
)
