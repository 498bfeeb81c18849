import numpy as np
import pytest
from scipy import stats

from emlens import EmlensError
from emlens.foundation.seeds import numpy_rng
from emlens.stats import mantel_test


def symmetric(rng, n):
    noise = rng.normal(size=(n, n))
    return noise + noise.T


def likeness(v):
    return -np.abs(np.subtract.outer(v, v))


@pytest.mark.parametrize("ranks", [False, True])
def test_agrees_with_scipy_over_pairs_and_with_a_loop_over_permutations(ranks):
    rng = np.random.default_rng(0)
    a = symmetric(rng, 7)
    b = a + 2 * symmetric(rng, 7)
    upper = np.triu_indices(7, 1)
    correlate = stats.spearmanr if ranks else stats.pearsonr
    result = mantel_test(a, b, ranks=ranks, draws=800)
    assert result.statistic == pytest.approx(correlate(a[upper], b[upper]).statistic)
    null = []
    for _ in range(400):
        order = rng.permutation(7)
        null.append(correlate(a[np.ix_(order, order)][upper], b[upper]).statistic)
    above = mantel_test(a, b, ranks=ranks, side="greater", draws=800).p
    assert above == pytest.approx((1 + np.sum(np.array(null) >= result.statistic)) / 401, abs=0.06)
    assert result == mantel_test(a, b, ranks=ranks, draws=800) and result.n == 7
    assert "no interval" in result.estimate.method


def test_pairs_are_not_units_and_the_level_holds():
    """Unrelated matrices whose rows have effects: the p of pairs is far too small too often, that
    of units is not.
    """
    rng = np.random.default_rng(1)
    upper, naive, mantel = np.triu_indices(12, 1), 0, 0
    for _ in range(120):
        a, b = (np.add.outer(v, v) + 0.3 * symmetric(rng, 12) for v in rng.normal(size=(2, 12)))
        naive += stats.pearsonr(a[upper], b[upper]).pvalue < 0.05
        mantel += mantel_test(a, b, draws=99).p <= 0.05
    assert naive / 120 > 0.2 and mantel / 120 < 0.11


def test_what_a_covariate_explains_is_taken_out():
    rng = np.random.default_rng(2)
    length = rng.normal(size=25)
    a, b = (likeness(length) + 0.2 * symmetric(rng, 25) for _ in range(2))
    assert mantel_test(a, b, draws=199).p <= 0.01
    given = mantel_test(a, b, covariates=[length], draws=199)
    assert given.p > 0.05 and "given 1 covariates" in given.method
    upper = np.triu_indices(25, 1)
    design = np.column_stack(
        [np.ones(300), likeness(length)[upper], np.add.outer(length, length)[upper]]
    )
    rest = [m[upper] - design @ np.linalg.lstsq(design, m[upper], rcond=None)[0] for m in (a, b)]
    assert given.statistic == pytest.approx(np.corrcoef(*rest)[0, 1])
    as_matrices = mantel_test(
        a, b, covariates=[likeness(length), np.add.outer(length, length)], draws=199
    )
    assert as_matrices.statistic == pytest.approx(given.statistic)
    shared = symmetric(rng, 25)
    # what is left is found
    assert mantel_test(a + shared, b + shared, covariates=[length], draws=199).p <= 0.02


def test_p_is_that_of_the_same_permutations_by_a_loop():
    """Rows and columns move together, and what moved is freed of the covariate again."""
    rng = np.random.default_rng(6)
    length = rng.normal(size=6)
    a, b = (likeness(length) + symmetric(rng, 6) for _ in range(2))
    b = b + 0.5 * a
    upper = np.triu_indices(6, 1)
    design = np.column_stack(
        [np.ones(15), likeness(length)[upper], np.add.outer(length, length)[upper]]
    )

    def freed(entries):
        return entries - design @ np.linalg.lstsq(design, entries, rcond=None)[0]

    rest = np.zeros((6, 6))
    rest[upper] = freed(a[upper])
    rest += rest.T
    target, draws, above = freed(b[upper]), numpy_rng(0, "mantel_test"), 0
    observed = np.corrcoef(rest[upper], target)[0, 1]
    for _ in range(400):
        order = draws.permutation(np.arange(6))
        above += (
            np.corrcoef(freed(rest[np.ix_(order, order)][upper]), target)[0, 1] >= observed - 1e-12
        )
    assert mantel_test(a, b, covariates=[length], side="greater", draws=400).p == (1 + above) / 401
    assert 20 < above < 380  # a p that could have been another


def test_strata_hold_what_categories_explain():
    rng = np.random.default_rng(3)
    category = np.repeat([0, 1, 2], 8)
    same = np.equal.outer(category, category) * 1.0
    a, b = (2 * same + 0.5 * symmetric(rng, 24) for _ in range(2))
    assert mantel_test(a, b, draws=199).p <= 0.01
    within = mantel_test(a, b, strata=category, draws=199)
    assert within.p > 0.05 and "within strata" in within.method


def test_diagonals_are_not_read():
    rng = np.random.default_rng(4)
    a, b = symmetric(rng, 6), symmetric(rng, 6)
    with_nan = a + np.diag(np.full(6, np.nan))
    assert mantel_test(with_nan, b, draws=50).statistic == pytest.approx(
        mantel_test(a, b, draws=50).statistic
    )


SQUARE = symmetric(np.random.default_rng(5), 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: mantel_test(np.ones((3, 4)), SQUARE),
            r"a has shape \(3, 4\); pass a square matrix over the units",
        ),
        (
            lambda: mantel_test(SQUARE, SQUARE[:4, :4]),
            r"b has shape \(4, 4\); pass a square matrix over 5 units",
        ),
        (lambda: mantel_test(np.ones((3, 3)), SQUARE), "a has 3 units; pass at least 4"),
        (
            lambda: mantel_test(SQUARE / 0, SQUARE),
            "a holds entries off the diagonal that are NaN or infinite",
        ),
        (
            lambda: mantel_test(np.arange(25.0).reshape(5, 5), SQUARE),
            "a is not symmetric .entries differ by 16.; pass the mean of it",
        ),
        (
            lambda: mantel_test(np.ones((5, 5)), SQUARE),
            "the entries of a above the diagonal are constant, so there is no correlation",
        ),
        (
            lambda: mantel_test(SQUARE, 2 * SQUARE, covariates=[SQUARE]),
            "the entries of a above the diagonal are explained by the covariates",
        ),
        (
            lambda: mantel_test(SQUARE, SQUARE, covariates=[[1.0, 2.0]]),
            r"a covariate has shape \(2,\) for 5 units; pass one finite number per unit",
        ),
        (lambda: mantel_test(SQUARE, SQUARE, strata=[1]), "strata has 1 labels for 5 units"),
        (lambda: mantel_test(SQUARE, SQUARE, side="up"), "side='up' is unknown"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_refusals(unchecked, call, message):
    with pytest.raises(EmlensError, match=message):
        call()
