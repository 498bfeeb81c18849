"""What a forecast has to beat before it counts as one from the prior of a model, and which rows are
held out together whatever is passed.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.probes import Baselines, Design, Forecast, cross_validate_forecast
from emlens.probes.baselines import EXPECTED
from emlens.probes.record import corrected_forecasts
from emlens.probes.shuffles import draws_for
from emlens.stats import cluster_bootstrap, pearson, permutation_test

QUICK = Design(folds=4, inner_folds=3, repeats=1, permutations=0)
FORMS = ("", "_json", "_template")


def texts_of(acts: Any) -> dict[str, str]:
    return {name: f"word{number} and more" for number, name in enumerate(acts.ids)}


def forecast_of(make: Any, *, signal: float, stranger: float, **given: Any) -> Forecast:
    """Scores that activations carry by `signal`, and an unrelated model by `stranger`."""
    rng = np.random.default_rng(1)
    score = rng.standard_normal(160)

    def rows(strength: float) -> np.ndarray:
        values = rng.standard_normal((160, 4))
        values[:, 0] += strength * score
        return values

    acts = make(rows(signal), groups=["g"] * 160)
    complete = {
        "texts": texts_of(acts),
        "parent_scores": dict(zip(acts.ids, rng.standard_normal(160), strict=True)),
        "embedding": make({("resid_pre.0", "mean_prompt"): rows(0.0)}),
        "unrelated": make(rows(stranger)),
    }
    return cross_validate_forecast(
        acts,
        dict(zip(acts.ids, score, strict=True)),
        design=replace(QUICK, permutations=39),
        baselines=Baselines(**{**complete, **given}),
    )


def test_a_forecast_is_from_the_prior_where_it_beats_an_unrelated_model(make: Any) -> None:
    beats = forecast_of(make, signal=3.0, stranger=0.5)
    assert beats.verdict == "shown" and not beats.missing
    # the same forecast, and a stranger that knows as much
    alike = forecast_of(make, signal=3.0, stranger=3.0)
    assert alike.r2.value == pytest.approx(beats.r2.value, abs=0.05)
    assert alike.verdict == "undecided"
    assert alike.gain_over["unrelated model"].low < 0 < alike.gain_over["text"].low
    better = forecast_of(make, signal=1.0, stranger=5.0)
    assert better.verdict == "not shown" and better.gain_over["unrelated model"].high < 0
    assert forecast_of(make, signal=0.0, stranger=0.0).verdict != "shown"


@pytest.mark.parametrize(
    ("argument", "names"),
    [
        ("unrelated", ("unrelated model",)),
        ("texts", ("text", "length")),
        ("parent_scores", ("parent's own score",)),
        ("embedding", ("mean embedding",)),
    ],
)
def test_without_a_baseline_nothing_is_shown_and_the_page_names_it(
    make: Any, argument: str, names: tuple[str, ...]
) -> None:
    forecast = forecast_of(make, signal=3.0, stranger=0.5, **{argument: None})
    assert forecast.missing == names and forecast.verdict == "undecided"
    assert f"baselines missing: {', '.join(names)}" in repr(forecast).replace("=", ": ")
    assert Baselines().missing == EXPECTED


def test_the_form_is_a_baseline_without_being_asked(make: Any) -> None:
    """Scores follow the form alone, and so do activations: what they gain over it is nothing."""
    rng = np.random.default_rng(0)
    ids = [f"q{i}{form}" for i in range(12) for form in FORMS]
    level = np.tile([20.0, 60.0, 90.0], 12)
    score = dict(zip(ids, level + rng.normal(0, 8, 36), strict=True))
    acts = make(level[:, None] + rng.normal(0, 8, (36, 3)), ids=ids, groups=["g"] * 36)
    forecast = cross_validate_forecast(acts, score, design=QUICK)
    assert forecast.r2.value > 0.7 and forecast.r2.n == 12
    assert forecast.baseline_r2["form"].value > 0.9 and forecast.gain_over["form"].value < 0.02
    named = {name: "one" if name.endswith("_json") else "other" for name in ids}
    given = cross_validate_forecast(acts, score, design=QUICK, baselines=Baselines(forms=named))
    assert given.baseline_r2["form"].value < 0.5
    one_form = make(rng.normal(size=(12, 2)))
    scores = dict(zip(one_form.ids, rng.normal(size=12), strict=True))
    assert "form" not in cross_validate_forecast(one_form, scores, design=QUICK).baseline_r2
    with pytest.raises(InputError, match="forms has no label for row 'q0_json'"):
        cross_validate_forecast(acts, score, design=QUICK, baselines=Baselines(forms={"q0": "a"}))


def test_a_mapping_of_groups_holds_out_what_a_list_holds_out(make: Any) -> None:
    """Read as its keys, a mapping would give every row a label of its own."""
    rng = np.random.default_rng(0)
    acts = make(rng.standard_normal((24, 3)))
    scores = dict(zip(acts.ids, rng.normal(size=24), strict=True))
    labels = [f"category {i % 4}" for i in range(24)]
    by_id = dict(zip(acts.ids, labels, strict=True))
    found = [
        cross_validate_forecast(acts, scores, design=replace(QUICK, groups=groups))
        for groups in (labels, by_id, pd.Series(by_id), np.array(labels))
    ]
    assert {forecast.r2.n for forecast in found} == {4}
    assert len({forecast.r2.value for forecast in found}) == 1
    for groups, message in (
        ({"q0": "a"}, "groups has no label for row 'q1'; pass id → label for every row"),
        (set(labels), "groups is a set, which has no order of rows; pass a list"),
    ):
        with pytest.raises(InputError, match=message):
            cross_validate_forecast(acts, scores, design=replace(QUICK, groups=groups))


@pytest.mark.parametrize(
    "call",
    [
        lambda labels: cluster_bootstrap(np.arange(8.0), labels),
        lambda labels: pearson(np.arange(8.0), np.arange(8.0) ** 2, clusters=labels),
        lambda labels: permutation_test(np.arange(4.0), np.arange(4.0) + 1, strata=labels),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_labels_of_rows_are_never_the_keys_of_a_mapping(call: Callable[[Any], Any]) -> None:
    labels = list("aabbccdd")
    call(labels)
    for wrong in (dict(enumerate(labels)), set(range(8)), "aabbccdd"):
        with pytest.raises(InputError, match="which has no order of rows; pass a list with one"):
            call(wrong)


def test_of_several_unrelated_models_each_has_to_be_beaten(make: Any) -> None:
    rng = np.random.default_rng(1)
    score = rng.standard_normal(60)
    acts, weak, strong = (
        make(
            np.c_[strength * score, np.zeros(60)] + rng.standard_normal((60, 2)), groups=["g"] * 60
        )
        for strength in (2.0, 0.2, 3.0)
    )
    scores = dict(zip(acts.ids, score, strict=True))
    baselines = Baselines(unrelated={"small": weak, "large": strong})
    forecast = cross_validate_forecast(acts, scores, design=QUICK, baselines=baselines)
    gains = forecast.gain_over_rivals
    assert gains["unrelated model small"].low > 0 > gains["unrelated model large"].high
    assert "unrelated model large" in forecast.not_beaten and "unrelated model" not in gains
    assert "unrelated model" not in forecast.missing
    with pytest.raises(InputError, match="unrelated is an empty mapping; pass name"):
        Baselines(unrelated={})


def test_an_unrelated_model_is_another_model(make: Any) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((24, 3))
    acts = make(values, model={"weights_sha256": "abc" * 9})
    scores = dict(zip(acts.ids, rng.normal(size=24), strict=True))
    again = make(values + 1, model={"weights_sha256": "abc" * 9})
    with pytest.raises(InputError, match="unrelated was captured of the same weights as acts"):
        cross_validate_forecast(acts, scores, design=QUICK, baselines=Baselines(unrelated=again))
    with pytest.raises(InputError, match="'acts' and 'unrelated' are identical numbers"):
        cross_validate_forecast(
            acts, scores, design=QUICK, baselines=Baselines(unrelated=make(values))
        )


def test_a_gain_clears_a_wider_interval_where_intervals_are_too_short(make: Any) -> None:
    forecast = forecast_of(make, signal=3.0, stranger=0.5)
    for low, beaten in ((0.01, False), (0.03, True)):  # .10 − 1.31 · .09 < 0 < .10 − 1.31 · .07
        gain = Estimate(0.1, low, 0.2, 160, "")
        found = replace(forecast, gain_over={**forecast.gain_over, "text": gain})
        assert (found.not_beaten == ()) is beaten
        assert (found.verdict == "shown") is beaten
    many = replace(forecast, predictions=pd.concat([forecast.predictions] * 2))
    settled = replace(
        many, gain_over={**forecast.gain_over, "text": Estimate(0.1, 0.01, 0.2, 320, "")}
    )
    assert settled.not_beaten == () and replace(settled, held_out="group").not_beaten == ("text",)
    unknown = Estimate.undefined("nothing varies", 3)
    assert replace(many, gain_over={"text": unknown}).not_beaten == ("text",)


def test_shuffles_follow_from_the_number_of_tests(make: Any) -> None:
    """Twelve forecasts with 99 shuffles each: Holm's smallest p is .12."""
    assert [draws_for(tests) for tests in (1, 5, 12, 60)] == [200, 200, 479, 2399]
    for tests in (1, 12, 60):  # also with one shuffle beyond the measured value
        assert 2 * tests / (1 + draws_for(tests)) <= 0.05
    one = forecast_of(make, signal=3.0, stranger=0.5)
    assert one.p_value == 1 / 40 and one.verdict == "shown"
    twelve = corrected_forecasts({str(number): one for number in range(12)})["0"]
    assert twelve.p_holm == pytest.approx(12 / 40) and twelve.tests == 12
    assert twelve.verdict == "undecided" and not twelve.can_be_shown
    enough = replace(one.null, draws=np.linspace(-1, 0, 479))  # type: ignore[type-var]
    shown = replace(one, null=enough, p_value=enough.p_value())  # type: ignore[union-attr]
    assert corrected_forecasts({str(i): shown for i in range(12)})["0"].verdict == "shown"
