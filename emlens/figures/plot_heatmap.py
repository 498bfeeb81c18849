"""A heatmap from any tidy table: x across, one row a group, cells coloured by y, with interval and
null in the hover box.
"""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from emlens.figures.labels import label, stacked
from emlens.figures.plot_marks import (
    MOST_TICKS,
    Asked,
    figure_of,
    names_of,
    spread,
    told,
    undefined,
)
from emlens.figures.style import BAR_ROOM, DIVERGING, SEQUENTIAL, colour_bar, dress
from emlens.foundation.errors import InputError

ROW = 34
MOST_LETTERS = 40
"""Letters of 11 pixels that fit beside each other on a phone: cells whose numbers need more stay
bare; the hover box has them.
"""


def heatmap(table: pd.DataFrame, asked: Asked) -> go.Figure:
    """Cells by x and group; a scale from the least to the greatest value, or around 0 where a value
    is negative.

    Raises:
        InputError: two rows of the table for one cell.
    """
    across = _names(table[asked.x])
    down = _names(table[asked.colour]) if asked.colour else {"": ""}
    columns, rows = {v: i for i, v in enumerate(across)}, {v: i for i, v in enumerate(down)}
    z = np.full((len(rows), len(columns)), np.nan)
    box = np.full(z.shape, "no measurement", dtype=object)
    beside = np.full(z.shape, np.nan)
    seen: set[tuple[int, int]] = set()
    null = table[asked.null] if asked.null else [np.nan] * len(table)
    names = table[asked.colour].map(str) if asked.colour else [""] * len(table)
    for x, row, value, under, said in zip(
        table[asked.x].map(str), names, table[asked.y], null, told(table, asked), strict=True
    ):
        cell = rows[row], columns[x]
        if cell in seen:
            where = f"{asked.x}={x}" + (f", {asked.colour}={row}" if asked.colour else "")
            raise InputError(
                f"draw_plot: heatmap has several rows for {where};"
                " name the column that tells them apart as colour or facet"
            )
        seen.add(cell)
        z[cell], beside[cell], box[cell] = value, under, said
    finite = z[np.isfinite(z)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    scale, low, high = (
        (DIVERGING, -max(-low, high), max(-low, high)) if low < 0 else (SEQUENTIAL, low, high)
    )
    high = high if high > low else low + 1
    figure = go.Figure()
    text = _written(z, beside)
    figure.add_heatmap(
        z=z,
        x=list(range(len(columns))),
        y=list(range(len(rows))),
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
        hoverongaps=False,
        text=text,
        texttemplate=None if text is None else "%{text}",
        textfont={"size": 11},
        customdata=box,
        hovertemplate="%{customdata}<extra></extra>",
    )
    kept = spread(len(across), MOST_TICKS)
    figure.update_xaxes(
        tickvals=kept,
        ticktext=[stacked(list(across.values())[i], 12, 30) for i in kept],
        title_text=asked.title("x"),
        showgrid=False,
    )
    figure.update_yaxes(
        tickvals=list(range(len(down))),
        ticktext=[stacked(name, 20, 44) for name in down.values()],
        autorange="reversed",
        showgrid=False,
        title_text=label(asked.colour.replace("_", " ")) if asked.colour else None,
    )
    undefined(figure, table[asked.y])
    middle = (low + high) / 2
    bar = colour_bar(
        [low, middle, high],
        [f"{asked.title('y')} {figure_of(low)}", figure_of(middle), figure_of(high)],
    )
    figure.update_layout(
        coloraxis={"colorscale": scale, "cmin": low, "cmax": high, "colorbar": bar}
    )
    height = ROW + 14 * int(bool(asked.null))
    return dress(figure, 160 + height * max(2, len(down)), legend=False).update_layout(
        margin={"t": BAR_ROOM}
    )


def _written(z: np.ndarray, null: np.ndarray) -> list[list[str]] | None:
    """What stands in the cells: number and null, the number alone, or nothing, as there is room."""
    bare = [[figure_of(round(v, 2)) if np.isfinite(v) else "" for v in row] for row in z]
    under = [
        [f"<br>null {figure_of(round(v, 2))}" if np.isfinite(v) else "" for v in row]
        for row in null
    ]
    both = [
        [a + b for a, b in zip(first, second, strict=True)]
        for first, second in zip(bare, under, strict=True)
    ]
    for text in (both, bare):
        if (
            z.shape[1]
            * max(len(line) + 1 for row in text for cell in row for line in cell.split("<br>"))
            <= MOST_LETTERS
        ):
            return text
    return None


def _names(column: pd.Series) -> dict[str, str]:
    """Distinct values: numbers ascending, names in order of appearance."""
    numeric = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    return names_of(column.sort_values(kind="stable") if numeric else column)
