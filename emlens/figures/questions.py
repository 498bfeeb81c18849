"""One point a question, a colour and a symbol a domain: what the scatter figures share. Refuses nothing; drawn in linear time."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from emlens.figures.labels import hover, label
from emlens.figures.style import CYCLE, SYMBOLS


def add_questions(figure: go.Figure, table: pd.DataFrame, groups: Sequence[str], x: str, y: str, told: str, row: int) -> None:
    """Points of `table` (columns id, group, text, `x`, `y`) in one row of the figure; text in the hover box.

    Args:
        groups: every group of the figure in the order of the legend, so that all panels give one the same colour.
        told: the numbers in the hover box, with plotly's places `%{x}` and `%{y}`.
    """
    for i, group in enumerate(groups):
        mine = table[table["group"].astype(str) == group]
        figure.add_scatter(
            x=mine[x],
            y=mine[y],
            mode="markers",
            name=label(group),
            legendgroup=f"group {i}",
            showlegend=row == 1,
            marker={
                "color": CYCLE[i % len(CYCLE)],
                "symbol": SYMBOLS[i % len(SYMBOLS)],
                "size": 8,
                "line": {"width": 0.5, "color": "#FFFFFF"},
            },
            customdata=[[label(q), hover(t), label(group)] for q, t in zip(mine["id"], mine["text"], strict=True)],
            hovertemplate="%{customdata[1]}<br>%{customdata[0]} · %{customdata[2]}<br>" + told + "<extra></extra>",
            row=row,
            col=1,
        )
