import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from statsmodels.stats.multitest import multipletests

from emlens import EmlensError
from emlens.stats import adjust_p_values

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


@pytest.mark.parametrize(
    ("p", "method", "message"),
    [
        ([], "holm", "p is empty; pass at least one p-value"),
        ([0.5, 1.5], "holm", r"p holds 1\.5, which is not a p-value; pass numbers in \[0, 1\] without NaN"),
        ([float("nan")], "bh", "p holds nan, which is not a p-value"),
        ([0.5], "fdr", "method='fdr' is unknown; pass one of bonferroni, holm, bh"),
    ],
)
def test_refusals(unchecked, p, method, message):
    with pytest.raises(EmlensError, match=message):
        adjust_p_values(p, method)
