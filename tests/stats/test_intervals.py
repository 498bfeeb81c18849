import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from emlens import EmlensError
from emlens.stats import (
    bootstrap_mean,
    cluster_bootstrap,
    nadeau_bengio_interval,
    ratio_of_means,
    t_interval,
    wilson_interval,
)

SKEWED = np.random.default_rng(0).exponential(size=60)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_bootstrap_mean_agrees_with_scipy(method):
    found = bootstrap_mean(SKEWED, method=method, resamples=9999)
    name = {"percentile": "percentile", "bca": "BCa"}[method]
    expected = stats.bootstrap((SKEWED,), np.mean, method=name, n_resamples=9999, random_state=1).confidence_interval
    assert found.value == pytest.approx(SKEWED.mean())
    assert (found.low, found.high) == (pytest.approx(expected.low, abs=0.02), pytest.approx(expected.high, abs=0.02))
    assert found.n == 60 and "95 %" in found.method and method in found.method


def test_bca_leans_to_the_long_tail():
    plain, bca = bootstrap_mean(SKEWED, method="percentile"), bootstrap_mean(SKEWED)
    assert bca.low > plain.low and bca.high > plain.high


def test_bootstrap_is_seeded_moves_with_units_and_narrows_with_level():
    assert bootstrap_mean(SKEWED) == bootstrap_mean(SKEWED)
    assert bootstrap_mean(SKEWED).low != bootstrap_mean(SKEWED, seed=1).low
    moved = bootstrap_mean(3 * SKEWED + 7)
    assert moved.low == pytest.approx(3 * bootstrap_mean(SKEWED).low + 7)
    half = bootstrap_mean(SKEWED, level=0.5)
    assert bootstrap_mean(SKEWED).low < half.low < half.high < bootstrap_mean(SKEWED).high
    constant = bootstrap_mean([2.0, 2.0, 2.0])
    assert (constant.value, constant.low, constant.high) == (2, 2, 2)


def test_bootstrap_coverage_of_a_mean():
    rng = np.random.default_rng(2)
    hits = [(e := bootstrap_mean(rng.normal(size=40), resamples=499)).low <= 0 <= e.high for _ in range(400)]
    assert 0.90 <= np.mean(hits) <= 0.98


def clustered(rng, spread, n_clusters=25, size=8):
    centres = np.repeat(rng.normal(scale=spread, size=n_clusters), size)
    return centres + rng.normal(size=n_clusters * size), np.repeat(np.arange(n_clusters), size)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_clusters_are_what_is_resampled(method):
    """Coverage holds over clusters, where resampling rows claims far too much."""
    rng = np.random.default_rng(3)
    hits = {"clusters": 0, "rows": 0}
    for _ in range(100):
        values, labels = clustered(rng, spread=1.0)
        found = cluster_bootstrap(values, labels, resamples=199, method=method)
        rows = bootstrap_mean(values, resamples=199)
        hits["clusters"] += found.low <= 0 <= found.high
        hits["rows"] += rows.low <= 0 <= rows.high
    assert hits["clusters"] / 100 > 0.86 and hits["rows"] / 100 < 0.7


def test_cluster_bootstrap_of_single_rows_is_the_bootstrap_and_takes_any_statistic():
    one = cluster_bootstrap(SKEWED, np.arange(60), resamples=4999)
    assert one.low == pytest.approx(bootstrap_mean(SKEWED, method="percentile").low, abs=0.02)
    pairs = np.column_stack([SKEWED, 2 * SKEWED + 1])
    slope = cluster_bootstrap(
        pairs, np.arange(60) // 3, lambda part: np.polyfit(part[:, 0], part[:, 1], 1)[0], resamples=50
    )
    assert (slope.value, slope.low, slope.high, slope.n) == (*[pytest.approx(2)] * 3, 20)
    by_name = cluster_bootstrap(SKEWED, [f"domain {i % 7}" for i in range(60)], resamples=50)
    assert by_name.n == 7 and "7 clusters" in by_name.method


def test_ratio_of_means_recovers_a_planted_ratio():
    rng = np.random.default_rng(4)
    bottom = 40 + rng.normal(scale=10, size=200)
    top = 0.6 * bottom + rng.normal(scale=5, size=200)
    found = ratio_of_means(top, bottom)
    assert found.low < 0.6 < found.high and found.high - found.low < 0.1
    assert found.value == pytest.approx(top.mean() / bottom.mean())
    delta = np.std(top - found.value * bottom, ddof=1) / math.sqrt(200) / bottom.mean()  # delta method
    assert found.high - found.low == pytest.approx(2 * 1.96 * delta, rel=0.1)
    scaled = ratio_of_means(3 * top, 3 * bottom)
    assert scaled.low == pytest.approx(found.low)
    by_domain = ratio_of_means(top, bottom, np.arange(200) // 20)
    assert by_domain.n == 10 and "10 clusters" in by_domain.method
    assert ratio_of_means(-top, -bottom).value == pytest.approx(found.value)


def test_pairing_matters():
    rng = np.random.default_rng(5)
    bottom = rng.uniform(10, 90, size=80)
    paired, broken = (ratio_of_means(0.5 * x, bottom) for x in (bottom, rng.permutation(bottom)))
    assert paired.high - paired.low < 1e-12 < broken.high - broken.low


def test_ratio_is_undefined_where_nothing_was_lost():
    rng = np.random.default_rng(6)
    nothing = rng.normal(size=50)
    found = ratio_of_means(rng.normal(size=50), nothing)
    assert not found.defined and found.n == 50 and "undefined" in str(found)
    assert "the denominator's 95 % interval [" in found.method and "includes 0" in found.method
    assert ratio_of_means(nothing, nothing + 5).defined
    assert not ratio_of_means([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]).defined


def test_ratio_coverage():
    rng = np.random.default_rng(7)
    hits = []
    for _ in range(300):
        bottom = 5 + rng.normal(scale=3, size=60)
        found = ratio_of_means(0.4 * bottom + rng.normal(size=60), bottom, resamples=399)
        hits.append(found.low <= 0.4 <= found.high)
    assert 0.90 <= np.mean(hits) <= 0.98


@pytest.mark.parametrize(("successes", "n"), [(0, 24), (3, 24), (24, 24), (460, 10_000)])
def test_wilson_agrees_with_statsmodels(successes, n):
    found = wilson_interval(successes, n)
    low, high = proportion_confint(successes, n, method="wilson")
    assert (found.value, found.n) == (successes / n, n)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-12), pytest.approx(high, abs=1e-12))


def test_t_interval_agrees_with_scipy():
    expected = stats.ttest_1samp(SKEWED, 0).confidence_interval(0.9)
    found = t_interval(SKEWED, level=0.9)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


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
        (lambda: bootstrap_mean([1.0]), "values has 1 values; pass at least 2"),
        (lambda: bootstrap_mean([1.0, math.inf]), "values holds 1 values that are NaN or infinite, of 2; drop or fix"),
        (lambda: bootstrap_mean([[1.0, 2.0]]), r"values has shape \(1, 2\); pass one number a unit"),
        (lambda: bootstrap_mean([1.0, 2.0], level=95), "level=95 must lie strictly between 0 and 1; pass .95 for 95 %"),
        (lambda: bootstrap_mean([1.0, 2.0], resamples=0), "resamples=0 must be an integer of 1 or more"),
        (lambda: bootstrap_mean([1.0, 2.0], method="basic"), "method='basic' is unknown; pass 'percentile' or 'bca'"),
        (lambda: cluster_bootstrap([1.0, 2.0], ["a"]), "clusters has 1 labels for 2 rows; pass one label a row"),
        (
            lambda: cluster_bootstrap([1.0, 2.0], ["a", "a"]),
            "clusters names 1 cluster; a cluster bootstrap needs at least 2",
        ),
        (
            lambda: cluster_bootstrap([1.0, math.nan], ["a", "b"]),
            r"values of shape \(2,\) must be rows of finite numbers",
        ),
        (lambda: cluster_bootstrap([1.0, 2.0], ["a", "b"], method="x"), "method='x' is unknown"),
        (
            lambda: cluster_bootstrap([1.0, 2.0], ["a", "b"], lambda part: math.nan if len(set(part)) < 2 else 1.0),
            "statistic is not finite on some resample of clusters",
        ),
        (lambda: ratio_of_means([1.0, 2.0], [1.0]), "denominator has 1 values; pass at least 2"),
        (
            lambda: ratio_of_means([1.0, 2.0], [1.0, 2.0, 3.0]),
            "numerator has 2 values and denominator has 3; pass one pair",
        ),
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
