"""What runs share is part of the uncertainty of their mean, and what they do not share shrinks."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from benchmarks.seeds_beside_nulls import cell
from emlens.foundation.errors import InputError
from emlens.stats import NullDistribution, t_interval
from emlens.stats.shared_noise import mean_beyond_nulls, mean_with_shared_noise, spread_of_one_draw

VALUES = np.array([0.4, 0.5, 0.7])


def test_without_shared_noise_it_is_the_t_interval() -> None:
    ours, t = mean_with_shared_noise(VALUES, 0.0), t_interval(VALUES)
    assert (ours.value, ours.low, ours.high) == pytest.approx((t.value, t.low, t.high))


def test_without_spread_it_is_the_shared_noise() -> None:
    same = mean_with_shared_noise([0.5, 0.5], 0.1)
    assert (same.low, same.high) == pytest.approx((0.5 - 0.196, 0.5 + 0.196), abs=1e-4)
    both = mean_with_shared_noise(VALUES, 0.1)
    alone = mean_with_shared_noise(VALUES, 0.0)
    assert both.high - both.low > 0.392
    # the shared part is known, so there are more degrees of freedom than n - 1
    assert both.high - both.low < np.hypot(0.392, alone.high - alone.low)


def test_a_null_of_few_draws_is_that_of_students_prediction_interval() -> None:
    draws = np.random.default_rng(0).normal(size=19)
    null = NullDistribution(draws, "null")
    half = scipy_stats.t.ppf(0.975, 18) * null.sd * np.sqrt(1 + 1 / 19)
    found = mean_beyond_nulls([1.0, 1.0], [null, null])
    assert found.value == pytest.approx(1 - null.mean)
    assert found.high - found.value == pytest.approx(half, rel=1e-3)
    moments = NullDistribution(exact_mean=0.0, exact_sd=0.5, label="moments")
    assert mean_beyond_nulls([1.0, 1.0], [moments] * 2).low == pytest.approx(0.02, abs=1e-3)
    # a null that reaches further up than its standard deviation says
    assert spread_of_one_draw(1.0, 3.0, 0.975, 999) > 1.5


def test_what_cannot_be_used_is_refused() -> None:
    null = NullDistribution(np.arange(9.0), "null")
    with pytest.raises(InputError, match="nulls holds 1 for 3 values; pass one for each"):
        mean_beyond_nulls(VALUES, [null])
    with pytest.raises(InputError, match="the null 'one' has one draw; make it with 19 or more"):
        mean_beyond_nulls(VALUES, [NullDistribution(np.ones(1), "one")] * 3)
    with pytest.raises(InputError, match="noise=-1.0 must be 0 or more, and finite"):
        mean_with_shared_noise(VALUES, -1.0)


def test_seeds_that_share_prompts_are_not_called_beyond_an_exact_null() -> None:
    fresh = cell("fresh prompts", 199, "normal", 0.05, 3, runs=500, seed=1)
    assert fresh["by_t_interval"] > 0.3  # what it was
    assert fresh["shown"] < 0.05 and fresh["power"] > 0.9
    same = cell("same prompts", 19, "normal", 0.2, 3, runs=200, seed=1)
    assert same["shown"] < 0.05
