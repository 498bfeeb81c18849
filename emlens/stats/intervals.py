"""Closed-form intervals of a mean, a proportion, and the scores of repeated cross-validation.

Student's t, Wilson's score, Clopper & Pearson's exact one, and Nadeau & Bengio's. Each is an
`Estimate` whose `method` says how the interval was made. NaN and too few values are errors.
Intervals that resample are in `bootstrap`.
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.stats.samples import as_sample, require_count, require_level


def _percent(level: float) -> str:
    return f"{100 * level:g} %"


def wilson_interval(successes: int, n: int, *, level: float = 0.95) -> Estimate:
    """A proportion of independent trials with Wilson's score interval; range [0, 1].

    Raises:
        InputError: no trial, or successes outside 0 to n.
    """
    _require_successes(successes, n)
    test = scipy_stats.binomtest(int(successes), n)
    interval = test.proportion_ci(require_level(level), method="wilson")
    method = f"proportion, {_percent(level)} Wilson"
    return Estimate(successes / n, float(interval.low), float(interval.high), n, method)


def wilson_bounds(rate: float, n: float, quantile: float) -> tuple[float, float]:
    """Ends of Wilson's interval of a rate of n trials, which need not be a whole number.

    Args:
        quantile: of the standard normal, or of Student's t where the variance is estimated.
    """
    squared = quantile**2 / n
    middle = (rate + squared / 2) / (1 + squared)
    half = math.sqrt(squared * rate * (1 - rate) + squared**2 / 4) / (1 + squared)
    # the ends of a rate of 0 or 1 are exact, but for rounding
    return max(0.0, middle - half), min(1.0, middle + half)


def clopper_pearson_interval(successes: int, n: int, *, level: float = 0.95) -> Estimate:
    """A proportion of independent trials with Clopper and Pearson's exact interval.

    Range [0, 1]; it never covers less than its level.

    Raises:
        InputError: no trial, or successes outside 0 to n.
    """
    _require_successes(successes, n)
    test = scipy_stats.binomtest(int(successes), n)
    interval = test.proportion_ci(require_level(level), method="exact")
    method = f"proportion, {_percent(level)} Clopper-Pearson"
    return Estimate(successes / n, float(interval.low), float(interval.high), n, method)


def _require_successes(successes: int, n: int) -> None:
    require_count(n, "n")
    if isinstance(successes, bool) or successes != int(successes) or not 0 <= successes <= n:
        raise InputError(f"successes={successes!r} must be an integer from 0 to n={n}")


def t_interval(values: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Mean of independent units with Student's t interval.

    Raises:
        InputError: fewer than 2 values, or values that are not finite.
    """
    sample = as_sample(values, "values", at_least=2)
    return _t_estimate(sample, 1 / len(sample), level, "mean, {} t interval")


def nadeau_bengio_interval(
    scores: ArrayLike, test_to_train: float, *, level: float = 0.95
) -> Estimate:
    """Mean of the scores of repeated cross-validation with the corrected resampled t interval.

    The variance of the mean of J scores is s²·(1/J + n_test/n_train), which allows for the overlap
    of training sets (Nadeau & Bengio 2003); `n` is J. With `test_to_train` = 0 it is the ordinary t
    interval.

    Args:
        scores: one score per fold and repetition.
        test_to_train: n_test / n_train; 1/(K−1) for K folds.

    Raises:
        InputError: fewer than 2 scores, scores that are not finite, a negative ratio.
    """
    sample = as_sample(scores, "scores", at_least=2)
    if not (np.isfinite(test_to_train) and test_to_train >= 0):
        raise InputError(
            f"test_to_train={test_to_train!r} must be 0 or more;"
            " pass n_test / n_train, 1/(K-1) for K folds"
        )
    # Training sets overlap, so scores are correlated and s²/J is too small. Nadeau & Bengio
    # assume the correlation n_test / (n_test + n_train), which adds n_test / n_train to 1/J.
    factor = 1 / len(sample) + test_to_train
    method = "mean over folds, {} Nadeau-Bengio corrected t interval"
    return _t_estimate(sample, factor, level, method)


def _t_estimate(sample: np.ndarray, factor: float, level: float, method: str) -> Estimate:
    """Mean with Student's t interval, where the variance of the mean is s² · factor."""
    half = float(
        scipy_stats.t.ppf((1 + require_level(level)) / 2, len(sample) - 1)
        * np.sqrt(sample.var(ddof=1) * factor)
    )
    mean = float(sample.mean())
    return Estimate(mean, mean - half, mean + half, len(sample), method.format(_percent(level)))
