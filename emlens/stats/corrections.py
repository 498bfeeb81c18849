"""Corrections for having looked in many places. statsmodels does the arithmetic and is imported at the first call."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from emlens.foundation.errors import InputError

Correction = Literal["bonferroni", "holm", "bh"]

_STATSMODELS = {"bonferroni": "bonferroni", "holm": "holm", "bh": "fdr_bh"}


def adjust_p_values(p: ArrayLike, method: Correction = "holm") -> np.ndarray:
    """Adjusted p-values in the given order and shape; never smaller than the raw ones, at most 1.

    `bonferroni` and `holm` bound the chance of any false positive (holm is never worse); `bh` bounds the expected share
    of false ones among those called, for independent or positively dependent tests (Benjamini & Hochberg 1995).

    Raises:
        InputError: none given, a value outside [0, 1] or NaN, or an unknown method.
    """
    raw = np.asarray(p, dtype=np.float64)
    if method not in _STATSMODELS:
        raise InputError(f"method={method!r} is unknown; pass one of {', '.join(_STATSMODELS)}")
    if raw.size == 0:
        raise InputError("p is empty; pass at least one p-value")
    bad = ~((raw >= 0) & (raw <= 1))
    if bad.any():
        raise InputError(f"p holds {raw[bad].flat[0]!r}, which is not a p-value; pass numbers in [0, 1] without NaN")
    from statsmodels.stats.multitest import multipletests

    adjusted = multipletests(raw.ravel(), method=_STATSMODELS[method])[1]
    return np.asarray(adjusted, dtype=np.float64).reshape(raw.shape)
