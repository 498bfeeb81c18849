import itertools

import numpy as np
import pytest

from emlens.foundation.errors import InputError
from emlens.stats import change_point, order_of_events
from emlens.stats.change_points import logistic_midpoint


def noise(rng: np.random.Generator, n: int, correlation: float, sd: float) -> np.ndarray:
    result = rng.normal(size=n)
    for t in range(1, n):
        result[t] = correlation * result[t - 1] + np.sqrt(1 - correlation**2) * result[t]
    return sd * result


def falling(n: int, middle: float = 0.43, width: float = 0.081) -> np.ndarray:
    return 0.95 - 0.45 / (1 + np.exp(-(np.linspace(0, 1, n) - middle) / width))


def test_a_planted_break_is_found_at_its_place_in_both_trends_and_kinds():
    rng = np.random.default_rng(0)
    times = 10.0 + 2.0 * np.arange(50)
    kink = 0.01 * np.maximum(times - 60.0, 0) + noise(rng, 50, 0.3, 0.02)
    change = change_point(kink, times, trend="linear", draws=99)
    assert (
        change.p <= 0.02
        and abs(change.location.value - 60) <= 6
        and change.location.low <= 60 <= change.location.high
    )
    # slope a unit of time, not a share of the run
    assert change.size == pytest.approx(0.01, abs=0.002)
    jump = falling(50) + 0.3 * (np.arange(50) >= 35) + noise(rng, 50, 0.3, 0.01)
    change = change_point(jump, kind="level", draws=99)
    assert (
        change.p <= 0.02
        and abs(change.location.value - 35) <= 2
        and change.size == pytest.approx(0.3, abs=0.05)
    )


def test_the_statistic_of_a_linear_trend_is_the_f_of_a_loop():
    rng = np.random.default_rng(1)
    y, x = rng.normal(size=16).cumsum(), np.arange(16.0)

    def rest(*columns: np.ndarray) -> float:
        design = np.stack([np.ones(16), *columns], axis=1)
        return float(((y - design @ np.linalg.lstsq(design, y, rcond=None)[0]) ** 2).sum())

    least = min((rest(x, np.maximum(x - at, 0)), at) for at in x[2:14])
    change = change_point(y, trend="linear", draws=20)
    assert change.location.value == least[1]
    assert change.statistic == pytest.approx((rest(x) - least[0]) / (least[0] / 12))


def test_a_smooth_logistic_series_is_broken_for_a_line_and_not_for_a_logistic_trend():
    rng = np.random.default_rng(2)
    y = falling(40) + noise(rng, 40, 0.4, 0.01)
    change = change_point(y, trend="linear", kind="transition", draws=99)
    # the line beside the step takes a part
    assert (
        change.p <= 0.02
        and abs(change.location.value - 0.43 * 39) < 2
        and -0.8 < change.size < -0.4
    )
    assert change_point(y, trend="logistic", draws=99).p > 0.05
    line = np.linspace(0.95, 0.5, 40) + noise(rng, 40, 0.4, 0.01)
    assert change_point(line, trend="linear", kind="transition", draws=99).p > 0.05


# the miniature is the test above; measured at length by `python -m benchmarks rank1_dynamics`
@pytest.mark.slow
def test_smooth_logistic_series_keep_their_level():
    rng = np.random.default_rng(3)
    p = [
        change_point(falling(60) + noise(rng, 60, 0.5, 0.015), draws=59, seed=i).p
        for i in range(80)
    ]
    assert np.mean(np.array(p) <= 0.05) <= 0.125  # 80 draws of a rate of .05 exceed it in 1 of 200


def test_on_the_axis_of_the_learning_rate_warm_up_is_no_change():
    rates = np.concatenate([np.linspace(0.1, 1, 20), np.ones(20)])
    times = rates.cumsum()
    y = 0.05 * times + noise(np.random.default_rng(4), 40, 0.0, 0.01)
    assert change_point(y, times, trend="linear", draws=99).p > 0.05
    assert change_point(y, trend="linear", draws=99).p <= 0.02  # by step, the warm-up is a bend


def test_noise_is_as_dependent_as_it_was_planted():
    rng = np.random.default_rng(5)
    straight = [
        change_point(noise(rng, 60, rho, 1.0), trend="linear", draws=20, seed=i).correlation
        for rho in (0.0, 0.8)
        for i in range(6)
    ]
    assert np.mean(straight[:6]) < 0.3 and 0.6 < np.mean(straight[6:]) < 0.97


def test_the_midpoint_is_where_half_of_the_change_is_done():
    y = falling(50, middle=0.6) + noise(np.random.default_rng(6), 50, 0.3, 0.01)
    estimate = logistic_midpoint(y, draws=60)
    assert (
        estimate.low <= 0.6 * 49 <= estimate.high
        and abs(estimate.value - 0.6 * 49) < 1.5
        and estimate.high - estimate.low < 8
    )
    assert not logistic_midpoint(np.ones(20), draws=20).defined


def test_what_does_not_move_has_no_change_point():
    change = change_point(np.full(20, 3.0))
    assert not change.location.defined and change.p == 1.0


def test_order_of_events_is_exact_over_sign_patterns():
    first, second = [1.0, 2.0, 4.0, 3.0, 2.0, 5.0], [3.0, 5.0, 4.5, 4.0, 6.0, 4.0]
    order = order_of_events(first, second)
    lags = np.subtract(second, first)
    beyond = sum(
        abs(np.dot(signs, lags)) >= abs(lags.sum()) - 1e-9
        for signs in itertools.product((1, -1), repeat=6)
    )
    assert order.p == beyond / 64 and order.first_leads == 5 and order.ties == 0
    assert (
        order.lag.value == pytest.approx(lags.mean())
        and order.lag.low < order.lag.value < order.lag.high
    )
    turned = order_of_events(second, first)
    assert turned.p == order.p and turned.lag.value == pytest.approx(-order.lag.value)
    same = order_of_events([1.0, 2.0], [3.0, 4.0])
    assert (same.lag.low, same.lag.high) == (2.0, 2.0) and same.p == 0.5
    many = order_of_events(np.zeros(20), np.linspace(0.5, 1.5, 20), draws=999)
    assert many.p == 0.001


def test_equal_seeds_give_equal_results():
    y = falling(20) + noise(np.random.default_rng(7), 20, 0.0, 0.01)
    a, b = (change_point(y, trend="linear", draws=20, seed=3) for _ in range(2))
    assert a.p == b.p and a.location == b.location


def test_what_makes_no_sense_is_refused(unchecked):
    y = list(range(12))
    for options, message in (
        ({"values": y[:5]}, "values has 5 values; pass at least 12"),
        (
            {"values": y, "times": [0, 1, 1, *range(2, 11)]},
            "times do not ascend strictly: 1 follows 1",
        ),
        (
            {"values": y, "trend": "cubic"},
            "trend='cubic' is unknown; pass one of 'linear', 'logistic'",
        ),
        (
            {"values": y, "kind": "jerk"},
            "kind='jerk' is unknown; pass one of 'slope', 'level', 'transition'",
        ),
        (
            {"values": y, "noise": "white"},
            "noise='white' is unknown; pass one of 'autoregressive', 'stationary'",
        ),
        ({"values": y, "margin": 0.5}, "margin=0.5 must lie strictly between 0 and .5"),
    ):
        with pytest.raises(InputError, match=message):
            change_point(**options)
