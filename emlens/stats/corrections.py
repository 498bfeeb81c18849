"""Corrections for having looked in many places.

statsmodels has these too, but each call there collects garbage over the whole process (.1 to .3 s measured), so the two
one-line definitions are here and Benjamini–Hochberg is scipy's; the tests compare all three with statsmodels.
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from emlens.foundation.errors import InputError

Correction = Literal["bonferroni", "holm", "bh"]


def adjust_p_values(p: ArrayLike, method: Correction = "holm") -> np.ndarray:
    """Adjusted p-values in the given order and shape; never smaller than the raw ones, at most 1.

    `bonferroni` and `holm` bound the chance of any false positive (holm is never worse); `bh` bounds the expected share
    of false ones among those called, for independent or positively dependent tests (Benjamini & Hochberg 1995).

    Raises:
        InputError: none given, a value outside [0, 1] or NaN, or an unknown method.
    """
    raw = np.asarray(p, dtype=np.float64)
    if method not in get_args(Correction):
        raise InputError(f"method={method!r} is unknown; pass one of {', '.join(get_args(Correction))}")
    if raw.size == 0:
        raise InputError("p is empty; pass at least one p-value")
    bad = ~((raw >= 0) & (raw <= 1))
    if bad.any():
        raise InputError(
            f"p holds {float(raw[bad].flat[0])}, which is not a p-value; pass numbers in [0, 1] without NaN"
        )
    flat = raw.ravel()
    if method == "bonferroni":
        adjusted = flat * flat.size
    elif method == "holm":
        order = np.argsort(flat, kind="stable")
        adjusted = np.empty_like(flat)
        adjusted[order] = np.maximum.accumulate(flat[order] * np.arange(flat.size, 0, -1))
    else:
        adjusted = scipy_stats.false_discovery_control(flat, method="bh")
    return np.minimum(adjusted, 1.0).reshape(raw.shape)
