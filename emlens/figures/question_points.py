"""One point per question, a colour and a symbol per domain: what the scatter figures share.

Points are drawn in linear time, and thinned above MOST_MARKS. The hover box holds the question, and
the answers where the table has them.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from emlens.figures.labels import hover, key, label
from emlens.figures.style import CYCLE, GREY, SYMBOLS
from emlens.figures.thinning import thinned


def add_question_points(
    figure: go.Figure,
    table: pd.DataFrame,
    x: str,
    y: str,
    numbers: str,
    *,
    groups: Sequence[str],
    row: int = 1,
) -> None:
    """Draw the points of a table in one row of the figure, with their texts in the hover box.

    Args:
        table: columns id, group, text, `x` and `y`, and answer and answer_before where known.
        numbers: the numbers in the hover box, with plotly's places `%{x}` and `%{y}`.
        groups: every group of the figure in the order of the legend, so that all panels give a
            group the same colour.
    """
    table, note = thinned(table, "group", y)
    if note:
        _add_to_legend(figure, note, row)
    for i, group in enumerate(groups):
        points = table[table["group"].astype(str) == group]
        boxes = zip(map(label, points["id"]), _texts(points), strict=True)
        figure.add_scatter(
            x=points[x],
            y=points[y],
            mode="markers",
            name=label(group),
            legendgroup=f"group {i}",
            showlegend=row == 1,
            meta={"group": key(group)},
            marker={
                "color": CYCLE[i % len(CYCLE)],
                "symbol": SYMBOLS[i % len(SYMBOLS)],
                "size": 8,
                "line": {"width": 0.5, "color": "#FFFFFF"},
            },
            customdata=[[name, text, label(group)] for name, text in boxes],
            hovertemplate=(
                "%{customdata[1]}<br>%{customdata[0]} · %{customdata[2]}<br>"
                f"{numbers}<extra></extra>"
            ),
            row=row,
            col=1,
        )


def add_diagonal(figure: go.Figure, name: str, **options: Any) -> None:
    """A dotted line from 0 to 100 where both coordinates are equal."""
    figure.add_scatter(
        x=[0, 100],
        y=[0, 100],
        mode="lines",
        line={"color": GREY, "dash": "dot", "width": 1},
        name=name,
        legendrank=2000,
        hoverinfo="skip",
        **options,
    )


def _add_to_legend(figure: go.Figure, note: str, row: int) -> None:
    """Write a note into the legend: above the plot are the titles of the panels."""
    figure.add_scatter(
        x=[None],
        y=[None],
        mode="markers",
        marker={"opacity": 0},
        name=note,
        legendrank=3000,
        showlegend=row == 1,
        hoverinfo="skip",
        row=row,
        col=1,
    )


def _texts(table: pd.DataFrame) -> list[str]:
    """The question of every row, then the answers that are known."""
    texts = list(map(hover, table["text"]))
    if "answer_before" in table.columns:
        texts = _with_answers(texts, table["answer_before"], "before")
    if "answer" in table.columns:
        word = "after" if "answer_before" in table.columns else "answer"
        texts = _with_answers(texts, table["answer"], word)
    return texts


def _with_answers(texts: list[str], answers: pd.Series, word: str) -> list[str]:
    lines = []
    for text, answer in zip(texts, answers.fillna("").map(str), strict=True):
        lines.append(f"{text}<br><i>{word}:</i> {hover(answer)}" if answer else text)
    return lines
