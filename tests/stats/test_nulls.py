import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from emlens import EmlensError
from emlens.stats import NullDistribution


def test_p_values_have_the_added_one():
    null = NullDistribution(np.arange(1.0, 100.0), "hand-made")
    assert null.p_value(1000.0) == 1 / 100
    assert null.p_value(-1000.0) == 1
    assert null.p_value(99.0) == 2 / 100  # a tie counts against the observation
    assert null.p_value(1.0, side="less") == 2 / 100
    assert null.p_value(1000.0, side="two-sided") == 2 / 100
    assert null.p_value(50.0, side="two-sided") == 1


def test_agrees_with_scipy_permutation_p_values():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=499)
    for x in (-2.0, 0.1, 1.7):
        expected = (1 + np.sum(draws >= x)) / 500
        assert NullDistribution(draws).p_value(x) == pytest.approx(expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(-5, 5), st.floats(0.1, 9), st.floats(-9, 9))
def test_sides_mirror_and_affine_maps_keep_p(seed, x, scale, shift):
    draws = np.random.default_rng(seed).normal(size=50)
    null = NullDistribution(draws)
    assert null.p_value(x) == NullDistribution(-draws).p_value(-x, side="less")
    assert null.p_value(x) + null.p_value(x, side="less") >= 1
    assert 1 / 51 <= null.p_value(x, side="two-sided") <= 1
    if np.abs(draws - x).min() > 1e-9:
        assert NullDistribution(scale * draws + shift).p_value(scale * x + shift) == null.p_value(x)


def test_p_is_uniform_under_the_null_and_small_under_an_effect():
    rng = np.random.default_rng(1)
    found = [NullDistribution(rng.normal(size=99)).p_value(float(rng.normal())) for _ in range(2000)]
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.02)
    assert stats.kstest(found, "uniform").pvalue > 1e-4
    shifted = [NullDistribution(rng.normal(size=99)).p_value(float(rng.normal(3))) for _ in range(200)]
    assert np.mean(np.array(shifted) <= 0.05) > 0.7


def test_moments_quantiles_and_order():
    draws = np.random.default_rng(0).normal(size=1001)
    null = NullDistribution(draws, "normal", seed=3)
    assert (np.diff(null.draws) >= 0).all() and null.n_draws == 1001
    assert (null.mean, null.sd) == (pytest.approx(draws.mean()), pytest.approx(draws.std(ddof=1)))
    assert null.quantile(0.5) == np.median(draws)
    with pytest.raises(ValueError, match="read-only"):
        null.draws[0] = 1
    record = null.as_dict()
    assert (record["label"], record["seed"], record["n_draws"]) == ("normal", 3, 1001)
    assert record["median"] == np.median(draws) and record["q95"] == null.quantile(0.95)
    assert math.isnan(NullDistribution(np.array([1.0])).sd)


def test_exact_moments_win_and_may_stand_alone():
    assert NullDistribution(np.array([1.0, 2.0]), exact_mean=9.0, exact_sd=2.0).mean == 9
    exact = NullDistribution(label="theory", exact_mean=0.5, exact_sd=0.1)
    assert (exact.mean, exact.sd, exact.n_draws) == (0.5, 0.1, 0)
    assert "median" not in exact.as_dict()
    for call, what in ((lambda: exact.p_value(1.0), "a p-value"), (lambda: exact.quantile(0.5), "a quantile")):
        with pytest.raises(EmlensError, match=f"the null 'theory' has moments and no draws, which {what} needs"):
            call()


def test_draws_needed():
    assert NullDistribution.draws_needed(0.001) == 10_000
    assert NullDistribution.draws_needed(0.05) == 200
    assert NullDistribution(np.ones(3)).draws_needed(1.0) == 10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NullDistribution(np.array([1.0, math.nan])), "draws holds 1 values that are NaN or infinite, of 2"),
        (lambda: NullDistribution(), "a null distribution came with no draws; pass draws, or both"),
        (lambda: NullDistribution(np.array([]), exact_mean=1.0), "a null distribution came with no draws"),
        (lambda: NullDistribution(np.ones((2, 2))), r"draws has shape \(2, 2\); pass one number a unit"),
        (lambda: NullDistribution(np.ones(3)).p_value(math.nan), "x=nan has no p-value; pass a finite number"),
        (lambda: NullDistribution(np.ones(3)).p_value(1.0, side="both"), "side='both' is unknown; pass 'greater'"),
        (lambda: NullDistribution(np.ones(3)).quantile(95.0), r"q=95.0 must lie in \[0, 1\]"),
        (lambda: NullDistribution.draws_needed(0.0), r"p=0.0 must lie in \(0, 1\]"),
    ],
)
def test_refusals(unchecked, call, message):
    with pytest.raises(EmlensError, match=message):
        call()
