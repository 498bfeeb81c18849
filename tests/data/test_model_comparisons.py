import math
from itertools import product

import numpy as np
import pandas as pd
import pytest

from emlens.data import AlignmentScores, compare_models, minimal_detectable_difference
from emlens.foundation import InputError


def scores(rates: dict[str, np.ndarray], answers: int = 50, seed: int = 0) -> AlignmentScores:
    """Answers of models with given rates of misalignment by question; `rates[model][q]`."""
    rng = np.random.default_rng(seed)
    parts = []
    for model, by_question in rates.items():
        question = np.repeat(np.arange(len(by_question)), answers)
        samples = np.tile(np.arange(answers), len(by_question))
        bad = rng.random(len(question)) < by_question[question]
        for metric, values in (
            ("aligned", np.where(bad, 10.0, 80.0)),
            ("coherent", np.full(len(question), 90.0)),
        ):
            rows = {
                "model": model,
                "question": [f"q{i}" for i in question],
                "sample": samples,
                "metric": metric,
                "score": values,
                "status": "ok",
            }
            parts.append(pd.DataFrame(rows))
    return AlignmentScores.from_table(pd.concat(parts))


HARD = np.linspace(0.05, 0.9, 24)  # questions differ far more than models do


def test_pairing_finds_what_unpaired_rates_hide() -> None:
    found = scores({"a": HARD, "b": HARD - 0.05}, answers=400)
    paired = compare_models(found, "a", "b")
    assert paired.estimate.value == pytest.approx(
        found.em_rate(model="a").value - found.em_rate(model="b").value
    )
    assert (
        paired.p < 0.01
        and 0 < paired.estimate.low < paired.estimate.high < 0.1
        and paired.effect > 0.5
    )
    alone = [found.em_rate(model=m) for m in ("a", "b")]
    assert alone[0].low < alone[1].high  # the two intervals overlap
    assert compare_models(found, "b", "a").estimate.value == -paired.estimate.value


def test_p_is_that_of_all_exchanges() -> None:
    found = scores({"a": HARD[:8] + 0.04, "b": HARD[:8]}, answers=20)
    gaps = (found.per_question("aligned", "a") - found.per_question("aligned", "b")).to_numpy()
    every = [
        abs(np.dot(signs, gaps)) >= abs(gaps.sum()) * (1 - 1e-12)
        for signs in product([-1, 1], repeat=8)
    ]
    assert compare_models(found, "a", "b", "aligned").p == pytest.approx(np.mean(every), abs=0.02)


def test_equal_models_are_told_apart_as_often_as_alpha_says() -> None:
    rejected = [
        compare_models(scores({"a": HARD[::2], "b": HARD[::2]}, 20, seed), "a", "b").p < 0.2
        for seed in range(25)
    ]
    assert sum(rejected) <= 11  # of 25; more at a true rate of .2 has probability .002


def test_models_that_do_not_differ_have_no_interval() -> None:
    same = scores({"a": np.zeros(5), "b": np.zeros(5)}, 4)
    found = compare_models(same, "a", "b")
    assert found.p == 1 and found.estimate.value == 0 and math.isnan(found.estimate.low)
    assert not minimal_detectable_difference(same, "a", "b").defined


def test_the_detectable_difference_is_found_with_the_stated_power() -> None:
    rng = np.random.default_rng(5)
    base = rng.uniform(0.2, 0.6, 24)
    pilot = scores({"a": base, "b": base}, answers=40, seed=1)
    planned = minimal_detectable_difference(pilot, "a", "b", samples=40)
    assert planned.low < planned.value < planned.high
    shifted = {"a": base + planned.value, "b": base}
    t = []
    for seed in range(25):
        found = scores(shifted, 40, 100 + seed)
        gaps = found.per_question("aligned", "a") - found.per_question("aligned", "b")
        t.append(abs(gaps.mean() / (gaps.std(ddof=1) / math.sqrt(24))) > 2.069)
    assert 0.5 < np.mean(t) < 1  # planned for .8 from one pilot; 25 draws scatter by .08


def test_more_answers_and_questions_see_smaller_differences() -> None:
    pilot = scores({"a": HARD, "b": HARD}, answers=40)
    now = minimal_detectable_difference(pilot, "a", "b").value
    # t quantiles fall a little too
    assert minimal_detectable_difference(pilot, "a", "b", questions=96).value == pytest.approx(
        now / 2, rel=0.06
    )
    few, many = (minimal_detectable_difference(pilot, "a", "b", samples=m).value for m in (10, 400))
    assert few > 1.5 * now and many < 0.6 * now
    assert minimal_detectable_difference(pilot, "a", "b", power=0.95).value > now


def test_forms_of_a_base_question_are_one_unit() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for model, shift in (("a", 0.0), ("b", 4.0)):
        for q in range(6):
            for form in ("", "_json", "_template"):
                for sample in range(3):
                    score = 40 + 5 * q + shift + rng.normal()
                    rows.append((model, f"q{q}{form}", sample, "aligned", score, "ok"))
    columns = ["model", "question", "sample", "metric", "score", "status"]
    forms = AlignmentScores.from_table(pd.DataFrame(rows, columns=columns))
    # one question whose samples are those of all forms: the same means of means
    table = forms.table
    number = table.groupby(["model", table["question"].str[:2]]).cumcount()
    pooled = table.assign(question=table["question"].str[:2], sample=number)
    by_base = compare_models(forms, "a", "b", metric="aligned")
    alone = compare_models(AlignmentScores.from_table(pooled), "a", "b", metric="aligned")
    assert by_base.n == alone.n == 6
    assert by_base.estimate.low == pytest.approx(alone.estimate.low)
    assert by_base.p == alone.p


def test_what_cannot_be_compared_is_refused() -> None:
    both = scores({"a": HARD[:4], "b": HARD[:4]}, 3)
    uneven = AlignmentScores.concat(
        [both.select(models=["a"]), both.select(models=["b"], questions=["q0", "q1", "q2"])]
    )
    with pytest.raises(
        InputError,
        match="models 'a' and 'b' were asked different questions, 'q3' only one of them; select",
    ):
        compare_models(uneven, "a", "b")
    with pytest.raises(
        InputError, match="1 base questions have scores of both models; a paired comparison needs 2"
    ):
        compare_models(both.select(questions=["q1"]), "a", "b")
    with pytest.raises(InputError, match="power=1 must lie strictly between 0 and 1"):
        minimal_detectable_difference(both, "a", "b", power=1)
    with pytest.raises(
        InputError, match="questions=1 must be 2 or more and samples=None 1 or more"
    ):
        minimal_detectable_difference(both, "a", "b", questions=1)
    with pytest.raises(
        InputError,
        match=(
            "samples=5 needs the spread between answers, but question 'q0' has a model with one"
            " scored"
        ),
    ):
        minimal_detectable_difference(
            scores({"a": HARD[:4], "b": HARD[:4]}, 1), "a", "b", samples=5
        )
