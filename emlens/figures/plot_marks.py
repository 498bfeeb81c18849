"""What all generic figures share: where a value stands on an axis, how it is told in a hover box,
and how much is drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from emlens.figures.labels import hover, label, stacked
from emlens.figures.style import CYCLE, DASHES, GREY, SYMBOLS

LOW, HIGH = "_low", "_high"
MOST_MARKS = 2000
"""Marks in one figure: each is an element of the page; more would make it slow and tell nothing
new.
"""
MOST_NAMES = 20
"""Names in a legend; further ones are drawn in grey."""
MOST_TICKS = 12
LOG_FROM = 1000
"""Positive fractions that span this factor (learning rates, p-values) are drawn on a logarithmic
axis.
"""


@dataclass(frozen=True)
class Asked:
    """The columns of one figure, checked to be there."""

    x: str
    y: str
    colour: str
    null: str
    hover: tuple[str, ...]
    x_title: str
    y_title: str
    intervals: bool

    @property
    def low(self) -> str:
        return f"{self.y}{LOW}"

    @property
    def high(self) -> str:
        return f"{self.y}{HIGH}"

    def title(self, axis: str) -> str:
        given, column = (self.x_title, self.x) if axis == "x" else (self.y_title, self.y)
        return label(given or column.replace("_", " "), 60)


@dataclass(frozen=True)
class Look:
    """How one of several groups is drawn."""

    name: str
    colour: str
    symbol: str
    dash: str
    listed: bool


def looks(table: pd.DataFrame, column: str) -> list[tuple[pd.DataFrame, Look]]:
    """The groups of a table in order of appearance, each with its colour, symbol and dash; one
    group without a column.
    """
    if not column:
        return [(table, Look("", CYCLE[0], SYMBOLS[0], DASHES[0], False))]
    keys = table[column].map(str)
    found = []
    for i, (key, value) in enumerate(dict(zip(keys, table[column], strict=True)).items()):
        listed = i < MOST_NAMES
        colour = CYCLE[i % len(CYCLE)] if listed else GREY
        found.append(
            (
                table[keys == key],
                Look(
                    label(shown(value)),
                    colour,
                    SYMBOLS[i % len(SYMBOLS)],
                    DASHES[i % len(DASHES)],
                    listed,
                ),
            )
        )
    return found


def names_of(values: pd.Series) -> dict[str, str]:
    """Distinct values in order of appearance: what tells them apart, and how they are written."""
    return {str(value): shown(value) for value in values}


class Axis:
    """Places on an axis: numbers as they are, names one after the other in order of appearance."""

    def __init__(self, values: pd.Series):
        self.numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(
            values
        )
        self.names = names_of(values)
        self._place = {key: i for i, key in enumerate(self.names)}
        self._values = values

    def places(self, values: pd.Series) -> list[float]:
        return (
            [float(v) for v in values]
            if self.numeric
            else [float(self._place[str(v)]) for v in values]
        )

    def layout(self) -> dict[str, Any]:
        """Ticks: names where there are names, every whole number while there are few, a logarithm
        over orders of magnitude.
        """
        if not self.numeric:
            kept = spread(len(self.names), MOST_TICKS)
            words = list(self.names.values())
            return {
                "tickvals": kept,
                "ticktext": [stacked(words[i], 12, 30) for i in kept],
                "range": [-0.5, len(words) - 0.5],
            }
        numbers = self._values.dropna().to_numpy(dtype=float)
        numbers = np.unique(numbers[np.isfinite(numbers)])
        whole = bool(len(numbers)) and bool((numbers == np.round(numbers)).all())
        if whole and len(numbers) <= 16:
            return {"tickvals": numbers.tolist(), "ticktext": [f"{v:.0f}" for v in numbers]}
        if (
            len(numbers) > 1
            and not whole
            and numbers[0] > 0
            and numbers[-1] / numbers[0] >= LOG_FROM
        ):
            return {"type": "log"}
        return {"nticks": MOST_TICKS}


def told(table: pd.DataFrame, asked: Asked) -> list[str]:
    """The hover box of every row: texts first, then the numbers with interval and null; everything
    escaped.
    """
    texts = [c for c in asked.hover if not pd.api.types.is_numeric_dtype(table[c])]
    numbers = [c for c in asked.hover if c not in texts]
    found = []
    for _, row in table.iterrows():
        value = f"{asked.title('y')} {figure_of(row[asked.y])}"
        if asked.intervals and np.isfinite([row[asked.low], row[asked.high]]).all():
            value += f" [{figure_of(row[asked.low])}, {figure_of(row[asked.high])}]"
        lines = [hover(row[c]) for c in texts if shown(row[c])]
        lines.append(
            f"{label(asked.colour)}: {label(shown(row[asked.colour]), 60)}" if asked.colour else ""
        )
        lines.append(f"{asked.title('x')}: {label(shown(row[asked.x]), 60)}")
        lines.append(value)
        lines.append(
            f"{label(asked.null.replace('_', ' '))} {figure_of(row[asked.null])}"
            if asked.null
            else ""
        )
        lines += [f"{label(c.replace('_', ' '))}: {label(shown(row[c]))}" for c in numbers]
        found.append("<br>".join(line for line in lines if line))
    return found


def shown(value: object) -> str:
    """A cell in words: four digits, yes or no, a dash for nothing."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        number = float(value)
        return f"{number:.0f}" if number.is_integer() and abs(number) < 1e9 else figure_of(number)
    return "–" if value is None else str(value)


def figure_of(value: float) -> str:
    """Four digits with a true minus sign; a dash where there is no number."""
    return f"{value:.4g}".replace("-", "−") if np.isfinite(value) else "–"


def spread(n: int, most: int) -> list[int]:
    """At most that many of n places, evenly, the first and the last among them."""
    return list(range(n)) if n <= most else [round(i) for i in np.linspace(0, n - 1, most)]


def thinned(table: pd.DataFrame, *by: str) -> tuple[pd.DataFrame, str]:
    """At most MOST_MARKS rows, evenly along the columns `by`, and what is said about it."""
    if len(table) <= MOST_MARKS:
        return table, ""
    ordered = table.sort_values(
        [c for c in by if c], kind="stable", key=lambda s: s.map(str) if s.dtype == object else s
    )
    return (
        ordered.iloc[spread(len(table), MOST_MARKS)].sort_index(),
        f"{MOST_MARKS} of {len(table)} rows drawn, evenly; the table has all",
    )


def say(figure: go.Figure, *notes: str) -> None:
    """Small print above the plot; nothing where there is nothing to say."""
    text = "; ".join(note for note in notes if note)
    if text:
        figure.add_annotation(
            text=text,
            x=0,
            y=1,
            xref="paper",
            yref="paper",
            xanchor="left",
            yanchor="bottom",
            yshift=3,
            showarrow=False,
            font={"size": 12, "color": GREY},
        )


def unnamed(groups: Sequence[object]) -> str:
    """What is said where the legend does not list all groups."""
    return f"{len(groups) - MOST_NAMES} further groups in grey" if len(groups) > MOST_NAMES else ""


def undefined(figure: go.Figure, values: pd.Series) -> None:
    """Say so where no value is a number."""
    if not np.isfinite(values.to_numpy(dtype=float)).any():
        figure.add_annotation(
            text="no value is defined",
            x=0.5,
            y=0.5,
            xref="x domain",
            yref="y domain",
            showarrow=False,
        )
