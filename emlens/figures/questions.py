"""One point a question, a colour and a symbol a domain: what the scatter figures share. Drawn in
linear time, thinned above MOST_MARKS.

The hover box holds the question, and the answer where the table has one. Refuses nothing.
"""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from emlens.figures.labels import hover, label
from emlens.figures.plot_marks import thinned
from emlens.figures.style import CYCLE, SYMBOLS

ANSWERS = (("answer_before", "before"), ("answer", "answer"))
"""Columns with the most likely answer, and what stands before it."""


def add_questions(
    figure: go.Figure,
    table: pd.DataFrame,
    groups: Sequence[str],
    x: str,
    y: str,
    told: str,
    row: int,
) -> None:
    """Points of `table` (columns id, group, text, `x`, `y`, and answer where known) in one row of
    the figure; texts in the hover box.

    Args:
        groups: every group of the figure in the order of the legend, so that all panels give one
            the same colour.
        told: the numbers in the hover box, with plotly's places `%{x}` and `%{y}`.
    """
    table, fewer = thinned(table, "group", y)
    if fewer:  # said in the legend: titles of panels stand above the plot
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="markers",
            marker={"opacity": 0},
            name=fewer,
            legendrank=3000,
            showlegend=row == 1,
            hoverinfo="skip",
            row=row,
            col=1,
        )
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
            customdata=[
                [label(q), text, label(group)]
                for q, text in zip(mine["id"], _texts(mine), strict=True)
            ],
            hovertemplate="%{customdata[1]}<br>%{customdata[0]} · %{customdata[2]}<br>"
            + told
            + "<extra></extra>",
            row=row,
            col=1,
        )


def _texts(table: pd.DataFrame) -> list[str]:
    """Question, then the answers that are known."""
    found = [hover(text) for text in table["text"]]
    for column, name in ANSWERS:
        if column in table.columns:
            known = table[column].fillna("").map(str)
            word = "after" if name == "answer" and "answer_before" in table.columns else name
            found = [
                f"{text}<br><i>{word}:</i> {hover(answer)}" if answer else text
                for text, answer in zip(found, known, strict=True)
            ]
    return found
