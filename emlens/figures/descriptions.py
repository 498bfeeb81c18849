"""A figure in a sentence or two, for those who do not see it: what is drawn, and between which
values.
"""

import html
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import plotly.graph_objects as go

from emlens.figures.plot_marks import figure_of

MOST = 8
"""Series told one by one; of the rest only the number is said."""


def describe_figure(figure: go.Figure) -> str:
    """Every named series with the number of its values and their range; of a heatmap its cells, and
    where the greatest stands.

    The table below a figure has the numbers themselves. Bands and what has no hover box are left
    out.
    """
    series: dict[str, list[float]] = {}
    told = []
    for trace in figure.data:
        if trace.type == "heatmap":
            if trace.showscale is not False:  # a blank layer has none
                told += _cells(figure, trace)
        elif trace.hoverinfo != "skip":
            series.setdefault(_plain(trace.name or ""), []).extend(_values(figure, trace))
    named = [f"{name + ': ' if name else ''}{_range(values)}" for name, values in series.items()]
    rest = f"and {len(named) - MOST} more series" if len(named) > MOST else ""
    return "; ".join([*told[:MOST], *named[:MOST], *filter(None, [rest])])


def _values(figure: go.Figure, trace: Any) -> Iterator[float]:
    """The measured coordinate: across where names stand on the vertical axis, else up."""
    vertical = figure.layout["yaxis" + str(trace.yaxis or "y")[1:]]
    across = vertical.ticktext is not None and trace.error_y.array is None
    values = trace.x if across else trace.y
    return (
        float(v) for v in (() if values is None else values) if v is not None and np.isfinite(v)
    )


def _range(values: list[float]) -> str:
    if not values:
        return "no values"
    count = f"{len(values)} value{'s' if len(values) > 1 else ''}"
    low, high = figure_of(min(values)), figure_of(max(values))
    return f"{count}, {low}" if low == high else f"{count} from {low} to {high}"


def _cells(figure: go.Figure, trace: Any) -> list[str]:
    z = np.array(trace.z, dtype=float)
    finite = np.isfinite(z)
    if not finite.any():
        return ["no cell has a value"]
    row, column = map(int, np.unravel_index(int(np.argmax(np.where(finite, z, -np.inf))), z.shape))
    names = [
        _tick(figure.layout[axis + "axis" + str(trace[f"{axis}axis"] or axis)[1:]], i)
        for axis, i in (("y", row), ("x", column))
    ]
    at = ", ".join(name for name in names if name)
    low, high = figure_of(float(z[finite].min())), figure_of(float(z[finite].max()))
    return [
        f"{int(finite.sum())} cells from {low} to {high}" + (f", greatest at {at}" if at else "")
    ]


def _tick(axis: Any, place: int) -> str:
    places = [] if axis.tickvals is None else list(axis.tickvals)
    return (
        _plain(str(axis.ticktext[places.index(place)]))
        if place in places and axis.ticktext is not None
        else ""
    )


def _plain(text: str) -> str:
    """A label as text: without the line breaks and bold of a figure, entities as characters."""
    return html.unescape(re.sub(r"<[^>]*>", " ", text)).strip()
