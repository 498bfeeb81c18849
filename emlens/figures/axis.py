"""Where values lie on an axis: numbers as they are, names one after the other."""

from typing import Any

import numpy as np
import pandas as pd

from emlens.figures.labels import cell_text, stacked
from emlens.figures.thinning import evenly

MOST_TICKS = 12
MOST_WHOLE_TICKS = 16
LOG_FROM = 1000
"""Positive fractions that span this factor (learning rates, p-values) are drawn on a logarithmic
axis.
"""


def names_of(values: pd.Series) -> dict[str, str]:
    """Distinct values in order of appearance: what tells them apart, and how they are written."""
    return {str(value): cell_text(value) for value in values}


def is_number_column(values: pd.Series) -> bool:
    """Whether a column holds numbers; yes and no are names."""
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


class Axis:
    """The axis of a column: places of its values, and ticks."""

    def __init__(self, values: pd.Series):
        self.is_numeric = is_number_column(values)
        self.names = names_of(values)
        self._place = {key: float(i) for i, key in enumerate(self.names)}
        self._values = values

    def places(self, values: pd.Series) -> list[float]:
        """Where values of the column lie; names are in their order of appearance."""
        if self.is_numeric:
            return list(map(float, values))
        return [self._place[str(value)] for value in values]

    def layout(self) -> dict[str, Any]:
        """Ticks and scale of the axis.

        Names have a tick each while there are few, and so have whole numbers. Fractions over
        orders of magnitude are on a logarithm.
        """
        if not self.is_numeric:
            return self._name_ticks()
        numbers = self._values.dropna().to_numpy(dtype=float)
        numbers = np.unique(numbers[np.isfinite(numbers)])  # ascending
        are_whole = bool(len(numbers)) and bool((numbers == np.round(numbers)).all())
        if are_whole and len(numbers) <= MOST_WHOLE_TICKS:
            return {
                "tickvals": numbers.tolist(),
                "ticktext": [cell_text(float(v)) for v in numbers],
            }
        if not are_whole and _spans_magnitudes(numbers):
            return {"type": "log"}
        return {"nticks": MOST_TICKS}

    def _name_ticks(self) -> dict[str, Any]:
        texts = list(self.names.values())
        places = evenly(len(texts), MOST_TICKS)
        return {
            "tickvals": places,
            "ticktext": [stacked(texts[i], 12, 30) for i in places],
            "range": [-0.5, len(texts) - 0.5],
        }


def _spans_magnitudes(ascending: "np.ndarray[Any, np.dtype[np.float64]]") -> bool:
    if len(ascending) < 2 or ascending[0] <= 0:
        return False
    return bool(ascending[-1] / ascending[0] >= LOG_FROM)
