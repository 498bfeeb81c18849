import math

import numpy as np
import pytest
from scipy import stats

from emlens import EmlensError
from emlens.stats import (
    bootstrap_mean,
    cluster_bootstrap,
    hierarchical_bootstrap,
    ratio_of_means,
    t_interval,
    wilson_interval,
)
from emlens.stats.bootstrap import SKEWNESS, UNITS
from emlens.stats.resamples import resample_ratio

SKEWED = np.random.default_rng(0).exponential(size=60)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_bootstrap_mean_agrees_with_scipy(method):
    estimate = bootstrap_mean(SKEWED, method=method, resamples=9999)
    name = {"percentile": "percentile", "bca": "BCa"}[method]
    expected = stats.bootstrap(
        (SKEWED,), np.mean, method=name, n_resamples=9999, random_state=1
    ).confidence_interval
    assert estimate.value == pytest.approx(SKEWED.mean())
    assert (estimate.low, estimate.high) == (
        pytest.approx(expected.low, abs=0.02),
        pytest.approx(expected.high, abs=0.02),
    )
    assert estimate.n == 60 and "95 %" in estimate.method and method in estimate.method


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
    hits = [
        (e := bootstrap_mean(rng.normal(size=40), resamples=499)).low <= 0 <= e.high
        for _ in range(200)
    ]
    assert 0.90 <= np.mean(hits) <= 0.98


def clustered(rng, spread, n_clusters=25, size=8):
    centres = np.repeat(rng.normal(scale=spread, size=n_clusters), size)
    return centres + rng.normal(size=n_clusters * size), np.repeat(np.arange(n_clusters), size)


@pytest.mark.parametrize("method", ["t", "percentile", "bca"])
def test_clusters_are_what_is_resampled(method):
    """Coverage holds over clusters, where resampling rows claims far too much."""
    rng = np.random.default_rng(3)
    hits = {"clusters": 0, "rows": 0}
    for _ in range(100):
        values, labels = clustered(rng, spread=1.0)
        estimate = cluster_bootstrap(values, labels, resamples=199, method=method)
        rows = bootstrap_mean(values, resamples=199, method="bca")
        hits["clusters"] += estimate.low <= 0 <= estimate.high
        hits["rows"] += rows.low <= 0 <= rows.high
    assert hits["clusters"] / 100 > 0.86 and hits["rows"] / 100 < 0.76


def test_cluster_bootstrap_of_single_rows_is_the_bootstrap_and_takes_any_statistic():
    one = cluster_bootstrap(SKEWED, np.arange(60), resamples=4999)
    assert one.low == pytest.approx(bootstrap_mean(SKEWED, method="percentile").low, abs=0.02)
    pairs = np.column_stack([SKEWED, 2 * SKEWED + 1])
    slope = cluster_bootstrap(
        pairs,
        np.arange(60) // 3,
        lambda part: np.polyfit(part[:, 0], part[:, 1], 1)[0],
        resamples=50,
    )
    assert (slope.value, slope.low, slope.high, slope.n) == (*[pytest.approx(2)] * 3, 20)
    by_name = cluster_bootstrap(SKEWED, [f"domain {i % 7}" for i in range(60)], resamples=50)
    assert by_name.n == 7 and "7 clusters" in by_name.method


def test_ratio_of_means_recovers_a_planted_ratio():
    rng = np.random.default_rng(4)
    bottom = 40 + rng.normal(scale=10, size=200)
    top = 0.6 * bottom + rng.normal(scale=5, size=200)
    estimate = ratio_of_means(top, bottom)
    assert estimate.low < 0.6 < estimate.high and estimate.high - estimate.low < 0.1
    assert estimate.value == pytest.approx(top.mean() / bottom.mean())
    # delta method
    delta = np.std(top - estimate.value * bottom, ddof=1) / math.sqrt(200) / bottom.mean()
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * delta, rel=0.1)
    scaled = ratio_of_means(3 * top, 3 * bottom)
    assert scaled.low == pytest.approx(estimate.low)
    by_domain = ratio_of_means(top, bottom, np.arange(200) // 20)
    assert by_domain.n == 10 and "10 clusters" in by_domain.method
    assert ratio_of_means(-top, -bottom).value == pytest.approx(estimate.value)


def test_pairing_matters():
    rng = np.random.default_rng(5)
    bottom = rng.uniform(10, 90, size=80)
    paired, broken = (ratio_of_means(0.5 * x, bottom) for x in (bottom, rng.permutation(bottom)))
    assert paired.high - paired.low < 1e-12 < broken.high - broken.low


def test_ratio_is_undefined_where_nothing_was_lost():
    rng = np.random.default_rng(6)
    nothing = rng.normal(size=50)
    estimate = ratio_of_means(rng.normal(size=50), nothing)
    assert not estimate.defined and estimate.n == 50 and "undefined" in str(estimate)
    assert (
        "the denominator's 95 % interval [" in estimate.method and "includes 0" in estimate.method
    )
    assert ratio_of_means(nothing, nothing + 5).defined
    assert not ratio_of_means([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]).defined


def test_ratio_coverage():
    rng = np.random.default_rng(7)
    hits = []
    for _ in range(150):
        bottom = 5 + rng.normal(scale=3, size=60)
        estimate = ratio_of_means(0.4 * bottom + rng.normal(size=60), bottom, resamples=399)
        hits.append(estimate.low <= 0.4 <= estimate.high)
    assert 0.90 <= np.mean(hits) <= 0.98


def test_bootstrap_t_agrees_with_a_loop_that_studentises():
    rng, n, mean = np.random.default_rng(5), len(SKEWED), SKEWED.mean()
    drawn = SKEWED[rng.integers(n, size=(20_000, n))]
    t = (drawn.mean(1) - mean) / (drawn.std(1, ddof=1) / math.sqrt(n))
    error = SKEWED.std(ddof=1) / math.sqrt(n)
    estimate = bootstrap_mean(SKEWED, resamples=20_000)
    assert estimate.low == pytest.approx(mean - np.quantile(t, 0.975) * error, abs=0.012)
    assert estimate.high == pytest.approx(mean - np.quantile(t, 0.025) * error, abs=0.025)
    assert "95 % bootstrap-t over 60 units" in estimate.method


@pytest.mark.parametrize("even", [True, False])
def test_every_resample_is_studentised_by_its_own_linearised_error(even):
    rng = np.random.default_rng(11)
    top, bottom = rng.normal(3, 1, size=6), np.ones(6) if even else rng.uniform(1, 2, size=6)
    resamples = resample_ratio(top, bottom, 40, np.random.default_rng(0))
    for rows, value, error in zip(
        np.random.default_rng(0).integers(6, size=(40, 6)),
        resamples.values,
        resamples.errors,
        strict=True,
    ):
        a, b = top[rows], bottom[rows]
        assert value == pytest.approx(a.sum() / b.sum())
        assert error == pytest.approx(np.std(a - value * b, ddof=1) / math.sqrt(6) / b.mean())
    assert resamples.error == pytest.approx(
        np.std(top - resamples.value * bottom, ddof=1) / math.sqrt(6) / bottom.mean()
    )


def test_bootstrap_t_holds_where_bca_and_percentile_fall_short():
    rng = np.random.default_rng(6)
    hits = dict.fromkeys(("t", "bca", "percentile"), 0)
    for _ in range(200):
        values = rng.exponential(size=10)
        for method in hits:
            estimate = bootstrap_mean(values, method=method, resamples=199)
            hits[method] += estimate.low <= 1 <= estimate.high
    assert hits["t"] > 180 and hits["bca"] < 178 and hits["percentile"] < 178, hits


@pytest.mark.parametrize("ones", [1, 2])
def test_where_few_values_differ_the_ends_are_the_outer_ones_of_two_other_intervals(ones):
    values = np.r_[3 * np.ones(ones), np.zeros(24 - ones)]
    estimate, bca, student = (
        bootstrap_mean(values),
        bootstrap_mean(values, method="bca"),
        t_interval(values),
    )
    assert (
        "too few distinct values for bootstrap-t: the outer ends of BCa and Student's t"
        in estimate.method
    )
    assert estimate.low == pytest.approx(
        min(bca.low, student.low)
    ) and estimate.high == pytest.approx(max(bca.high, student.high))
    assert "too few distinct" not in bootstrap_mean(np.r_[3 * np.ones(9), np.zeros(15)]).method


def test_values_of_0_and_1_are_a_proportion():
    values = np.r_[np.ones(5), np.zeros(19)]
    estimate, expected = bootstrap_mean(values), wilson_interval(5, 24)
    assert (estimate.value, estimate.low, estimate.high, estimate.n) == (
        expected.value,
        expected.low,
        expected.high,
        24,
    )
    assert estimate.method == "95 % Wilson over 24 units of 0 or 1"
    by_question = hierarchical_bootstrap(np.repeat(values, 3), np.repeat(np.arange(24), 3))
    assert (by_question.low, by_question.high, by_question.n) == (expected.low, expected.high, 24)
    assert (
        "bootstrap" in bootstrap_mean(values, method="bca").method
        and "Wilson" not in bootstrap_mean(np.zeros(24)).method
    )


def test_outside_its_design_range_an_estimate_says_so():
    few = bootstrap_mean(np.arange(12.0)).method
    assert f"outside its design range: 12 units, fewer than the {UNITS} it is made for" in few
    skewed = bootstrap_mean(np.r_[np.zeros(40), 30.0, 31.0]).method
    assert (
        f"outside its design range: skewness 4.3, beyond the {SKEWNESS:g} it is made for" in skewed
    )
    assert "outside" not in bootstrap_mean(SKEWED).method
    labels = np.repeat(np.arange(5), 12)
    for call in (
        lambda: cluster_bootstrap(SKEWED, labels),
        lambda: ratio_of_means(SKEWED, SKEWED + 1, labels),
    ):
        assert (
            "outside its design range: 5 clusters, fewer than the 8 it is made for" in call().method
        )
    assert (
        "fewer than the 24"
        in cluster_bootstrap(SKEWED, np.repeat(np.arange(12), 5), np.median, resamples=50).method
    )
    assert (
        bootstrap_mean([2.0, 2.0, 2.0]).method.count("no spread, so the interval says nothing") == 1
    )


def test_the_mean_over_clusters_is_a_ratio_of_sums_and_the_jackknife_finds_the_same_errors():
    """Clusters of unequal size: the fast path against whole rows put together, and against
    Student's t over equal clusters.
    """
    labels = np.repeat(np.arange(12), np.arange(1, 13))
    values = np.random.default_rng(7).normal(size=len(labels)) + labels / 3
    fast = cluster_bootstrap(values, labels, resamples=4000)
    slow = cluster_bootstrap(
        values, labels, lambda part: float(part.mean()), method="t", resamples=2000
    )
    assert fast.value == pytest.approx(values.mean()) == pytest.approx(slow.value)
    assert (slow.low, slow.high) == (
        pytest.approx(fast.low, abs=0.2),
        pytest.approx(fast.high, abs=0.2),
    )
    even = cluster_bootstrap(values[:77], np.arange(77) // 7)
    means = values[:77].reshape(11, 7).mean(1)
    assert even.high - even.low == pytest.approx(
        t_interval(means).high - t_interval(means).low, rel=0.2
    )
    wide = np.column_stack([values, 3 * values])
    assert cluster_bootstrap(wide, labels).value == pytest.approx(2 * values.mean())


def test_ratio_stays_defined_where_all_denominators_have_one_sign():
    assert ratio_of_means([0.1, 3.0, 0.2], [1.0, 40.0, 2.0]).defined
    assert not ratio_of_means([0.1, 3.0, 0.2], [-1.0, 40.0, 2.0]).defined


def answered(rng, p, answers):
    values = (rng.random((len(p), answers)) < np.asarray(p)[:, None]).astype(float)
    return values.ravel(), np.repeat(np.arange(len(p)), answers)


def test_estimands_over_questions_and_over_answers():
    """Questions that differ a lot: the interval for these questions is short, that for others like
    them is not.
    """
    rng = np.random.default_rng(8)
    p = rng.beta(1, 2, size=24)
    values, questions = answered(rng, p, 40)
    those = hierarchical_bootstrap(values, questions)
    these = hierarchical_bootstrap(values, questions, estimand="these questions")
    means = values.reshape(24, 40).mean(1)
    assert those.value == pytest.approx(means.mean()) and these.value == pytest.approx(means.mean())
    assert (those.n, these.n) == (24, 960)
    assert (
        "estimand: questions like these" in those.method
        and "estimand: these questions" in these.method
    )
    error = math.sqrt((means * (1 - means) / 39).sum()) / 24
    assert these.high - these.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    between = bootstrap_mean(means)
    assert those.high - those.low == pytest.approx(between.high - between.low, rel=0.1)
    assert those.high - those.low > 3 * (these.high - these.low)


def test_each_estimand_covers_its_own_truth_and_not_the_other():
    rng = np.random.default_rng(9)
    p = np.r_[np.full(12, 0.1), np.full(12, 0.9)]
    hits = {"these": 0, "like": 0, "these for the other": 0}
    for _ in range(100):
        drawn = rng.permutation(p)[:12]
        values, questions = answered(rng, drawn, 20)
        these = hierarchical_bootstrap(values, questions, estimand="these questions", resamples=199)
        like = hierarchical_bootstrap(values, questions, resamples=199)
        hits["these"] += these.low <= drawn.mean() <= these.high
        hits["like"] += like.low <= 0.5 <= like.high
        hits["these for the other"] += these.low <= 0.5 <= these.high
    assert hits["these"] >= 88 and hits["like"] >= 90 and hits["these for the other"] < 70, hits


def test_pooled_answers_weigh_questions_by_their_answers():
    values, questions = [1.0, 1.0, 1.0, 0.0, 0.0, 1.0], [0, 0, 0, 0, 1, 1]
    assert hierarchical_bootstrap(values, questions, average="pooled").value == pytest.approx(4 / 6)
    assert hierarchical_bootstrap(values, questions).value == pytest.approx((3 / 4 + 1 / 2) / 2)
    these = hierarchical_bootstrap(values, questions, estimand="these questions", average="pooled")
    assert (
        these.value == pytest.approx(4 / 6)
        and "2 answers to a question, fewer than the 5" in these.method
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_mean([1.0]), "values has 1 values; pass at least 2"),
        (
            lambda: bootstrap_mean([1.0, math.inf]),
            "values holds 1 values that are NaN or infinite, of 2; drop or fix",
        ),
        (
            lambda: bootstrap_mean([[1.0, 2.0]]),
            r"values has shape \(1, 2\); pass one number per unit",
        ),
        (
            lambda: bootstrap_mean([1.0, 2.0], level=95),
            "level=95 must lie strictly between 0 and 1; pass .95 for 95 %",
        ),
        (
            lambda: bootstrap_mean([1.0, 2.0], resamples=0),
            "resamples=0 must be an integer of 1 or more",
        ),
        (
            lambda: bootstrap_mean([1.0, 2.0], method="basic"),
            "method='basic' is unknown; pass one of 't', 'bca', 'percentile'",
        ),
        (
            lambda: cluster_bootstrap([1.0, 2.0], ["a"]),
            "clusters has 1 labels for 2 rows; pass one label per row",
        ),
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
            lambda: cluster_bootstrap(
                [1.0, 2.0], ["a", "b"], lambda part: math.nan if len(set(part)) < 2 else 1.0
            ),
            "statistic is not finite on some resample of clusters",
        ),
        (
            lambda: hierarchical_bootstrap([1.0, 2.0], [0, 1], estimand="mine"),
            "estimand='mine' is unknown; pass one of 'questions like these', 'these",
        ),
        (
            lambda: hierarchical_bootstrap([1.0, 2.0], [0, 1], average="sum"),
            "average='sum' is unknown; pass one of 'question', 'pooled'",
        ),
        (
            lambda: hierarchical_bootstrap([1.0, 2.0], [0, 0]),
            "questions names 1 cluster; a bootstrap over questions needs at least 2",
        ),
        (
            lambda: hierarchical_bootstrap([1.0, 2.0, 3.0], [0, 0, 1], estimand="these questions"),
            "a question has 1 answer, which shows no spread within",
        ),
        (lambda: ratio_of_means([1.0, 2.0], [1.0]), "denominator has 1 values; pass at least 2"),
        (
            lambda: ratio_of_means([1.0, 2.0], [1.0, 2.0, 3.0]),
            "numerator has 2 values and denominator has 3; pass one pair",
        ),
    ],
)
def test_refusals(unchecked, call, message):
    with pytest.raises(EmlensError, match=message):
        call()
