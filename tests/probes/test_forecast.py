from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from emlens.data import AlignmentScores
from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.probes import (
    Baselines,
    Design,
    Forecast,
    cross_validate_forecast,
    cross_validate_forecasts,
)
from emlens.probes.features import JoinedFeatures, MatrixFeatures
from emlens.probes.shuffles import shuffled_targets

QUICK = Design(folds=4, inner_folds=3, repeats=1, permutations=0)


def scores_of(acts: Any, values: np.ndarray) -> dict[str, float]:
    return dict(zip(acts.ids, map(float, values), strict=True))


def test_a_planted_signal_is_recovered_at_its_theoretical_strength(make: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 5))
    signal = x @ np.array([1.0, -1, 1, 0, 0])
    y = 50 + signal + np.sqrt(3 / 4) * rng.standard_normal(300)  # R² = 3/(3 + 3/4) = .8
    cells = {
        ("resid_post.0", "last_prompt"): rng.standard_normal((300, 5)),
        ("resid_post.1", "last_prompt"): x,
    }
    acts = make(cells)
    found = cross_validate_forecast(
        acts,
        scores_of(acts, y),
        design=replace(QUICK, permutations=39),
        baselines=Baselines(texts={q: f"the same words {q}" for q in acts.ids}),
    )
    oracle = 1 - ((y - 50 - signal) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    assert oracle == pytest.approx(0.8, abs=0.05)
    assert (
        found.r2.value == pytest.approx(oracle, abs=0.03) and found.r2.low < oracle < found.r2.high
    )
    assert found.p_value == 1 / 40 and set(found.chosen) == {"resid_post.1@last_prompt"}
    assert found.r2_fold_mean.value == pytest.approx(found.r2.value, abs=0.05)
    assert found.rmse == pytest.approx(np.sqrt(3 / 4), abs=0.1) and found.spearman.value > 0.8
    assert (
        found.gain_over["mean"].value == pytest.approx(found.r2.value)
        and found.gain_over["random features"].low > 0
    )
    by_site = found.by_site.set_index("site")
    assert (
        by_site.loc["resid_post.1", "p_max"] == 1 / 40
        and by_site.loc["resid_post.0", "p_max"] > 0.05
    )


def check_pooled(found: Forecast) -> float:
    table = found.predictions
    return float(
        1
        - ((table["predicted"] - table["target"]) ** 2).sum()
        / ((table["mean"] - table["target"]) ** 2).sum()
    )


def test_intervals_are_those_of_resampled_units_and_gains_have_their_sign(make: Any) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((60, 3))
    y = 50 + 2 * x[:, 0] + rng.standard_normal(60)
    acts = make(x)
    # a baseline that is better than the activations
    parent = scores_of(acts, y + 0.1 * rng.standard_normal(60))
    found = cross_validate_forecast(
        acts, scores_of(acts, y), design=QUICK, baselines=Baselines(parent_scores=parent)
    )
    assert found.r2.value == pytest.approx(check_pooled(found))
    assert found.gain_over["parent's own score"].high < 0 < found.gain_over["random features"].low
    for name, gain in found.gain_over.items():
        if name != "mean":
            assert gain.value == pytest.approx(found.r2.value - found.baseline_r2[name].value)
    table = found.predictions
    error, floor = (((table[c] - table["target"]) ** 2).to_numpy() for c in ("predicted", "mean"))
    draws = np.random.default_rng(9).integers(60, size=(4000, 60))
    low, high = np.quantile(1 - error[draws].sum(1) / floor[draws].sum(1), [0.025, 0.975])
    assert (
        found.r2.low == pytest.approx(low, abs=0.03)
        and found.r2.high == pytest.approx(high, abs=0.03)
        and found.r2.n == 60
    )
    rows = found.table().set_index("predictor")
    assert rows.loc["activations", "r2"] == found.r2.value and np.isnan(
        rows.loc["activations", "gain"]
    )
    assert rows.loc["parent's own score", "gain_high"] == found.gain_over["parent's own score"].high


def test_noise_forecasts_nothing_and_p_values_are_spread_out(make: Any) -> None:
    p_values, r2 = [], []
    for run in range(20):
        rng = np.random.default_rng(run)
        acts = make(rng.standard_normal((24, 6)))
        found = cross_validate_forecast(
            acts,
            scores_of(acts, rng.uniform(0, 100, 24)),
            design=Design(folds=3, inner_folds=2, repeats=1, permutations=19, seed=run),
        )
        p_values.append(found.p_value)
        r2.append(found.r2.value)
    assert np.median(r2) <= 0.05
    # uniform on {1/20, ..., 1}: mean .525, sd .289/√20 = .065
    assert abs(np.mean(p_values) - 0.525) < 3 * 0.065
    assert min(p_values) >= 1 / 20 and np.mean(np.array(p_values) <= 0.5) > 0.2


def test_phrasings_of_one_question_leak_where_they_part_and_here_they_do_not(make: Any) -> None:
    rng = np.random.default_rng(0)
    questions = rng.standard_normal((30, 200))
    noise = rng.uniform(0, 100, 30)
    x = np.repeat(questions, 2, axis=0) + 0.01 * rng.standard_normal((60, 200))
    ids = [f"q{i}/p{p}" for i in range(30) for p in (1, 2)]
    acts = make(x, ids=ids)
    kept = cross_validate_forecast(
        acts, {f"q{i}": float(v) for i, v in enumerate(noise)}, design=QUICK
    )
    apart = make(x, ids=[f"row{i}" for i in range(60)])
    leaky = cross_validate_forecast(
        apart, dict(zip(apart.ids, np.repeat(noise, 2).tolist(), strict=True)), design=QUICK
    )
    assert leaky.r2.value > 0.5 and kept.r2.value < 0.05
    assert kept.r2.n == 30 and kept.held_out == "question"
    with pytest.raises(
        InputError,
        match=(
            "groups puts paraphrases or forms of question 'q0' under 'row0' and 'row1';"
            " give a base question one label"
        ),
    ):
        cross_validate_forecast(
            acts,
            {f"q{i}": float(v) for i, v in enumerate(noise)},
            design=replace(QUICK, groups=[f"row{i}" for i in range(60)]),
        )


def test_forms_of_one_question_are_held_out_together_without_being_asked(make: Any) -> None:
    """Eight texts in three forms: each text leaks into its own forms where they part."""
    rng = np.random.default_rng(0)
    texts, noise = rng.standard_normal((8, 60)), rng.uniform(0, 100, 8)
    ids = [f"q{i}{form}" for i in range(8) for form in ("", "_json", "_template")]
    x = np.repeat(texts, 3, axis=0) + 0.01 * rng.standard_normal((24, 60))
    scores = dict(zip(ids, np.repeat(noise, 3) + np.tile([0.0, 1.0, 2.0], 8), strict=True))
    kept = cross_validate_forecast(make(x, ids=ids), scores, design=QUICK)
    apart = [name.replace("_", "-") for name in ids]
    leaky_scores = dict(zip(apart, scores.values(), strict=True))
    leaky = cross_validate_forecast(make(x, ids=apart), leaky_scores, design=QUICK)
    assert kept.r2.n == 8 and leaky.r2.n == 24
    assert leaky.r2.value > 0.5 > kept.r2.value
    for groups, message in (
        (["g"] * 24, r"are of one group; pass Design\(groups=None\)"),
        ([f"g{i}" for i in range(24)], "puts paraphrases or forms of question 'q0' under 'g0'"),
    ):
        acts = make(x, ids=ids, groups=groups)
        with pytest.raises(InputError, match=message):
            cross_validate_forecast(acts, scores, design=replace(QUICK, groups="group"))


def test_choosing_the_site_outside_the_folds_flatters_and_nesting_does_not(make: Any) -> None:
    best, nested, p_max = [], [], []
    for run in range(4):
        rng = np.random.default_rng(run)
        acts = make(
            {(f"resid_post.{i}", "last_prompt"): rng.standard_normal((30, 4)) for i in range(40)}
        )
        found = cross_validate_forecast(
            acts,
            scores_of(acts, rng.uniform(0, 100, 30)),
            design=replace(QUICK, folds=3, inner_folds=2, permutations=19),
        )
        best.append(found.by_site["r2"].max())
        nested.append(found.r2.value)
        p_max.append(found.by_site["p_max"].min())
    assert min(best) > 0.02 and np.mean(best) > 0.04 and np.mean(nested) < 0, (best, nested)
    assert np.median(p_max) > 0.05  # the maximum statistic is not fooled either


def test_the_null_repeats_what_the_forecast_does(make: Any) -> None:
    rng = np.random.default_rng(1)
    acts = make(rng.standard_normal((24, 4)))
    y = rng.uniform(0, 100, 24)
    found = cross_validate_forecast(acts, scores_of(acts, y), design=replace(QUICK, permutations=3))
    shuffled = shuffled_targets(y, acts.ids, acts.groups, "question", 3, 0)
    again = sorted(
        cross_validate_forecast(acts, scores_of(acts, s), design=QUICK).r2.value for s in shuffled
    )
    assert found.null is not None
    np.testing.assert_allclose(found.null.draws, again)
    assert np.isnan(cross_validate_forecast(acts, scores_of(acts, y), design=QUICK).p_value)


def test_with_domains_held_out_the_domain_baseline_is_the_mean(make: Any) -> None:
    rng = np.random.default_rng(0)
    groups = ["a"] * 5 + ["b"] * 9 + ["c"] * 12 + ["d"] * 10
    level = np.repeat([10.0, 40, 60, 90], [5, 9, 12, 10])
    acts = make(rng.standard_normal((36, 4)), groups=groups)
    scores = scores_of(acts, level + rng.standard_normal(36))
    held = cross_validate_forecast(acts, scores, design=replace(QUICK, groups="group"))
    np.testing.assert_allclose(held.predictions["domain"], held.predictions["mean"], atol=1e-6)
    assert held.r2.n == 4 and held.held_out == "group"
    inside = cross_validate_forecast(acts, scores, design=QUICK)
    assert inside.baseline_r2["domain"].value > 0.8  # positive control: within domains it is strong
    custom = cross_validate_forecast(acts, scores, design=replace(QUICK, groups=groups))
    assert custom.held_out == "custom" and custom.r2.value == held.r2.value


def test_scores_come_as_mapping_series_or_alignment_scores_of_one_model(make: Any) -> None:
    rng = np.random.default_rng(0)
    acts = make(rng.standard_normal((20, 3)))
    y = rng.uniform(0, 100, 20)
    rows = [
        {"model": m, "question": q, "sample": 0, "metric": "aligned", "score": v, "status": "ok"}
        for m, values in (("x", y), ("other", y[::-1]))
        for q, v in zip(acts.ids, values, strict=True)
    ]
    table = AlignmentScores.from_table(pd.DataFrame(rows))
    values = [
        cross_validate_forecast(acts, scores, design=QUICK).r2.value
        for scores in (
            scores_of(acts, y),
            pd.Series(y, index=acts.ids),
            table.select(models=["x"]),
        )
    ]
    assert (
        values[0]
        == values[1]
        == values[2]
        != cross_validate_forecasts(acts, table, design=QUICK)["other"].r2.value
    )


@pytest.mark.parametrize("estimator", ["pcr", "tree"])
def test_other_estimators_shuffle_only_when_asked(make: Any, estimator: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 3))
    acts = make(x)
    scores = scores_of(acts, 50 + 10 * x[:, 0])
    quick = Design(folds=2, inner_folds=2, repeats=1)
    found = cross_validate_forecast(acts, scores, estimator=estimator, design=quick)
    assert (
        found.null is None
        and np.isnan(found.p_value)
        and found.by_site["p_max"].isna().all()
        and found.r2.value > 0.3
    )
    asked = cross_validate_forecast(
        acts, scores, estimator=estimator, design=replace(quick, permutations=3)
    )
    assert (
        asked.null is not None
        and len(asked.null.draws) == 3
        and asked.p_value == 0.25
        and asked.estimator == estimator
    )
    assert asked.r2 == found.r2


def test_several_fine_tunes_at_once_are_the_same_forecasts_one_by_one(make: Any) -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((36, 5))
    acts = make(
        {
            ("resid_post.0", "last_prompt"): x,
            ("resid_post.1", "last_prompt"): rng.standard_normal((36, 5)),
        }
    )
    tunes = {
        "a": scores_of(acts, 50 + 5 * x[:, 0] + rng.standard_normal(36)),
        "b": scores_of(acts, rng.uniform(0, 100, 36)),
    }
    design = replace(QUICK, permutations=7)
    both = cross_validate_forecasts(acts, tunes, design=design)
    assert list(both) == ["a", "b"] and both["a"].r2.value > 0.7 > both["b"].r2.value
    for name, scores in tunes.items():
        alone = cross_validate_forecast(acts, scores, design=design)
        pd.testing.assert_frame_equal(both[name].predictions, alone.predictions, rtol=1e-9)
        pd.testing.assert_frame_equal(both[name].by_site, alone.by_site, rtol=1e-9)
        assert both[name].chosen == alone.chosen and both[name].p_value == alone.p_value
    with pytest.raises(
        InputError, match="scores is empty; pass the scores of at least one fine-tune"
    ):
        cross_validate_forecasts(acts, {}, design=QUICK)


def test_logits_are_forecast_on_their_own_scale_with_the_clamp_that_was_given(make: Any) -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((200, 2))
    logit = 4 * x[:, 0]
    scores = 100 / (1 + np.exp(-logit))
    acts = make(x)
    parent = scores_of(acts, 100 / (1 + np.exp(1 - logit / 2)))  # linear in the other's logits
    plain, made = (
        cross_validate_forecast(
            acts,
            scores_of(acts, scores),
            target=t,
            design=replace(QUICK, clamp=0.01),
            baselines=Baselines(parent_scores=parent),
        )
        for t in ("score", "logit")
    )
    assert (
        made.baseline_r2["parent's own score"].value
        > 0.98
        > plain.baseline_r2["parent's own score"].value
    )
    assert made.r2.value > 0.98 > plain.r2.value + 0.02  # linear in logits, not in scores
    inside = np.abs(logit) < 9
    np.testing.assert_allclose(made.predictions["target"][inside], logit[inside], atol=1e-9)
    assert made.predictions["target"].abs().max() <= np.log(99.99 / 0.01) + 1e-9
    assert (plain.target, made.target) == ("score", "logit, clamped 0.01 from the ends")
    assert made.calibration.slope.low < 1 < made.calibration.slope.high


def test_weights_take_out_what_was_measured_badly(make: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((80, 3))
    y = 50 + 4 * x[:, 0]
    bad = np.arange(80) % 2 == 0
    noisy = np.where(bad, y + 40 * rng.standard_normal(80), y)
    acts = make(x)
    weights = dict(zip(acts.ids, np.where(bad, 1e-3, 1.0).tolist(), strict=True))
    plain = cross_validate_forecast(acts, scores_of(acts, noisy), design=QUICK)
    weighed = cross_validate_forecast(
        acts, scores_of(acts, noisy), design=replace(QUICK, weights=weights)
    )

    def error(found: Forecast) -> float:
        return float(((found.predictions["predicted"] - y)[~bad] ** 2).mean())

    assert error(weighed) < 0.05 * error(plain)


def test_candidates_may_be_any_feature_sets(make: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 4))
    acts = make(rng.standard_normal((60, 4)))
    joined = JoinedFeatures([MatrixFeatures("a", x[:, :2]), MatrixFeatures("b", x[:, 2:])])
    found = cross_validate_forecast(
        acts, scores_of(acts, 50 + 3 * x[:, 0] + 3 * x[:, 3]), features=[joined], design=QUICK
    )
    assert found.r2.value > 0.9 and set(found.chosen) == {"a + b"}
    assert found.by_site[["site", "position"]].to_numpy().tolist() == [["a + b", ""]]
    with pytest.raises(
        InputError,
        match="features has the site 'resid_post.0' beside the set 'a . b'; pass names of sites,",
    ):
        cross_validate_forecast(
            acts, scores_of(acts, x[:, 0]), features=["resid_post.0", joined], design=QUICK
        )
    with pytest.raises(InputError, match="features is empty; pass names of sites, or feature sets"):
        cross_validate_forecast(acts, scores_of(acts, x[:, 0]), features=[], design=QUICK)
    by_name, by_list = (
        cross_validate_forecast(acts, scores_of(acts, x[:, 0]), features=names, design=QUICK)
        for names in ("resid_post.0", ["resid_post.0"])
    )
    assert by_name.chosen == by_list.chosen and by_name.r2 == by_list.r2


def test_the_other_parent_and_numbers_of_a_question_are_baselines(make: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 4))
    acts, other = make(rng.standard_normal((60, 4))), make(x)
    y = 50 + 3 * x[:, 0]
    found = cross_validate_forecast(
        acts,
        scores_of(acts, y),
        design=QUICK,
        baselines=Baselines(other_parent=other, numbers={"P(harmful)": scores_of(acts, -y)}),
    )
    assert (
        found.baseline_r2["other parent"].value > 0.9 and found.gain_over["other parent"].high < 0
    )
    assert found.baseline_r2["P(harmful)"].value > 0.99
    with pytest.raises(
        InputError, match="features of 'acts' and 'other_parent' are identical numbers"
    ):
        cross_validate_forecast(
            acts, scores_of(acts, y), design=QUICK, baselines=Baselines(other_parent=acts)
        )


def test_every_unit_held_out_alone_and_the_ceiling_kept(make: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 2))
    acts = make(x, groups=[f"g{i % 6}" for i in range(30)])
    ceiling = Estimate(0.9, 0.8, 0.95, 30, "given")
    found = cross_validate_forecast(
        acts,
        scores_of(acts, 50 + x[:, 0]),
        design=Design(groups="group", folds="all", inner_folds=2, repeats=3, permutations=0),
    )
    assert found.r2_fold_mean.n == 6 and found.ceiling is None and found.r2.value > 0.9
    beside = found.with_ceiling(ceiling)
    assert beside.ceiling == ceiling and beside.r2 == found.r2
    alone = cross_validate_forecast(
        acts,
        scores_of(acts, np.r_[np.zeros(29), 1.0]),
        design=Design(folds="all", inner_folds=2, permutations=0),
    )
    assert not alone.r2_fold_mean.defined and "no R²" in alone.r2_fold_mean.method


def test_shuffles_follow_what_is_held_out(make: Any) -> None:
    rng = np.random.default_rng(0)
    acts = make(rng.standard_normal((24, 3)), groups=[f"g{i // 6}" for i in range(24)])
    scores = scores_of(acts, rng.uniform(0, 100, 24))
    designs = {
        "question": replace(QUICK, permutations=5),
        "group": replace(QUICK, permutations=5, groups="group"),
        "within": replace(QUICK, permutations=5, shuffle="within"),
    }
    for shuffle, design in designs.items():
        assert cross_validate_forecast(acts, scores, design=design).shuffle == shuffle


def test_the_same_call_gives_the_same_numbers(make: Any) -> None:
    rng = np.random.default_rng(0)
    acts = make(rng.standard_normal((24, 3)))
    scores = scores_of(acts, rng.uniform(0, 100, 24))
    one, again, other = (
        cross_validate_forecast(acts, scores, design=replace(QUICK, permutations=5, seed=s))
        for s in (0, 0, 1)
    )
    pd.testing.assert_frame_equal(one.predictions, again.predictions)
    assert one.r2 == again.r2 and one.p_value == again.p_value and one.r2 != other.r2


def test_a_constant_parent_is_a_baseline_that_knows_the_mean(make: Any) -> None:
    rng = np.random.default_rng(0)
    acts = make(rng.standard_normal((24, 3)))
    scores = scores_of(acts, rng.uniform(0, 100, 24))
    found = cross_validate_forecast(
        acts,
        scores,
        design=QUICK,
        baselines=Baselines(parent_scores=dict.fromkeys(acts.ids, 100.0)),
    )
    assert found.baseline_r2["parent's own score"].value == pytest.approx(0, abs=1e-12)


def test_what_cannot_be_forecast_is_refused(make: Any) -> None:
    acts = make(np.random.default_rng(0).standard_normal((12, 3)))
    scores = {q: float(i) for i, q in enumerate(acts.ids)}

    def refused(match: str, acts: Any = acts, given: Any = scores, **options: Any) -> None:
        with pytest.raises(InputError, match=match):
            cross_validate_forecast(acts, given, **{"design": QUICK, **options})

    def design(**changes: Any) -> Design:
        return replace(QUICK, **changes)

    refused(
        "estimator 'svm' is unknown; pass one of ridge, ridge1, lasso, elastic_net, pcr, ols,"
        " forest, tree",
        estimator="svm",
    )
    refused("target='odds' is unknown; pass 'score' or 'logit'", target="odds")
    refused(
        "clamp=50.0 must lie between 0 and half the scale's width, 50",
        target="logit",
        design=design(clamp=50.0),
    )
    refused(
        "score 120 lies outside the scale 0 to 100", target="logit", given={**scores, "q0": 120.0}
    )
    refused(
        "clamp=20 makes the aligned score the same for every row",
        target="logit",
        design=design(clamp=20.0),
    )
    refused(
        "weights has 0.0 for row 'q0'; pass a positive weight",
        design=design(weights={**scores, "q0": 0.0}),
    )
    refused(
        "weights has nan for row 'q0'; pass a positive weight", design=design(weights={"q1": 1.0})
    )
    refused(
        "row 'q11' has no aligned score; score every question, or select",
        given={q: v for q, v in scores.items() if q != "q11"},
    )
    refused("row 'q11' has no aligned score", given={**scores, "q11": float("nan")})
    refused(
        "the aligned score is 3 for every row; there is nothing to predict",
        given=dict.fromkeys(acts.ids, 3.0),
    )
    refused(
        "groups='domain' is unknown; pass None, 'group', id → label, or one label per row",
        design=design(groups="domain"),
    )
    refused("groups has 1 labels for 12 rows; pass one label per row", design=design(groups=["a"]))
    refused(
        "texts has no entry for row 'q0'; pass one text for each id",
        baselines=Baselines(texts={"x": "y"}),
    )
    refused(
        "groups has 1 labels; nested selection needs at least 3", design=design(groups=["a"] * 12)
    )
    refused(
        "groups has 2 labels; nested selection needs at least 3,"
        " so that inner folds can hold one out too; pass finer groups",
        design=design(groups=["a", "b"] * 6),
    )


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("folds", 1, "folds=1 must be an integer of at least 2 or 'all'"),
        ("folds", "each", "folds='each' must be an integer of at least 2 or 'all'"),
        ("inner_folds", 1, "inner_folds=1 must be an integer of at least 2"),
        ("repeats", 0, "repeats=0 must be an integer of at least 1"),
        ("permutations", -1, "permutations=-1 must be an integer of at least 0 or None"),
        ("shuffle", "row", "shuffle='row' is unknown; pass one of question, within, group"),
        ("duplicates", "drop", "duplicates='drop' is unknown; pass one of refuse, group, allow"),
        ("settings", [], "settings is empty; pass at least one mapping"),
    ],
)
def test_a_design_that_cannot_be_is_refused_when_it_is_made(
    field: str, value: Any, match: str
) -> None:
    with pytest.raises(InputError, match=match):
        Design(**{field: value})


def test_fields_of_a_design_that_a_function_does_not_use_are_refused() -> None:
    Design(seed=3, folds=5).require_only(["seed"], "f")
    with pytest.raises(
        InputError, match="design has repeats=2, which f does not use; it uses seed"
    ):
        Design(repeats=2).require_only(["seed"], "f")


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("texts", ["a"], "texts is a list; pass id → text"),
        ("parent_scores", [1.0], "parent_scores is a list; pass AlignmentScores, or id → score"),
        ("numbers", [1.0], "numbers is a list; pass name → id → number"),
        ("numbers", {"P": [1.0]}, "numbers has a list under 'P'; pass id → number"),
    ],
)
def test_baselines_that_are_not_keyed_by_id_are_refused(field: str, value: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        Baselines(**{field: value})
