"""Area under the ROC curve with an interval over the units that were sampled."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emlens.foundation.estimate import Estimate
from emlens.stats.bootstrap import cluster_bootstrap

Array = NDArray[np.float64]


def area_under_curve(
    scores: NDArray[Any], y: NDArray[Any], units: Sequence[str], resamples: int, seed: int
) -> Estimate:
    """P(a positive row scores above a negative one), ties counted half; whole units resampled."""

    def area(rows: Array) -> float:
        value, label = rows[:, 0], rows[:, 1]
        up, down = np.sort(value[label > 0]), np.sort(value[label < 0])
        if not len(up) or not len(down):
            return 0.5  # a resample without one class says nothing
        below = np.searchsorted(down, up, "left") + np.searchsorted(down, up, "right")
        return float(below.sum()) / (2 * len(up) * len(down))

    return cluster_bootstrap(
        np.c_[scores, y], units, area, resamples=resamples, method="percentile", seed=seed
    )
