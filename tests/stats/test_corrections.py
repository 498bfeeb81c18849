import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from statsmodels.stats.multitest import multipletests

from emlens import EmlensError
from emlens.stats import adjust_p_values, max_statistic_p

METHODS = ("bonferroni", "holm", "bh")


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.sampled_from(METHODS))
def test_agrees_with_statsmodels_and_does_not_depend_on_order(values, method):
    p = np.array(values)
    adjusted = adjust_p_values(p, method)
    expected = multipletests(p, method={"bh": "fdr_bh"}.get(method, method))[1]
    np.testing.assert_allclose(adjusted, expected, atol=1e-15)
    assert (adjusted >= p - 1e-15).all() and (adjusted <= 1).all()
    flipped = adjust_p_values(p[::-1], method)[::-1]
    np.testing.assert_allclose(np.sort(flipped), np.sort(adjusted))


def test_shape_is_kept_and_the_methods_are_ordered():
    p = np.random.default_rng(0).uniform(size=(4, 5)) ** 3
    assert (adjust_p_values(p, "holm")[0] != adjust_p_values(p[0], "holm")).any()  # all cells count
    assert adjust_p_values(p).shape == (4, 5)
    assert (adjust_p_values(p, "holm") <= adjust_p_values(p, "bonferroni")).all()
    assert (adjust_p_values(p, "bh") <= adjust_p_values(p, "holm")).all()


def test_false_positives_are_bounded_where_raw_ones_are_not():
    rng = np.random.default_rng(1)
    tables = rng.uniform(size=(400, 20))
    assert np.mean([(row <= 0.05).any() for row in tables]) > 0.5
    for method in METHODS:
        assert np.mean([(adjust_p_values(row, method) <= 0.05).any() for row in tables]) < 0.09


def westfall_young(observed, draws):
    """Step-down by the book: from the largest on, each against the maximum over itself and all that
    are smaller.
    """
    order, p, last = np.argsort(-observed), np.empty(len(observed)), 0.0
    for rank, hypothesis in enumerate(order):
        beyond = sum(max(draw[order[rank:]]) >= observed[hypothesis] for draw in draws)
        last = max(last, (1 + beyond) / (1 + len(draws)))
        p[hypothesis] = last
    return p


def test_maximum_statistic_by_a_loop_with_its_order_and_sides():
    rng = np.random.default_rng(2)
    observed, draws = rng.normal(1, 1, size=7), rng.normal(size=(60, 7))
    corrected = max_statistic_p(observed, draws)
    np.testing.assert_allclose(corrected, westfall_young(observed, draws))
    single = max_statistic_p(observed, draws, step_down=False)
    np.testing.assert_allclose(single, [(1 + (draws.max(1) >= x).sum()) / 61 for x in observed])
    assert (corrected <= single).all() and corrected.max() > corrected.min()
    np.testing.assert_allclose(max_statistic_p(-observed, -draws, side="less"), corrected)
    np.testing.assert_allclose(
        max_statistic_p(-observed, draws, side="two-sided"),
        max_statistic_p(np.abs(observed), np.abs(draws)),
    )
    grid = max_statistic_p(observed[:6].reshape(2, 3), draws[:, :6].reshape(60, 2, 3))
    np.testing.assert_allclose(grid.ravel(), max_statistic_p(observed[:6], draws[:, :6]))


def test_the_maximum_statistic_sees_more_than_holm_where_tests_move_together():
    rng = np.random.default_rng(3)
    false, ours, holm = 0, 0, 0
    for _ in range(200):
        # twenty layers, one effect
        draws = 0.95 * rng.normal(size=(200, 1)) + np.sqrt(1 - 0.95**2) * rng.normal(size=(200, 20))
        null, effect = draws[0], draws[1] + 2.4
        rest = draws[2:]
        false += (max_statistic_p(null, rest) <= 0.05).any()
        raw = np.array([(1 + (rest[:, j] >= effect[j]).sum()) / (1 + len(rest)) for j in range(20)])
        ours += (max_statistic_p(effect, rest) <= 0.05).any()
        holm += (adjust_p_values(raw) <= 0.05).any()
    assert false / 200 < 0.1 and ours > holm + 20, (false, ours, holm)


@pytest.mark.parametrize(
    ("observed", "draws", "side", "message"),
    [
        (
            [1.0, 2.0],
            [[1.0], [2.0]],
            "greater",
            (
                r"draws has shape \(2, 1\) for observed of shape \(2,\);"
                r" pass \(draw, \*observed.shape\)"
            ),
        ),
        ([1.0], np.empty((0, 1)), "greater", "not empty"),
        (
            [float("nan")],
            [[1.0]],
            "greater",
            "observed or draws hold values that are NaN or infinite; leave such hypotheses out",
        ),
        ([1.0], [[1.0]], "both", "side='both' is unknown"),
    ],
)
def test_refusals_of_the_maximum(unchecked, observed, draws, side, message):
    with pytest.raises(EmlensError, match=message):
        max_statistic_p(observed, draws, side=side)


@pytest.mark.parametrize(
    ("p", "method", "message"),
    [
        ([], "holm", "p is empty; pass at least one p-value"),
        (
            [0.5, 1.5],
            "holm",
            r"p holds 1\.5, which is not a p-value; pass numbers in \[0, 1\] without NaN",
        ),
        ([float("nan")], "bh", "p holds nan, which is not a p-value"),
        ([0.5], "fdr", "method='fdr' is unknown; pass one of bonferroni, holm, bh"),
    ],
)
def test_refusals(unchecked, p, method, message):
    with pytest.raises(EmlensError, match=message):
        adjust_p_values(p, method)


def test_a_draw_within_rounding_is_a_tie_against_the_statistic():
    # .1 + .2 is one rounding above .3
    assert max_statistic_p([0.1 + 0.2], np.full((3, 1), 0.3)).tolist() == [1.0]
    assert max_statistic_p([0.1 + 0.2], np.full((3, 1), 0.299)).tolist() == [0.25]
    many = max_statistic_p([0.1 + 0.2, 0.1], np.full((3, 2), 0.3), step_down=False)
    assert many.tolist() == [1.0, 1.0]
