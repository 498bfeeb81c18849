import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from emlens import EmlensError
from emlens.stats import nadeau_bengio_interval, t_interval, wilson_interval
from emlens.stats.intervals import clopper_pearson_interval

SKEWED = np.random.default_rng(0).exponential(size=60)


@pytest.mark.parametrize(("successes", "n"), [(0, 24), (3, 24), (24, 24), (460, 10_000)])
def test_wilson_agrees_with_statsmodels(successes, n):
    estimate = wilson_interval(successes, n)
    low, high = proportion_confint(successes, n, method="wilson")
    assert (estimate.value, estimate.n) == (successes / n, n)
    assert (estimate.low, estimate.high) == (
        pytest.approx(low, abs=1e-12),
        pytest.approx(high, abs=1e-12),
    )


def test_t_interval_agrees_with_scipy():
    expected = stats.ttest_1samp(SKEWED, 0).confidence_interval(0.9)
    estimate = t_interval(SKEWED, level=0.9)
    assert (estimate.low, estimate.high) == (
        pytest.approx(expected.low),
        pytest.approx(expected.high),
    )


def test_nadeau_bengio_widens_the_t_interval_by_its_formula():
    scores = np.random.default_rng(8).normal(0.4, 0.1, size=50)
    corrected, plain = nadeau_bengio_interval(scores, 1 / 4), t_interval(scores)
    widening = math.sqrt((1 / 50 + 1 / 4) / (1 / 50))
    assert corrected.high - corrected.low == pytest.approx(widening * (plain.high - plain.low))
    assert corrected.value == pytest.approx(plain.value)
    assert nadeau_bengio_interval(scores, 0.0).low == pytest.approx(plain.low)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson_interval(5, 4), "successes=5 must be an integer from 0 to n=4"),
        (lambda: wilson_interval(0, 0), "n=0 must be an integer of 1 or more"),
        (lambda: t_interval([1.0]), "values has 1 values; pass at least 2"),
        (
            lambda: nadeau_bengio_interval([1.0, 2.0], -1.0),
            "test_to_train=-1.0 must be 0 or more; pass n_test / n_train",
        ),
    ],
)
def test_refusals(unchecked, call, message):
    with pytest.raises(EmlensError, match=message):
        call()


def test_the_exact_interval_of_a_proportion_inverts_its_binomial_tails(unchecked):
    estimate = clopper_pearson_interval(3, 64)
    assert stats.binom.sf(2, 64, estimate.low) == pytest.approx(0.025) and stats.binom.cdf(
        3, 64, estimate.high
    ) == pytest.approx(0.025)
    none = clopper_pearson_interval(0, 60)
    assert none.low == 0.0 and none.high == pytest.approx(1 - 0.025 ** (1 / 60))
    with pytest.raises(EmlensError, match="successes=5 must be an integer from 0 to n=4"):
        clopper_pearson_interval(5, 4)
