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
    """P(a positive row scores above a negative one), ties counted half; range [0, 1].

    The interval is the percentile bootstrap's, with whole units resampled.

    Args:
        scores: (row,), larger means more likely positive.
        y: (row,), above 0 for positive rows, below 0 for negative ones.
        units: one label per row; rows of one unit are resampled together.
    """
    rows = np.column_stack([scores, y])
    return cluster_bootstrap(
        rows, units, _area, resamples=resamples, method="percentile", seed=seed
    )


def _area(rows: Array) -> float:
    """Mann–Whitney's U over the number of pairs, from (row, (score, label)); no pair loop."""
    scores, labels = rows[:, 0], rows[:, 1]
    positive = np.sort(scores[labels > 0])
    negative = np.sort(scores[labels < 0])
    if not len(positive) or not len(negative):
        return 0.5  # a resample without one class says nothing
    # strictly below plus not above: a tie counts once in the sum of both, hence half
    below = np.searchsorted(negative, positive, "left")
    not_above = np.searchsorted(negative, positive, "right")
    return float((below + not_above).sum()) / (2 * len(positive) * len(negative))
