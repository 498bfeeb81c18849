"""A rate over a fixed set of answers of which few were labelled, evenly over the questions.

What is estimated is the share that would be found if every one of these answers were labelled. With
n_q of N_q answers of question q labelled at random (Cochran 1977, chapter 5A; the difference
estimator of Särndal, Swensson & Wretman 1992, chapter 6), and a prediction f of every answer,

    rate = Σ_q N_q/N · [ λ·mean(f over all of q) + mean(y − λ·f over the labelled of q) ].

It is unbiased for every λ and f that the label itself had no part in. What differs between
questions costs nothing, because every question is there; and the part of the answers that was
labelled is certain, which is the factor 1 − n/N of the variance. λ is the slope of labels on
predictions within questions, cut to [0, 1], so that useless predictions cost nothing.

The interval is Wilson's of as many labels as would alone be as certain. The variance within
questions is pooled, and four labels that say nothing (two of 1 and two of 0) are added to it: rare
labels that did not come up are no proof that there are none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.stats.intervals import wilson_bounds
from emlens.stats.samples import labels_in_order

ADDED = 4
"""Labels that are added to the variance: half of them 1, half 0."""


@dataclass(frozen=True)
class StratifiedRate:
    """A rate over a fixed set of answers.

    Args:
        estimate: the rate with its interval; range [0, 1].
        power: λ, how far the predictions are used: 0 not at all, 1 fully.
        variance: of labels minus predictions within questions, pooled.
        answers: how many there are, labelled or not.
    """

    estimate: Estimate
    power: float
    variance: float
    answers: int

    def labels_for_width(self, width: float, *, level: float = 0.95) -> int:
        """How many labels, spread evenly, would give an interval of this width.

        Returns:
            A number in 2 to `answers`.

        Raises:
            InputError: a width outside (0, 1).
        """
        if not 0 < width < 1:
            raise InputError(f"width={width} must lie in (0, 1); .1 is ten points of a hundred")
        quantile = float(scipy_stats.norm.ppf((1 + level) / 2))
        rate = self.estimate.value
        middle = (rate * self.estimate.n + ADDED / 2) / (self.estimate.n + ADDED)
        for labels in range(2, self.answers):
            share = self.variance * (1 / labels - 1 / self.answers)
            low, high = wilson_bounds(rate, middle * (1 - middle) / share, quantile)
            if high - low <= width:
                return labels
        return self.answers


def stratified_rate(
    labels: ArrayLike,
    predictions: ArrayLike,
    strata: Sequence[object],
    unlabelled: ArrayLike,
    unlabelled_strata: Sequence[object],
    *,
    level: float = 0.95,
) -> StratifiedRate:
    """The rate over labelled and unlabelled answers together.

    Args:
        labels: 0 or 1 of the labelled answers, drawn at random within each stratum.
        predictions, unlabelled: f of the labelled and of the others; any range.
        strata, unlabelled_strata: the question of each.

    Raises:
        InputError: lengths that differ, labels other than 0 and 1, values that are not finite, a
            stratum without a label, or none with two.
    """
    y, f, g = (np.asarray(v, dtype=np.float64).ravel() for v in (labels, predictions, unlabelled))
    labelled_strata = labels_in_order(strata, "strata")
    other_strata = labels_in_order(unlabelled_strata, "unlabelled_strata")
    _require(y, f, g, labelled_strata, other_strata)
    codes, names = pd.factorize(
        np.array([*map(str, labelled_strata), *map(str, other_strata)], dtype=object)
    )
    labelled, unread = codes[: len(y)], codes[len(y) :]
    n_labelled = np.bincount(labelled, minlength=len(names))
    n_all = n_labelled + np.bincount(unread, minlength=len(names))
    if not n_labelled.all():
        missing = names[int(np.argmin(n_labelled))]
        raise InputError(f"question {missing!r} has no label; label some answers of each question")
    freedom = len(y) - len(names)
    if freedom < 1:
        raise InputError("no question has two labels; label at least two answers of some question")

    y_within, f_within = (_within(v, labelled, n_labelled) for v in (y, f))
    power = _slope(y_within, f_within)
    predicted = np.bincount(labelled, f, len(names)) + np.bincount(unread, g, len(names))
    corrections = np.bincount(labelled, y - power * f, len(names)) / n_labelled
    shares = n_all / len(codes)
    rate = float(shares @ (power * predicted / n_all + corrections))
    rate = min(1.0, max(0.0, rate))

    residual = y_within - power * f_within
    variance = (float(residual @ residual) + ADDED * 0.25) / (freedom + ADDED)
    # with even labelling this is (1 − n/N) / n
    factor = float((shares**2 * (1 - n_labelled / n_all) / n_labelled).sum())
    low, high = rate, rate
    if factor > 0:
        middle = (float(y.sum()) + ADDED / 2) / (len(y) + ADDED)
        effective = middle * (1 - middle) / (variance * factor)
        quantile = float(scipy_stats.t.ppf((1 + level) / 2, freedom))
        low, high = wilson_bounds(rate, effective, quantile)
    method = (
        f"stratified by {len(names)} questions, λ = {power:.2f}, {100 * level:g} % Wilson interval"
        f" for these {len(codes)} answers, {len(y)} of them labelled"
    )
    estimate = Estimate(rate, low, high, len(y), method)
    return StratifiedRate(estimate, power, variance, len(codes))


def _within(values: np.ndarray, codes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Values minus the mean of their stratum."""
    means = np.bincount(codes, values, len(counts)) / counts
    return np.asarray(values - means[codes])


def _slope(y: np.ndarray, f: np.ndarray) -> float:
    """λ of the smallest variance, cut to [0, 1]; 0 where predictions do not differ."""
    spread = float(f @ f)
    return min(1.0, max(0.0, float(y @ f) / spread)) if spread > 0 else 0.0


def _require(
    y: np.ndarray, f: np.ndarray, g: np.ndarray, strata: Sequence[object], others: Sequence[object]
) -> None:
    if not len(y) == len(f) == len(strata) or len(g) != len(others):
        raise InputError(
            f"labels, predictions and strata have {len(y)}, {len(f)} and {len(strata)} values,"
            f" those of the unlabelled {len(g)} and {len(others)}; pass one of each for each answer"
        )
    if not np.isin(y, (0.0, 1.0)).all():
        raise InputError("labels must be 0 or 1; leave out what is not scored")
    if not (np.isfinite(f).all() and np.isfinite(g).all()):
        raise InputError("predictions must be finite")
