import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from emlens import EmlensError
from emlens.stats import adjust_p_values

METHODS = ("bonferroni", "holm", "bh")


def by_hand(p: np.ndarray, method: str) -> np.ndarray:
    order, n = np.argsort(p), len(p)
    ranked = p[order]
    if method == "bonferroni":
        out = ranked * n
    elif method == "holm":
        out = np.maximum.accumulate(ranked * (n - np.arange(n)))
    else:
        out = np.minimum.accumulate((ranked * n / np.arange(1, n + 1))[::-1])[::-1]
    back = np.empty(n)
    back[order] = np.minimum(out, 1)
    return back


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.sampled_from(METHODS))
def test_agrees_with_the_definition_and_keeps_order(values, method):
    p = np.array(values)
    adjusted = adjust_p_values(p, method)
    np.testing.assert_allclose(adjusted, by_hand(p, method), atol=1e-15)
    assert (adjusted >= p - 1e-15).all() and (adjusted <= 1).all()
    flipped = adjust_p_values(p[::-1], method)[::-1]
    np.testing.assert_allclose(np.sort(flipped), np.sort(adjusted))


def test_bh_agrees_with_scipy_and_holm_beats_bonferroni():
    p = np.random.default_rng(0).uniform(size=(4, 5)) ** 3
    np.testing.assert_allclose(adjust_p_values(p, "bh").ravel(), stats.false_discovery_control(p.ravel()))
    assert adjust_p_values(p).shape == (4, 5)
    assert (adjust_p_values(p, "holm") <= adjust_p_values(p, "bonferroni")).all()
    assert (adjust_p_values(p, "bh") <= adjust_p_values(p, "holm")).all()


def test_false_positives_are_bounded_where_raw_ones_are_not():
    rng = np.random.default_rng(1)
    tables = rng.uniform(size=(400, 20))
    assert np.mean([(row <= 0.05).any() for row in tables]) > 0.5
    for method in METHODS:
        assert np.mean([(adjust_p_values(row, method) <= 0.05).any() for row in tables]) < 0.09


def test_statsmodels_is_imported_only_when_needed():
    code = "import sys, emlens.stats; assert 'statsmodels' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("p", "method", "message"),
    [
        ([], "holm", "p is empty; pass at least one p-value"),
        ([0.5, 1.5], "holm", r"p holds .*1\.5.*, which is not a p-value; pass numbers in \[0, 1\] without NaN"),
        ([float("nan")], "bh", "p holds .*nan.*, which is not a p-value"),
        ([0.5], "fdr", "method='fdr' is unknown; pass one of bonferroni, holm, bh"),
    ],
)
def test_refusals(unchecked, p, method, message):
    with pytest.raises(EmlensError, match=message):
        adjust_p_values(p, method)
