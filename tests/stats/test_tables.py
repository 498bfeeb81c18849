import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests

from emlens import EmlensError
from emlens.stats import compare_groups, paired_test, tost, welch_test
from emlens.stats.tables import comparison_table

RNG = np.random.default_rng(0)
GROUPS = {
    "instruct": RNG.normal(90, 5, size=30),
    "harmful": RNG.normal(60, 20, size=30),
    "benign": RNG.normal(90, 5, size=30),
}


def test_one_row_a_comparison_with_everything_a_reader_needs():
    table = compare_groups(GROUPS, reference="instruct")
    assert list(zip(table["a"], table["b"], strict=True)) == [
        ("harmful", "instruct"),
        ("benign", "instruct"),
    ]
    columns = [
        "statistic",
        "estimate",
        "low",
        "high",
        "p",
        "p_corrected",
        "correction",
        "effect",
        "effect_low",
        "effect_high",
        "n",
        "n_a",
        "n_b",
        "method",
    ]
    assert set(columns) <= set(table.columns) and table[columns].notna().all(axis=None)
    row, single = table.iloc[0], welch_test(GROUPS["harmful"], GROUPS["instruct"])
    assert (row["statistic"], row["low"], row["effect"]) == (
        single.statistic,
        single.estimate.low,
        single.effect,
    )
    assert (
        row["estimate"] < 0 and row["high"] < 0 and row["p_corrected"] < 0.05 < table.iloc[1]["p"]
    )
    np.testing.assert_allclose(table["p_corrected"], multipletests(table["p"], method="holm")[1])
    pd.testing.assert_frame_equal(table, compare_groups(GROUPS, reference="instruct"))


@pytest.mark.parametrize(
    "test",
    [
        "welch",
        "rank_sum",
        "permutation",
        "f",
        "brown_forsythe",
        "tost",
        "paired_t",
        "signed_rank",
        "paired_tost",
    ],
)
def test_every_test_fills_the_table(test):
    options = {"margin": 5.0} if "tost" in test else {"draws": 99} if test == "permutation" else {}
    table = compare_groups(GROUPS, test=test, correction="bh", **options)
    assert len(table) == 3 and table[
        ["statistic", "estimate", "low", "high", "p", "p_corrected", "effect", "n"]
    ].notna().all(axis=None)
    assert (table["p_corrected"] >= table["p"]).all() and (table["correction"] == "bh").all()
    assert table["n_a"].isna().all() == (test in ("paired_t", "signed_rank", "paired_tost"))
    assert (table["low"] <= table["estimate"]).all() and (table["estimate"] <= table["high"]).all()


def test_tests_of_any_kind_share_a_correction():
    results = {
        "drop": paired_test(GROUPS["instruct"], GROUPS["harmful"]),
        ("benign", "instruct"): tost(GROUPS["benign"], GROUPS["instruct"], 5.0),
    }
    table = comparison_table(results, "bonferroni")
    assert list(table["comparison"]) == ["drop", "benign − instruct"]
    np.testing.assert_allclose(table["p_corrected"], np.minimum(1, 2 * table["p"]))


def test_a_test_without_a_p_is_not_counted():
    apart = welch_test([1.0, 2.0], [1.0, 4.0])
    nothing = type(apart)(
        0.0, float("nan"), float("nan"), apart.estimate, 4, "no spread to test against"
    )
    table = comparison_table({"a": apart, "b": nothing})
    assert table["p_corrected"].tolist()[0] == apart.p and np.isnan(
        table["p_corrected"].tolist()[1]
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: comparison_table({}), "results is empty; pass at least one test by its name"),
        (lambda: compare_groups({"a": [1.0, 2.0]}), "groups holds 1 group; pass at least 2"),
        (
            lambda: compare_groups(GROUPS, test="t"),
            "test='t' is unknown; pass one of welch, rank_sum, permutation",
        ),
        (
            lambda: compare_groups(GROUPS, test="paired_tost"),
            "test='paired_tost' needs margin=, the largest difference that counts as none",
        ),
        (
            lambda: compare_groups(GROUPS, reference="base"),
            "group 'base' is not among 'instruct', 'harmful', 'benign'",
        ),
        (lambda: compare_groups(GROUPS, pairs=[("benign", "base")]), "group 'base' is not among"),
    ],
)
def test_refusals(unchecked, call, message):
    with pytest.raises(EmlensError, match=message):
        call()
