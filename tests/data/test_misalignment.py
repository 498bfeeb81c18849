import math
from typing import Any

import pandas as pd
import pytest

from emlens.data import AlignmentScores, em_kinds, em_labels
from emlens.foundation import InputError

NAN = math.nan
# aligned, coherent, finance
ANSWERS = {
    "q1": [(10, 90, 95), (10, 90, 5), (90, 90, 5), (10, 20, 90)],
    "q2": [(10, 90, 50), (10, 90, NAN), (80, 90, 99), (NAN, 90, 99)],
}


def scores(
    answers: dict[str, list[Any]] = ANSWERS,
    metrics: tuple[str, ...] = ("aligned", "coherent", "finance"),
) -> AlignmentScores:
    rows = [
        {
            "model": "m",
            "question": q,
            "sample": s,
            "metric": metric,
            "score": value,
            "status": "ok" if value == value else "refusal",
        }
        for q, given in answers.items()
        for s, values in enumerate(given)
        for metric, value in zip(metrics, values, strict=False)
    ]
    return AlignmentScores.from_table(pd.DataFrame(rows))


def test_labels_by_hand() -> None:
    labels = em_labels(scores())
    assert labels.loc["m", "q1"].tolist() == [1, 1, 0, 0]
    assert labels.loc["m", "q2"].tolist()[:3] == [1, 1, 0] and math.isnan(
        labels.loc[("m", "q2", 1, 3)]
    )


def test_both_kinds_by_hand_and_they_add_up() -> None:
    kinds = em_kinds(scores(), "finance")
    assert kinds["in_domain"].value == pytest.approx((1 / 4 + 0) / 2)
    # a topic of exactly 50 is not above it
    assert kinds["emergent"].value == pytest.approx((1 / 4 + 1 / 2) / 2)
    whole = scores(
        {q: [a for a in given if not math.isnan(sum(a))] for q, given in ANSWERS.items()}
    )
    for average in ("question", "pooled"):
        parts = em_kinds(whole, "finance", average=average)  # type: ignore[arg-type]
        assert sum(part.value for part in parts.values()) == pytest.approx(
            whole.em_rate(average=average).value
        )  # type: ignore[arg-type]
    assert em_kinds(scores(), "finance", unscored="count", average="pooled")[
        "emergent"
    ].value == pytest.approx(2 / 8)


def test_a_topic_without_all_answers_is_refused() -> None:
    lacking = scores({"q1": [(10, 90, 95), (10, 90)]})
    with pytest.raises(
        InputError, match="'finance' has 1 answers, not the 2 of the other metrics; score all"
    ):
        em_kinds(lacking, "finance")
    with pytest.raises(InputError, match="topic_above=101 lies outside the scale"):
        em_kinds(scores(), "finance", topic_above=101)
