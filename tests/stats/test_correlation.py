import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from emlens import EmlensError
from emlens.stats import correlation_null, partial_correlation, pearson, spearman


def pair(n: int, r: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    return x, r * x + math.sqrt(1 - r**2) * rng.normal(size=n)


@pytest.mark.parametrize("n", [4, 30, 300])
def test_agree_with_scipy(n):
    x, y = pair(n, 0.6)
    estimate, expected = pearson(x, y), stats.pearsonr(x, y)
    interval = expected.confidence_interval()
    assert estimate.value == pytest.approx(expected.statistic, abs=1e-12)
    assert (estimate.low, estimate.high, estimate.n) == (
        pytest.approx(interval.low),
        pytest.approx(interval.high),
        n,
    )
    ties = np.round(y, 0)
    assert spearman(x, ties).value == pytest.approx(stats.spearmanr(x, ties).statistic, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 100), st.floats(-50, 50))
def test_invariances(seed, scale, shift):
    x, y = pair(12, 0.5, seed)
    assert pearson(scale * x + shift, y).value == pytest.approx(pearson(x, y).value, abs=1e-9)
    assert pearson(y, x).value == pytest.approx(pearson(x, y).value, abs=1e-12)
    assert pearson(-x, y).value == pytest.approx(-pearson(x, y).value, abs=1e-12)
    assert spearman(np.exp(x), y**3).value == pytest.approx(spearman(x, y).value, abs=1e-12)
    estimate = spearman(x, y)
    assert -1 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_perfect_and_undefined():
    x = np.arange(6.0)
    assert (pearson(x, 2 * x + 1).value, spearman(x, -np.exp(x)).value) == (
        pytest.approx(1),
        pytest.approx(-1),
    )
    # four units on a line happen by chance in 1 of 12 rankings: a value, and no interval
    for exact in (pearson([1.0, -1, 1, -1], [2.0, -2, 2, -2]), spearman(x[:4], x[:4] ** 2)):
        assert exact.value == 1 and math.isnan(exact.low) and math.isnan(exact.high)
        assert "every unit lies on one line, so there is no interval" in exact.method
    for call in (pearson, spearman):
        assert call(np.ones(6), x).method == "undefined: x is constant"
        assert call(x, np.ones(6)).method == "undefined: y is constant"
    assert not pearson(1e9 + 1e-7 * (x % 2), x).defined  # a spread that float64 cannot hold is none


@pytest.mark.parametrize("rho", [0.0, 0.85])
def test_intervals_cover(rho):
    true_rank = 6 / math.pi * math.asin(rho / 2)
    hits = {"pearson": 0, "spearman": 0}
    for seed in range(300):
        x, y = pair(40, rho, seed)
        p, s = pearson(x, y), spearman(x, y)
        hits["pearson"] += p.low <= rho <= p.high
        hits["spearman"] += s.low <= true_rank <= s.high
    assert all(0.915 <= count / 300 <= 0.98 for count in hits.values()), hits


def test_partialling_out_a_confounder():
    rng = np.random.default_rng(1)
    confounder = rng.normal(size=500)
    x, y = confounder + rng.normal(size=500), confounder + rng.normal(size=500)
    assert pearson(x, y).low > 0.3  # there is something to remove
    partial = partial_correlation(x, y, confounder)
    assert partial.low < 0 < partial.high
    # from the precision matrix
    r = np.linalg.inv(np.corrcoef(np.column_stack([x, y, confounder]).T))
    assert partial.value == pytest.approx(-r[0, 1] / math.sqrt(r[0, 0] * r[1, 1]), abs=1e-10)
    ranked = partial_correlation(np.exp(x), y, confounder, ranks=True)
    assert ranked.value == pytest.approx(
        partial_correlation(x, y, confounder, ranks=True).value, abs=1e-10
    )
    assert "Spearman" in ranked.method and abs(ranked.value) < 0.15


def test_partial_correlation_edges():
    x, y = pair(50, 0.5)
    nothing = partial_correlation(x, y, np.ones((50, 1)))
    # a constant explains nothing
    assert nothing.value == pytest.approx(pearson(x, y).value, abs=1e-10)
    both = np.column_stack([x, y**2])
    assert (
        partial_correlation(x, y, both).method == "undefined: the covariates explain x completely"
    )
    assert (
        partial_correlation(y, x, both).method == "undefined: the covariates explain y completely"
    )
    wide = np.column_stack([1e8 * y**2 + 1e9, 1e-8 * y**3])
    assert partial_correlation(x, y, wide).value == pytest.approx(
        partial_correlation(x, y, np.column_stack([y**2, y**3])).value, abs=1e-6
    )


def test_permutation_null_agrees_with_scipy_and_finds_an_effect():
    x, y = pair(30, 0.35)
    null = correlation_null(x, y, draws=4000)
    assert null.mean == pytest.approx(0, abs=0.01)
    assert null.sd == pytest.approx(1 / math.sqrt(29), rel=0.05)  # exact over permutations
    assert null.p_value(pearson(x, y).value, "two-sided") == pytest.approx(
        stats.pearsonr(x, y).pvalue, abs=0.02
    )
    ranked = correlation_null(np.exp(x), y, ranks=True, draws=500)
    assert ranked.sd == pytest.approx(1 / math.sqrt(29), rel=0.15)


def test_strata_hold_what_they_explain():
    """A correlation between categories is not evidence within them."""
    rng = np.random.default_rng(3)
    category = np.repeat([0, 1, 2], 20)
    x, y = (3 * category + rng.normal(size=60) for _ in range(2))
    r = pearson(x, y).value
    assert correlation_null(x, y, draws=500).p_value(r) < 0.01
    assert correlation_null(x, y, strata=category, draws=500).p_value(r) > 0.05
    assert "within strata" in correlation_null(x, y, strata=category, draws=5).label


def clustered(seed, domains=12, size=8):
    """Unrelated within domains and between them, both with effects of the domain."""
    rng = np.random.default_rng(seed)
    x, y = (
        np.repeat(rng.normal(size=domains), size) + rng.normal(size=domains * size)
        for _ in range(2)
    )
    return x, y, np.repeat(np.arange(domains), size)


@pytest.mark.parametrize(
    "call", [pearson, spearman, lambda x, y, **k: partial_correlation(x, y, np.cos(x + y), **k)]
)
def test_clusters_are_the_units(call):
    """Over whole domains the interval holds where the plain one claims far too much; single rows
    give nearly the plain one.
    """
    hits = {"plain": 0, "clusters": 0}
    for seed in range(60):
        x, y, labels = clustered(seed)
        plain, over = call(x, y), call(x, y, clusters=labels)
        assert over.value == plain.value and over.n == 12
        hits["plain"] += plain.low <= 0 <= plain.high
        hits["clusters"] += over.low <= 0 <= over.high
    assert hits["plain"] <= 50 and hits["clusters"] >= 53, hits
    x, y = pair(80, 0.5)
    single, plain = call(x, y, clusters=np.arange(80)), call(x, y)
    assert single.high - single.low == pytest.approx(plain.high - plain.low, rel=0.25)


def test_the_interval_over_clusters_is_the_jackknife_by_a_loop():
    x, y, labels = clustered(3)
    z = np.arctanh([stats.pearsonr(x[labels != c], y[labels != c]).statistic for c in range(12)])
    half = stats.t.ppf(0.975, 11) * math.sqrt(11 / 12 * ((z - z.mean()) ** 2).sum())
    estimate = pearson(x, y, clusters=labels)
    assert np.arctanh(estimate.high) - np.arctanh(estimate.value) == pytest.approx(half)
    few = pearson(x, y, clusters=labels % 5)
    assert (
        "5 clusters, fewer than the 8 it is made for" in few.method
        and "outside" not in estimate.method
    )
    broken = pearson([0.0, 1, 2, 3, 3, 3], [0.0, 1, 2, 3, 3, 9], clusters=[0, 0, 0, 0, 1, 2])
    assert math.isnan(broken.low) and "perfect or undefined without some cluster" in broken.method


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pearson([1.0, 2, 3], [1.0, 2, 3]), "x has 3 values; pass at least 4"),
        (
            lambda: spearman([1.0, 2, 3, 4], [1.0, 2, 3, 4, 5]),
            "x has 4 values and y has 5; pass one pair per unit",
        ),
        (
            lambda: pearson([1.0, 2, 3, math.nan], [1.0, 2, 3, 4]),
            "x holds 1 values that are NaN or infinite, of 4",
        ),
        (
            lambda: pearson([1.0, 2, 3, 4], [1.0, 2, 3, 4], level=0),
            "level=0 must lie strictly between",
        ),
        (
            lambda: partial_correlation([1.0, 2, 3, 4], [1.0, 2, 4, 3], [1.0, 2]),
            r"covariates has shape \(2, 1\) for 4 units",
        ),
        (
            lambda: partial_correlation([1.0, 2, 3, 4], [1.0, 2, 4, 3], [1.0, 2, 3, 5]),
            "4 units are too few for 1 covariates; pass at least 5",
        ),
        (
            lambda: partial_correlation([1.0, 2, 3, 4], [1.0, 2, 4, 3], [1.0, 2, 3, math.inf]),
            "covariates holds values that are NaN",
        ),
        (
            lambda: pearson([1.0, 2, 3, 4], [1.0, 2, 4, 3], clusters=[1, 2]),
            "clusters has 2 labels for 4 rows; pass one label per row",
        ),
        (
            lambda: spearman([1.0, 2, 3, 4], [1.0, 2, 4, 3], clusters=[1] * 4),
            "clusters names 1 cluster; an interval over clusters needs at least 2",
        ),
        (
            lambda: correlation_null([1.0, 1, 1, 1], [1.0, 2, 3, 4]),
            "x is constant, so no correlation exists",
        ),
        (
            lambda: correlation_null([1.0, 2, 3, 4], [1.0, 2, 3, 4], strata=[1]),
            "strata has 1 labels for 4 units",
        ),
        (
            lambda: correlation_null([1.0, 2, 3, 4], [1.0, 2, 3, 4], strata=list("abcd")),
            "each of 4 units in a stratum of its own",
        ),
        (
            lambda: correlation_null([1.0, 2, 3, 4], [1.0, 2, 3, 4], draws=0),
            "draws=0 must be an integer of 1 or more",
        ),
    ],
)
def test_refusals(unchecked, call, message):
    with pytest.raises(EmlensError, match=message):
        call()


def test_the_null_given_covariates_is_centred_where_the_plain_one_is_not_the_question():
    rng = np.random.default_rng(3)
    rate = rng.normal(size=40)
    # related through the rate alone
    x, y = rate + 0.3 * rng.normal(size=40), rate + 0.3 * rng.normal(size=40)
    assert correlation_null(x, y, draws=499).p_value(pearson(x, y).value, "two-sided") <= 0.01
    null = correlation_null(x, y, covariates=rate, draws=499)
    assert (
        null.p_value(partial_correlation(x, y, rate).value, "two-sided") > 0.05
        and "covariates partialled out" in null.label
    )
    assert abs(null.mean) < 0.05 and null.sd == pytest.approx(1 / np.sqrt(40 - 3), rel=0.15)
    linked = y + 2 * x
    assert (
        correlation_null(x, linked, covariates=rate, draws=499).p_value(
            partial_correlation(x, linked, rate).value
        )
        <= 0.01
    )


def test_covariates_that_explain_a_sample_leave_no_null(unchecked):
    x = np.arange(10.0)
    with pytest.raises(
        EmlensError, match="the covariates explain x completely, so no correlation is left to test"
    ):
        correlation_null(x, x**2, covariates=2 * x, draws=9)
