import numpy as np
import pytest

from emlens.foundation.errors import InputError
from emlens.stats.trends import fall_null, steepest_fall


def test_the_steepest_fall_is_that_of_a_loop():
    series = np.random.default_rng(0).normal(size=40).cumsum()
    best = max((series[i] - series[i + 7], -i) for i in range(33))
    assert steepest_fall(series, 7) == (pytest.approx(best[0]), -best[1])


def test_a_step_is_told_from_a_trend_and_a_trend_is_not_told_from_itself():
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.01, 60)
    step = (
        np.where(
            np.arange(60) < 20,
            1.0,
            np.where(np.arange(60) < 26, 1.0 - (np.arange(60) - 20) / 10, 0.4),
        )
        + noise
    )
    line = np.linspace(1.0, 0.4, 60) + noise
    for trend, series, low, high in (
        ("linear", step, 0.0, 0.01),
        ("none", step, 0.0, 0.05),
        ("linear", line, 0.05, 1.0),
    ):
        p = fall_null(series, 15, trend, draws=499, seed=2).p_value(steepest_fall(series, 15)[0])
        assert low < p <= high, (trend, p)


def test_the_linear_null_keeps_its_level():
    """Independent steps around a trend: p below .05 in about a twentieth of series."""
    rng = np.random.default_rng(3)
    hits = 0
    for i in range(200):
        series = np.concatenate([[0.0], (rng.normal(-0.1, 0.2, 32)).cumsum()])
        hits += (
            fall_null(series, 8, "linear", draws=99, seed=i).p_value(steepest_fall(series, 8)[0])
            <= 0.05
        )
    assert 2 <= hits <= 20


def test_what_makes_no_sense_is_refused(unchecked):
    with pytest.raises(
        InputError, match="window=3 must be at least 1 and below the 3 values of the series"
    ):
        steepest_fall([1.0, 2.0, 3.0], 3)
    with pytest.raises(InputError, match="trend='up' is unknown; pass 'none' or 'linear'"):
        fall_null([1.0, 2.0, 3.0], 1, "up")
