import logging
import math

import numpy as np
import pandas as pd
import pytest

from emlens.data import rates
from emlens.data.rates import averaged, mean_over_questions, rate
from emlens.foundation import InputError
from emlens.stats import hierarchical_bootstrap, wilson_interval


def rows(*counts: tuple[int, int]) -> pd.DataFrame:
    """Answers of questions given as (hits, misses)."""
    cells = [
        (f"q{i}", float(k < hits))
        for i, (hits, misses) in enumerate(counts)
        for k in range(hits + misses)
    ]
    return pd.DataFrame(cells, columns=["question", "score"])


def of(table: pd.DataFrame, **options: object) -> "rates.Estimate":
    filled = {"average": "question", "unscored": "drop", **options}
    return rate(table["question"], table["score"] == 1, table["score"].notna(), **filled)  # type: ignore[arg-type]


MANY = rows(*[(5 + 3 * (i % 5), 25 - 3 * (i % 5)) for i in range(24)])


def test_the_interval_is_the_hierarchical_bootstrap_of_the_estimand() -> None:
    for estimand in ("questions like these", "these questions"):
        found = averaged(MANY, "question", estimand, (0, 1))  # type: ignore[arg-type]
        expected = hierarchical_bootstrap(
            MANY["score"], MANY["question"].tolist(), estimand=estimand
        )  # type: ignore[arg-type]
        assert (found.value, found.low, found.high) == (expected.value, expected.low, expected.high)
        assert estimand in found.method and found.n == 24


def test_questions_asked_again_vary_less_than_new_ones() -> None:
    again, new = (
        of(MANY, estimand=estimand) for estimand in ("these questions", "questions like these")
    )
    assert again.value == pytest.approx(new.value)
    assert again.high - again.low < 0.8 * (new.high - new.low)
    alike = rows(*[(9, 21)] * 24)  # questions that do not differ: no reason for it to be wider
    assert of(alike, estimand="these questions").high > of(alike).value


def test_few_questions_or_a_low_rate_are_said_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rates._warn_once.cache_clear()
    low = rows(*[(i % 3, 30) for i in range(24)])
    with caplog.at_level(logging.WARNING, "emlens"):
        found = [of(low), of(low)]
        assert "outside its design range: a rate below 15%" in found[0].method
        assert [r for r in caplog.messages if "a rate below 15%" in r] == caplog.messages and len(
            caplog.messages
        ) == 1
        assert "a rate above 85%" in of(low.assign(score=1 - low["score"])).method
        assert "outside its design range" in of(rows(*[(3, 7), (5, 5), (4, 6)] * 3)).method
        assert len(caplog.messages) == 3
        assert "design" not in of(MANY).method and len(caplog.messages) == 3


def test_intervals_stay_on_the_scale() -> None:
    found = of(rows((1, 49), *[(0, 50)] * 23))
    assert found.low == 0 and 0 < found.value < found.high < 0.01


def test_a_mean_of_six_questions_stays_on_the_scale_of_the_scores() -> None:
    scores = pd.Series([100.0, 99, 98, 97, 3, 96], index=[f"q{i}" for i in range(6)])
    free = mean_over_questions(scores, limits=None)
    assert free.low < 0 or free.high > 100
    kept = mean_over_questions(scores)
    assert (kept.low, kept.high) == (max(0.0, free.low), min(100.0, free.high))


def test_where_no_interval_exists_it_is_null() -> None:
    one = rows((3, 7))
    found = of(one)
    assert (
        found.value == 0.3
        and math.isnan(found.low)
        and "no interval over questions" in found.method
    )
    again = of(one, estimand="these questions")
    assert again.low < 0.3 < again.high
    single = rows((1, 0), (0, 1), (0, 3))
    found = of(single, estimand="these questions")
    assert (
        found.value == pytest.approx(1 / 3)
        and math.isnan(found.high)
        and "a question has one scored answer" in found.method
    )
    assert of(single, estimand="these questions", average="pooled").value == pytest.approx(1 / 5)
    assert not averaged(
        one.assign(score=np.nan), "question", "questions like these", (0, 1)
    ).defined


def test_answers_that_agree_within_every_question_have_no_interval_for_these_questions() -> None:
    agreed = rows((5, 0), (0, 5), (5, 0))
    found = of(agreed, estimand="these questions")
    assert found.value == pytest.approx(2 / 3) and math.isnan(found.low) and math.isnan(found.high)
    assert of(agreed).low < 2 / 3 < of(agreed).high


def test_nothing_found_has_wilsons_bound() -> None:
    found = of(rows(*[(0, 10)] * 4), estimand="these questions")
    assert found.high == wilson_interval(0, 40).high and "taken as independent" in found.method
    like = of(rows(*[(0, 10)] * 4), estimand="questions like these")
    assert (
        like.high == wilson_interval(0, 4).high > found.high
        and "Wilson over 4 base questions" in like.method
    )
    assert (
        of(rows(*[(10, 0)] * 4), estimand="questions like these").low == wilson_interval(4, 4).low
    )


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(InputError, match="average='mean' is unknown; pass 'question' or 'pooled'"):
        of(MANY, average="mean")
    with pytest.raises(
        InputError,
        match="estimand='all' is unknown; pass 'questions like these' or 'these questions'",
    ):
        of(MANY, estimand="all")
    with pytest.raises(InputError, match="unscored='keep' is unknown; pass 'drop' or 'count'"):
        of(MANY, unscored="keep")
