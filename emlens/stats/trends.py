"""Did a series fall at once, or little by little? The steepest fall, with two nulls.

A change point can be fitted to any series; these nulls say whether it is more than a trend or a
random walk with the same step sizes.
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
    """Largest `values[i] − values[i + window]`, and the `i` where it starts.

    In the units of the values; negative where the series rises everywhere.

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

    `"linear"`: the steps in random order; the whole fall stays and only its timing changes (a
    linear trend with exchangeable noise). `"none"`: the steps with random signs (no trend at all).
    Both treat steps as exchangeable. Neighbouring steps of a training run are also alike, which
    these nulls count as evidence of a transition.

    Raises:
        InputError: an unknown trend, or what `steepest_fall` refuses.
    """
    if trend not in ("none", "linear"):
        raise InputError(
            f"trend={trend!r} is unknown; pass 'none' or 'linear'",
            name=trend,
            known=("none", "linear"),
        )
    steps = np.diff(_series(values, window))
    rng = numpy_rng(seed, "fall null", trend)
    falls = np.empty(draws)
    for i in range(draws):
        if trend == "linear":
            null_steps = rng.permutation(steps)
        else:
            null_steps = steps * rng.choice([-1.0, 1.0], size=len(steps))
        # the fall of a series does not depend on where it starts
        path = np.concatenate([[0.0], null_steps.cumsum()])
        falls[i], _ = steepest_fall(path, window)
    what = "steps in random order" if trend == "linear" else "steps with random signs"
    label = f"steepest fall within {window} of {len(steps)} steps; {what}"
    return NullDistribution(falls, label, seed)


def _series(values: ArrayLike, window: int) -> np.ndarray:
    series = as_sample(values, "values", at_least=3)
    if not 1 <= window < len(series):
        raise InputError(
            f"window={window!r} must be at least 1 and below the {len(series)} values of the series"
        )
    return series
