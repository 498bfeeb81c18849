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
    values = [
        NullDistribution(rng.normal(size=99)).p_value(float(rng.normal())) for _ in range(2000)
    ]
    assert np.mean(np.array(values) <= 0.05) == pytest.approx(0.05, abs=0.02)
    assert stats.kstest(values, "uniform").pvalue > 1e-4
    shifted = [
        NullDistribution(rng.normal(size=99)).p_value(float(rng.normal(3))) for _ in range(200)
    ]
    assert np.mean(np.array(shifted) <= 0.05) > 0.7


def test_moments_quantiles_and_order():
    draws = np.random.default_rng(0).normal(size=1001)
    null = NullDistribution(draws, "normal", seed=3)
    assert (np.diff(null.draws) >= 0).all() and null.n_draws == 1001
    assert (null.mean, null.sd) == (pytest.approx(draws.mean()), pytest.approx(draws.std(ddof=1)))
    assert null.quantile(0.5) == np.median(draws)
    with pytest.raises(ValueError, match="read-only"):
        null.draws[0] = 1
    record = null.to_record()
    assert (record["label"], record["seed"], record["n_draws"]) == ("normal", 3, 1001)
    assert record["median"] == np.median(draws) and record["q95"] == null.quantile(0.95)
    assert math.isnan(NullDistribution(np.array([1.0])).sd)


def test_exact_moments_win_and_may_stand_alone():
    assert NullDistribution(np.array([1.0, 2.0]), exact_mean=9.0, exact_sd=2.0).mean == 9
    exact = NullDistribution(label="theory", exact_mean=0.5, exact_sd=0.1)
    assert (exact.mean, exact.sd, exact.n_draws) == (0.5, 0.1, 0)
    assert "median" not in exact.to_record()
    for call, what in (
        (lambda: exact.p_value(1.0), "a p-value"),
        (lambda: exact.quantile(0.5), "a quantile"),
    ):
        with pytest.raises(
            EmlensError, match=f"the null 'theory' has moments and no draws, which {what} needs"
        ):
            call()


def test_draws_needed():
    assert NullDistribution.draws_needed(0.001) == 10_000
    assert NullDistribution.draws_needed(0.05) == 200
    assert NullDistribution(np.ones(3)).draws_needed(1.0) == 10
    assert NullDistribution.draws_needed(0.05, side="two-sided") == 400
    assert NullDistribution.draws_needed(0.05, tests=2048) == 409_600


def test_many_cells_have_the_p_values_of_each():
    null = NullDistribution(np.random.default_rng(0).normal(size=99))
    cells = np.random.default_rng(1).normal(size=(3, 4))
    for side in ("greater", "less", "two-sided"):
        p = null.p_values(cells, side)
        assert p.shape == (3, 4)
        assert p.tolist() == [[null.p_value(float(x), side) for x in line] for line in cells]


def test_numbers_that_summation_order_tore_apart_are_ties():
    null = NullDistribution(np.array([0.1 + 0.2, 0.2, 0.1]))
    assert null.draws[-1] > 0.3
    assert null.p_value(0.3) == null.p_value(0.3, "greater") == 2 / 4
    assert NullDistribution(np.array([0.3, 0.2])).p_value(0.1 + 0.2) == 2 / 3
    assert NullDistribution(np.array([0.3, 0.2])).p_value(0.3 + 1e-9) == 1 / 3


def test_the_interval_of_a_p_covers_the_p_of_infinitely_many_draws():
    rng = np.random.default_rng(2)
    truth = stats.norm.sf(1.5)
    values = [NullDistribution(rng.normal(size=200)).p_estimate(1.5) for _ in range(400)]
    assert 0.93 <= np.mean([e.low <= truth <= e.high for e in values]) <= 1
    assert all(e.low <= e.value <= e.high for e in values)
    assert np.mean([e.low <= 2 * truth <= e.high for e in values]) < 0.5  # it can tell another p
    null = NullDistribution(np.arange(1.0, 100.0))
    none, every = null.p_estimate(1000.0), null.p_estimate(-1.0)
    assert (none.value, none.low) == (0.01, 0) and (every.value, every.high) == (1, 1)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 99))
    assert null.p_estimate(98.0, "two-sided", level=0.9).method.endswith(
        "two-sided, +1 rule, 90 % Clopper-Pearson of the draws"
    )


def test_what_a_number_of_draws_can_show():
    null = NullDistribution(np.arange(1.0, 100.0), "few")
    assert null.smallest_p() == null.p_value(1000.0) == 0.01
    assert null.smallest_p("two-sided") == null.p_value(1000.0, "two-sided") == 0.02
    null.require_resolution(0.11)
    for p, tests in ((0.001, 1), (0.05, 50)):
        with pytest.raises(
            EmlensError,
            match=f"needs {round(10 * tests / p)} draws; the null 'few' has 99, which give no p",
        ):
            null.require_resolution(p, tests=tests)
    with pytest.raises(
        EmlensError, match="p=0.05 after a correction for 50 tests needs 10000 draws"
    ):
        null.require_resolution(0.05, tests=50)


def test_finitely_many_outcomes_bound_p_whatever_the_draws():
    some = NullDistribution(np.zeros(10_000), "signs", distinct=32)
    assert (
        some.smallest_p() == 1 / 32
        and some.smallest_p("two-sided") == 1 / 16
        and not some.exhaustive
    )
    with pytest.raises(
        EmlensError,
        match=r"p=0.01 cannot be reached by any number of draws: the null 'signs' has 32 equally",
    ):
        some.require_resolution(0.01)
    every = NullDistribution(np.arange(31.0), "signs", distinct=32, observed=31.0)
    assert every.exhaustive and every.p_value() == 1 / 32
    every.require_resolution(0.05)  # all there is: p is exact and more draws add nothing
    exact = every.p_estimate()
    assert (
        exact.low == exact.value == exact.high == 1 / 32
        and exact.method == "exact over all 32 outcomes, greater"
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: NullDistribution(np.array([1.0, math.nan])),
            "draws holds 1 values that are NaN or infinite, of 2",
        ),
        (lambda: NullDistribution(), "a null distribution was given no draws; pass draws, or both"),
        (
            lambda: NullDistribution(np.array([]), exact_mean=1.0),
            "a null distribution was given no draws",
        ),
        (
            lambda: NullDistribution(np.ones((2, 2))),
            r"draws has shape \(2, 2\); pass one number per unit",
        ),
        (
            lambda: NullDistribution(np.ones(3)).p_value(math.nan),
            "x=nan has no p-value; pass a finite number",
        ),
        (
            lambda: NullDistribution(np.ones(3)).p_value(1.0, side="both"),
            "side='both' is unknown; pass 'greater'",
        ),
        (lambda: NullDistribution(np.ones(3)).quantile(95.0), r"q=95.0 must lie in \[0, 1\]"),
        (lambda: NullDistribution.draws_needed(0.0), r"p=0.0 must lie in \(0, 1\]"),
        (
            lambda: NullDistribution.draws_needed(0.1, tests=0),
            "tests=0 must be an integer of 1 or more",
        ),
        (lambda: NullDistribution.draws_needed(0.1, side="up"), "side='up' is unknown"),
        (lambda: NullDistribution(np.ones(3)).smallest_p("up"), "side='up' is unknown"),
        (
            lambda: NullDistribution(np.ones(3)).p_values([1.0, math.nan]),
            "x holds 1 of 2 values that have no p-value; pass a finite",
        ),
        (
            lambda: NullDistribution(np.ones(3)).p_estimate(1.0, level=95),
            "level=95 must lie strictly between 0 and 1",
        ),
        (
            lambda: NullDistribution(np.ones(3), distinct=1),
            "distinct=1 must be an integer of 2 or more",
        ),
        (
            lambda: NullDistribution(np.ones(3), "made").p_value(),
            "the null 'made' was not made from the observed data; pass x",
        ),
    ],
)
def test_refusals(unchecked, call, message):
    with pytest.raises(EmlensError, match=message):
        call()
