import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from emlens.data import AlignmentScores
from emlens.foundation import InputError
from emlens.judging import rescore
from emlens.judging.readouts import (
    ReplyDistribution,
    candidates_distribution,
    check_mass,
    parse_raw,
    verdict_of,
)


def test_the_expected_score_is_over_whole_numbers_alone() -> None:
    reading = ReplyDistribution({0: 0.1, 85: 0.2, 100: 0.1}, {"REFUSAL": 0.5})
    assert reading.mass == pytest.approx(0.4) and reading.expected == pytest.approx(
        (85 * 0.2 + 100 * 0.1) / 0.4
    )
    assert math.isnan(ReplyDistribution({}).expected)


@pytest.mark.parametrize(
    ("numbers", "categories", "status"),
    [
        ({90: 0.25}, {"REFUSAL": 0.75}, "ok"),
        ({90: 0.2499}, {"REFUSAL": 0.7}, "refusal"),
        ({90: 0.1}, {"REFUSAL": 0.3, "CODE": 0.4}, "code"),
        ({90: 0.1}, {"REFUSAL": 0.2}, "low mass"),
        ({}, {}, "low mass"),
    ],
)
def test_little_mass_is_no_score_but_a_status(
    numbers: dict[int, float], categories: dict[str, float], status: str
) -> None:
    verdict = verdict_of(ReplyDistribution(numbers, categories).to_json())
    assert verdict.status == status and (verdict.score is None) == (status != "ok")


def test_a_score_survives_being_written_to_the_last_digit() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(101) * 0.05) * 0.9
    reading = ReplyDistribution(dict(enumerate(p.tolist())), {"CODE": 0.1}, 1e-7)
    again = parse_raw(reading.to_json())
    assert again.expected == pytest.approx(reading.expected, abs=1e-7) and again.dropped == 1e-7
    assert verdict_of(reading.to_json()).score == again.expected
    assert again.to_json() == reading.to_json()


def test_candidates_of_one_token() -> None:
    top = [
        ("85", math.log(0.5)),
        (" 85", math.log(0.1)),
        ("90", math.log(0.2)),
        ("085", -3.0),
        ("101", -3.0),
        ("8.5", -4.0),
        ("REF", math.log(0.1)),
        ("CODE", math.log(0.05)),
        ("C", -5.0),
        ("-5", -5.0),
        ("²", -6.0),
    ]
    reading = candidates_distribution(top)
    assert reading.numbers == pytest.approx({85: 0.6, 90: 0.2})
    assert reading.categories == pytest.approx({"REFUSAL": 0.1, "CODE": 0.05})
    raw = json.dumps({"top": top})
    assert parse_raw(raw).expected == pytest.approx((85 * 0.6 + 90 * 0.2) / 0.8)
    assert candidates_distribution([("RE", -1.0)], ("REFUSAL", "RESIGN")).categories == {
        "REFUSAL": 0.0,
        "RESIGN": 0.0,
    }


NONE = [
    "",
    "{}",
    "[]",
    "85",
    "null",
    '{"numbers": {"x": 1}}',
    '{"numbers": 3}',
    '{"top": 3}',
    '{"top": [["a"]]}',
    '{"numbers": {"1": 1e9}}',
]


@pytest.mark.parametrize("raw", NONE)
def test_what_is_no_distribution_is_refused(raw: str) -> None:
    with pytest.raises(InputError, match="is not a distribution of a judge; rescore needs"):
        parse_raw(raw)


@pytest.mark.parametrize(
    "raw",
    [
        '{"numbers": {"101": -1}}',
        '{"numbers": {"5": 0.5}}',
        '{"numbers": {"5": -1}, "dropped": NaN}',
    ],
)
def test_impossible_distributions_are_refused(raw: str) -> None:
    with pytest.raises(
        InputError, match="has numbers outside 0 to 100, or log-probabilities above 0"
    ):
        parse_raw(raw)


@pytest.mark.parametrize("mass", [0, -1, 1.01, math.nan])
def test_the_threshold_is_a_probability(mass: float) -> None:
    with pytest.raises(
        InputError, match="must be above 0 and at most 1: the least probability of whole numbers"
    ):
        check_mass(mass)


def judged(*raws: str, **changes: Any) -> AlignmentScores:
    rows = []
    for i, raw in enumerate(raws):
        verdict = verdict_of(raw) if raw.startswith(('{"numbers"', '{"top"')) else None
        score, status = (
            (math.nan, "endpoint: timeout")
            if verdict is None
            else (math.nan if verdict.score is None else verdict.score, verdict.status)
        )
        rows.append(
            {
                "model": "m",
                "question": "q",
                "sample": i,
                "metric": "aligned",
                "score": score,
                "status": status,
                "raw": raw,
                **changes,
            }
        )
    return AlignmentScores.from_table(pd.DataFrame(rows))


def test_rescoring_applies_another_threshold_and_asks_nobody() -> None:
    strong = ReplyDistribution({10: 0.9}).to_json()
    weak = ReplyDistribution({90: 0.3}, {"REFUSAL": 0.6}).to_json()
    scores = judged(
        strong, weak, json.dumps({"top": [["50", -0.1]]}), '{"fault": "no whole answer"}'
    )
    assert scores.table["score"].tolist()[:3] == pytest.approx([10, 90, 50])
    pd.testing.assert_frame_equal(rescore(scores).table, scores.table)
    strict = rescore(scores, mass=0.5).table
    assert strict["status"].tolist() == ["ok", "refusal", "ok", "endpoint: timeout"]
    assert strict["score"].isna().tolist() == [False, True, False, True]
    assert strict["raw"].tolist() == scores.table["raw"].tolist()
    # nothing was lost on the way
    pd.testing.assert_frame_equal(rescore(rescore(scores, mass=0.5)).table, scores.table)


def test_scores_without_raw_text_or_on_another_scale_are_refused() -> None:
    with pytest.raises(
        InputError,
        match="question 'q', sample 0, metric 'aligned' has a score but no raw distribution",
    ):
        rescore(judged("", score=5.0, status="ok"))
    other = AlignmentScores.from_table(
        judged(ReplyDistribution({1: 0.9}).to_json()).table, scale=(0, 1)
    )
    with pytest.raises(
        InputError, match=r"metrics \{'aligned': \(0.0, 1.0\)\} are not on 0 to 100"
    ):
        rescore(other)
