import math

import numpy as np
import pytest
from scipy import stats

from emlens import EmlensError
from emlens.stats import f_test
from emlens.stats.spread import brown_forsythe

RNG = np.random.default_rng(0)
A, B = RNG.normal(0, 2, size=15), RNG.normal(5, 1, size=25)


def test_f_agrees_with_the_distribution_and_its_interval_with_the_test():
    result = f_test(A, B)
    ratio = A.var(ddof=1) / B.var(ddof=1)
    assert result.statistic == result.estimate.value == pytest.approx(ratio)
    assert f_test(A, B, side="greater").p == pytest.approx(stats.f.sf(ratio, 14, 24))
    assert f_test(A, B, side="less").p == pytest.approx(stats.f.cdf(ratio, 14, 24))
    assert result.p == pytest.approx(2 * stats.f.sf(ratio, 14, 24)) == pytest.approx(f_test(B, A).p)
    scaled = A / math.sqrt(result.estimate.low)
    assert f_test(scaled, B).p == pytest.approx(0.05)  # an end is the ratio that is just rejected
    assert result.effect == pytest.approx(math.log(A.std(ddof=1) / B.std(ddof=1)))
    assert (result.effect_low, result.effect_high) == (
        pytest.approx(math.log(result.estimate.low) / 2),
        pytest.approx(math.log(result.estimate.high) / 2),
    )


@pytest.mark.parametrize("side", ["two-sided", "greater", "less"])
def test_brown_forsythe_agrees_with_a_t_test_of_absolute_deviations(side):
    away = [np.abs(sample - np.median(sample)) for sample in (A, B)]
    expected = stats.ttest_ind(*away, alternative=side)
    result = brown_forsythe(A, B, side=side)
    assert result.statistic == pytest.approx(expected.statistic**2) and result.p == pytest.approx(
        expected.pvalue
    )
    interval = stats.ttest_ind(*away, equal_var=False).confidence_interval()
    assert (result.estimate.low, result.estimate.high) == (
        pytest.approx(interval.low),
        pytest.approx(interval.high),
    )
    assert brown_forsythe(B, A).effect_low == pytest.approx(-result.effect_high)
    assert brown_forsythe(A, B).statistic == pytest.approx(
        stats.levene(A, B, center="median").statistic
    )


def test_the_effects_interval_is_the_jackknife_by_a_loop():
    result = brown_forsythe(A, B)
    pseudo = []
    for sample in (A, B):
        n = len(sample)
        without = np.array([math.log(np.delete(sample, i).std(ddof=1)) for i in range(n)])
        pseudo.append(n * math.log(sample.std(ddof=1)) - (n - 1) * without)
    interval = stats.ttest_ind(*pseudo, equal_var=False).confidence_interval()
    assert (result.effect_low, result.effect_high) == (
        pytest.approx(interval.low),
        pytest.approx(interval.high),
    )


def test_heavy_tails_fool_f_and_not_brown_forsythe():
    rng = np.random.default_rng(1)
    draws = [(rng.standard_t(3, size=40), rng.standard_t(3, size=40)) for _ in range(250)]
    assert np.mean([f_test(a, b).p < 0.05 for a, b in draws]) > 0.12
    assert np.mean([brown_forsythe(a, b).p < 0.05 for a, b in draws]) < 0.09
    wide = [(2 * a, b) for a, b in draws[:80]]
    assert np.mean([brown_forsythe(a, b).p < 0.05 for a, b in wide]) > 0.5  # there is power


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: f_test([1.0, 1], [1.0, 2]), "there is no spread to test against"),
        (lambda: f_test([1.0, 2], [1.0, 2], side="up"), "side='up' is unknown"),
        (lambda: brown_forsythe([1.0, 2], [1.0, 2, 3]), "a has 2 values; pass at least 3"),
        (
            lambda: brown_forsythe([1.0, 1, 2], [1.0, 2, 3]),
            (
                "without one value a group has no spread left;"
                " pass more values, or use permutation_test"
            ),
        ),
    ],
)
def test_refusals(unchecked, call, message):
    with pytest.raises(EmlensError, match=message):
        call()
