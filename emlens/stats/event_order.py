"""Which of two events of the same training runs comes first?"""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from emlens.foundation.estimate import Estimate
from emlens.foundation.seeds import numpy_rng
from emlens.stats.intervals import t_interval
from emlens.stats.nulls import TIE, NullDistribution
from emlens.stats.samples import as_paired, require_count

_ENUMERATED = 14
"""Runs up to which all sign patterns are enumerated: 2**14 of them."""


@dataclass(frozen=True)
class EventOrder:
    """Which of two events comes first, over runs.

    Args:
        lag: mean of second − first, with a t interval over runs; above 0: the first comes first.
        p: two-sided, by flipping the signs of the lags: exact up to 14 runs.
        first_leads, ties: runs in which the first came earlier, and in which both came at once.
    """

    lag: Estimate
    p: float
    first_leads: int
    ties: int


def order_of_events(
    first: ArrayLike, second: ArrayLike, *, draws: int = 9999, level: float = 0.95, seed: int = 0
) -> EventOrder:
    """Do two events of the same runs differ in when they happen?

    The null is that the lag is as likely to be −x as x; n runs can show no p below 2/2ⁿ.

    Args:
        first, second: one time per run, in one order and one unit.
        draws: sign patterns beyond 14 runs; up to 14 all patterns are enumerated.

    Raises:
        InputError: unequal lengths, fewer than 2 runs, times that are not finite.
    """
    a, b = as_paired(first, second, "first", "second", at_least=2)
    lags = b - a
    n = len(lags)
    if np.ptp(lags) == 0:
        value = float(lags[0])
        why = "all runs have this lag, so the interval says nothing"
        lag = Estimate(value, value, value, n, why)
    else:
        lag = t_interval(lags, level=level)
    if n <= _ENUMERATED:
        p = _enumerated_p(lags)
    else:
        size = (require_count(draws, "draws"), n)
        signs = numpy_rng(seed, "order_of_events").choice([-1.0, 1.0], size=size)
        null = NullDistribution(np.abs(signs @ lags), "signs of lags flipped", seed)
        p = null.p_value(abs(float(lags.sum())))
    return EventOrder(lag, p, int((lags > 0).sum()), int((lags == 0).sum()))


def _enumerated_p(lags: np.ndarray) -> float:
    """Share of all sign patterns whose |sum| is at least the observed one."""
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(lags))))
    sums = np.abs(signs @ lags)
    # the slack counts a pattern as a tie where only the order of summation differs
    return float(np.mean(sums >= abs(lags.sum()) * (1 - TIE)))
