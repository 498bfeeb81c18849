"""A figure in words, for those who do not see it: what is drawn, and between which values."""

import html
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import plotly.graph_objects as go

from emlens.figures.labels import four_digits

MOST_SERIES = 8
"""Series that are described one by one; of the others only the number is given."""


def describe_figure(figure: go.Figure) -> str:
    """Every named series with the number of its values and their range.

    Of a heatmap: the number of its cells, their range, and where the greatest lies. Bands and
    whatever has no hover box are left out. The table below a figure has the numbers themselves.
    """
    heatmaps: list[str] = []
    series: dict[str, list[float]] = {}
    for trace in figure.data:
        if trace.type == "heatmap":
            if trace.showscale is not False:  # a blank layer has no scale
                heatmaps.append(_describe_cells(figure, trace))
        elif trace.hoverinfo != "skip":
            series.setdefault(_plain(trace.name or ""), []).extend(_values(figure, trace))
    sentences = list(map(_describe_series, series, series.values()))
    parts = heatmaps[:MOST_SERIES] + sentences[:MOST_SERIES]
    if len(sentences) > MOST_SERIES:
        parts.append(f"and {len(sentences) - MOST_SERIES} more series")
    return "; ".join(parts)


def _values(figure: go.Figure, trace: Any) -> Iterator[float]:
    """The measured coordinate: across where names are on the vertical axis, else up."""
    vertical = figure.layout["yaxis" + str(trace.yaxis or "y")[1:]]
    is_across = vertical.ticktext is not None and trace.error_y.array is None
    values = trace.x if is_across else trace.y
    if values is None:
        return
    for value in values:
        if value is not None and np.isfinite(value):
            yield float(value)


def _describe_series(name: str, values: list[float]) -> str:
    start = f"{name}: " if name else ""
    if not values:
        return f"{start}no values"
    noun = "value" if len(values) == 1 else "values"
    return f"{start}{len(values)} {noun}{_range(min(values), max(values))}"


def _range(low: float, high: float) -> str:
    least, greatest = four_digits(low), four_digits(high)
    return f", {least}" if least == greatest else f" from {least} to {greatest}"


def _describe_cells(figure: go.Figure, trace: Any) -> str:
    values = np.array(trace.z, dtype=float)
    is_finite = np.isfinite(values)
    if not is_finite.any():
        return "no cell has a value"
    greatest = int(np.argmax(np.where(is_finite, values, -np.inf)))
    row, column = map(int, np.unravel_index(greatest, values.shape))
    y_axis = figure.layout["yaxis" + str(trace.yaxis or "y")[1:]]
    x_axis = figure.layout["xaxis" + str(trace.xaxis or "x")[1:]]
    place = ", ".join(filter(None, (_tick(y_axis, row), _tick(x_axis, column))))
    low, high = four_digits(values[is_finite].min()), four_digits(values[is_finite].max())
    sentence = f"{int(is_finite.sum())} cells from {low} to {high}"
    if place:
        sentence += f", greatest at {place}"
    return sentence


def _tick(axis: Any, place: int) -> str:
    """The text of an axis at a place; empty where it has none."""
    if axis.tickvals is None or axis.ticktext is None or place not in list(axis.tickvals):
        return ""
    return _plain(str(axis.ticktext[list(axis.tickvals).index(place)]))


def _plain(text: str) -> str:
    """A label as text: without the line breaks and bold of a figure, entities as characters."""
    return html.unescape(re.sub(r"<[^>]*>", " ", text)).strip()
