"""Scores before and after: the numbers of scipy, corrections over the whole table, and ceilings
from other seeds.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from emlens.studies import prior_scores

IDS = [f"g{i % 6}/{i}" for i in range(48)]


@pytest.fixture(scope="module")
def material() -> Any:
    """What the module asks of a study's material."""
    rng = np.random.default_rng(0)
    before = rng.uniform(40, 100, 48)
    common = 0.5 * before + 10 * rng.standard_normal(48)
    scores = {
        "instruct": before,
        "base": rng.uniform(0, 100, 48),
        "bad@0": common + 4 * rng.standard_normal(48),
        "bad@1": common + 4 * rng.standard_normal(48),
        "flat@0": np.full(48, 100.0),
        "alone@0": common,
    }
    specs = {
        name: SimpleNamespace(group=name.split("@")[0], seed=int(name[-1]))
        for name in scores
        if "@" in name
    }
    family = SimpleNamespace(specs=specs, finetuned=dict.fromkeys(specs))
    return SimpleNamespace(
        family=family,
        groups={q: q.split("/")[0] for q in IDS},
        per_question=lambda name, asked_as="": pd.Series(scores[name], index=IDS),
        raw=scores,
    )


def test_each_test_is_scipys_with_its_effect(material: Any) -> None:
    rows = {
        (r["parent"], r["test"]): r
        for r in prior_scores.changes(material, "bad@0", ["instruct", "base"], IDS, 0)
    }
    assert len(rows) == 10
    after, before = material.raw["bad@0"], material.raw["instruct"]
    expected = {
        "paired t": stats.ttest_rel(after, before).pvalue,
        "Wilcoxon": stats.wilcoxon(after, before, method="exact").pvalue,
        "Welch t": stats.ttest_ind(after, before, equal_var=False).pvalue,
        "Brown-Forsythe": stats.levene(after, before, center="median").pvalue,
    }
    for test, p in expected.items():
        assert rows["instruct", test]["p"] == pytest.approx(p)
    paired = rows["instruct", "paired t"]
    assert paired["estimate"] == pytest.approx((after - before).mean()) == paired["shift_by_domain"]
    assert (
        paired["shift_by_domain_low"] < paired["estimate"] < paired["shift_by_domain_high"]
        and paired["effect_name"] == "Cohen's d_z"
    )
    assert rows["instruct", "F"]["estimate"] == pytest.approx(
        after.var(ddof=1) / before.var(ddof=1)
    )


def test_wilcoxon_takes_base_questions_as_pairs_and_is_exact_with_ties() -> None:
    before = pd.Series({f"q{i}{form}": 60.0 for i in range(5) for form in ("", "_json")})
    # means over both forms: four ties at -10 and one at 5; W = 5 among 32 patterns of signs
    after = before - pd.Series(
        {q: -5.0 if q.startswith("q4") else 5.0 + 10 * q.endswith("_json") for q in before.index}
    )
    scores = {"instruct": before, "bad@0": after}
    material: Any = SimpleNamespace(
        groups=dict.fromkeys(before.index, ""), per_question=lambda name, asked_as="": scores[name]
    )
    rows = prior_scores.changes(material, "bad@0", ["instruct"], list(before.index), 0)
    of_test = {row["test"]: row for row in rows}["Wilcoxon"]
    # ranks 1, 3.5 (four times): sums of at most 1 are {} and {1}, on either side
    assert (of_test["n"], of_test["p"]) == (5, pytest.approx(4 / 32))
    assert of_test["estimate"] == -10
    # five pairs cannot reach a level of 95 %
    assert np.isnan(of_test["estimate_low"]) and np.isnan(of_test["estimate_high"])


def test_corrections_run_over_every_test_that_has_a_p_value(material: Any) -> None:
    rows = prior_scores.changes(material, "bad@0", ["instruct"], IDS, 0) + prior_scores.changes(
        material, "flat@0", ["instruct"], IDS, 0
    )
    table = prior_scores.corrected(rows)
    tested = table["p"].notna()
    # no spread to test where every score is 100
    assert (tested.to_numpy() == [True] * 5 + [True] * 3 + [False] * 2).all()
    np.testing.assert_allclose(
        table.loc[tested, "p_bonferroni"], np.minimum(1, 8 * table.loc[tested, "p"])
    )
    np.testing.assert_allclose(
        table.loc[tested, "p_bh"], stats.false_discovery_control(table.loc[tested, "p"])
    )
    assert (table.loc[~tested, "effect_name"] == "no spread").all()


def test_relations_are_correlations_with_intervals_over_domains(material: Any) -> None:
    rows = prior_scores.relations(material, "bad@0", ["instruct", "base"], IDS)
    assert rows[0]["pearson"] == pytest.approx(
        np.corrcoef(material.raw["instruct"], material.raw["bad@0"])[0, 1]
    )
    assert (
        rows[0]["pearson_low"] < rows[0]["pearson"] < rows[0]["pearson_high"]
        and rows[0]["null"] == 0
    )
    assert abs(rows[1]["spearman"]) < 0.4 < rows[0]["spearman"]


def test_statistics_have_intervals(material: Any) -> None:
    row = prior_scores.statistics(
        "bad@0", "after", material.per_question("bad@0"), [q.split("/")[0] for q in IDS], 0, "bad@0"
    )
    values = material.raw["bad@0"]
    assert (row["mean"], row["sd"]) == (
        pytest.approx(values.mean()),
        pytest.approx(values.std(ddof=1)),
    )
    assert (
        row["mean_low"] < row["mean"] < row["mean_high"]
        and row["sd_low"] < row["sd_high"]
        and row["units"] == 6
    )


def test_a_ceiling_needs_another_seed_of_the_group(material: Any) -> None:
    ceiling, runs = prior_scores.ceiling(material, "bad@0", IDS, 0)
    assert runs == ("bad@0", "bad@1") and ceiling.n == 6
    a, b = material.raw["bad@0"], material.raw["bad@1"]
    assert ceiling.value == pytest.approx(
        np.cov(a, b)[0, 1] / ((a.var(ddof=1) + b.var(ddof=1)) / 2)
    )
    for name in ("alone@0", "flat@0"):
        undefined, _ = prior_scores.ceiling(material, name, IDS, 0)
        assert not undefined.defined and "no second seed" in undefined.method
