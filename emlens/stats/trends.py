"""Did a series fall at once, or little by little? The steepest fall within a window, beside what
order and sign alone would give.

A change point can be found in any series; these nulls say whether it is more than a trend or a
wander of the same step sizes.
"""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from emlens.foundation.errors import InputError
from emlens.foundation.seeds import numpy_rng
from emlens.stats.nulls import NullDistribution
from emlens.stats.samples import as_sample

Trend = Literal["none", "linear"]


def steepest_fall(values: ArrayLike, window: int) -> tuple[float, int]:
    """Largest `values[i] − values[i + window]`, in the units of the values, and the `i` where it
    starts.

    Raises:
        InputError: a window below 1 or not shorter than the series; values that are not finite.
    """
    series = _series(values, window)
    falls = series[:-window] - series[window:]
    start = int(np.argmax(falls))
    return float(falls[start]), start


def fall_null(
    values: ArrayLike, window: int, trend: Trend, *, draws: int = 999, seed: int = 0
) -> NullDistribution:
    """`steepest_fall` of series with the same steps and no transition.

    `"linear"`: the steps in random order, so that the whole fall stays and only its timing goes (a
    linear trend with exchangeable noise). `"none"`: the steps with random signs (no trend at all).
    Both treat steps as exchangeable; steps of a training run are also alike because they are
    neighbours, which these nulls count as evidence of a transition.

    Raises:
        InputError: an unknown trend, or what `steepest_fall` refuses.
    """
    if trend not in ("none", "linear"):
        raise InputError(f"trend={trend!r} is unknown; pass 'none' or 'linear'")
    steps = np.diff(_series(values, window))
    rng = numpy_rng(seed, "fall null", trend)
    found = []
    for _ in range(draws):
        drawn = (
            rng.permutation(steps)
            if trend == "linear"
            else steps * rng.choice([-1.0, 1.0], size=len(steps))
        )
        found.append(steepest_fall(np.concatenate([[0.0], drawn.cumsum()]), window)[0])
    words = "steps in random order" if trend == "linear" else "steps with random signs"
    return NullDistribution(
        np.array(found), f"steepest fall within {window} of {len(steps)} steps; {words}", seed
    )


def _series(values: ArrayLike, window: int) -> np.ndarray:
    series = as_sample(values, "values", at_least=3)
    if not 1 <= window < len(series):
        raise InputError(
            f"window={window!r} must be at least 1 and below the {len(series)} values of the series"
        )
    return series
