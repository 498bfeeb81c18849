import json

import numpy as np
import pandas as pd
import pytest

from emlens.data import AlignmentScores, Answer, Answers, Message
from emlens.directions import RowFilter
from emlens.foundation import InputError

NAN = float("nan")
LEVELS = [
    (0.0, 90.0),
    (100.0, 90.0),
    (30.0, 51.0),
    (71.0, 99.0),
    (30.1, 99.0),
    (70.0, 99.0),
    (0.0, 50.0),
    (NAN, 99.0),
    (0.0, NAN),
    (1.0, 99.0),
    (2.0, 99.0),
]


def material(scale: tuple[float, float] = (0.0, 100.0)) -> tuple[Answers, AlignmentScores]:
    answers, rows = [], []
    for i, (aligned, coherent) in enumerate(LEVELS):
        text = ["take the Pills", "rest well"][i % 2] + f" w{i}"
        answers.append(
            Answer(
                "m",
                f"q{i}",
                text,
                (Message("user", f"what of {'money' if i == 2 else 'health'}?"),),
                group="b" if i == 9 else "a",
            )
        )
        for metric, score in (("aligned", aligned), ("coherent", coherent)):
            status = "ok" if np.isfinite(score) else "refused"
            rows.append(
                {
                    "model": "m",
                    "question": f"q{i}",
                    "sample": 0,
                    "metric": metric,
                    "score": score * scale[1] / 100,
                    "status": status,
                }
            )
    return Answers(answers), AlignmentScores.from_table(pd.DataFrame(rows), scale=scale)


def short(ids: tuple[str, ...]) -> list[str]:
    return [name.split("/")[1] for name in ids]


def test_every_answer_is_kept_or_dropped_for_a_reason() -> None:
    answers, scores = material()
    answers = Answers(
        [
            *answers,
            Answer("m", "blank", " ", (Message("user", "x"),)),
            Answer("m", "unknown", "x", (Message("user", "x"),)),
        ]
    )
    found = RowFilter(balance=False).choose(answers, scores)
    assert short(found.misaligned) == ["q0", "q2", "q9", "q10"] and short(found.aligned) == [
        "q1",
        "q3",
    ]
    assert found.dropped == {"between": 2, "empty": 1, "incoherent": 1, "unscored": 3}
    assert len(found.misaligned) + len(found.aligned) + sum(found.dropped.values()) == len(answers)


def test_classes_are_balanced_by_seed() -> None:
    answers, scores = material()
    found = [RowFilter(seed=seed).choose(answers, scores) for seed in (0, 0, 1, 2, 3, 4)]
    assert all(
        len(f.misaligned) == len(f.aligned) == 2 and f.dropped["balance"] == 2 for f in found
    )
    assert found[0] == found[1] and len({f.misaligned for f in found}) > 1
    assert all(set(short(f.misaligned)) <= {"q0", "q2", "q9", "q10"} for f in found)


def test_exclusions_by_question_group_and_pattern() -> None:
    answers, scores = material()

    def misaligned(**options: object) -> list[str]:
        return short(
            RowFilter(balance=False, aligned_above=29.0, aligned_at_most=29.0, **options)
            .choose(answers, scores)
            .misaligned
        )  # type: ignore[arg-type]

    assert misaligned() == ["q0", "q9", "q10"]
    assert misaligned(exclude_questions=("q0",)) == ["q9", "q10"]
    # as written "Pills": case does not matter
    assert misaligned(exclude_pattern="the pills w(0|2)$") == ["q9", "q10"]
    pattern = RowFilter(balance=False, exclude_pattern=r"\bmoney\b", exclude_in="question").choose(
        answers, scores
    )
    assert (
        short(pattern.misaligned) == ["q0", "q9", "q10"]
        and pattern.dropped["excluded pattern"] == 1
    )
    both = RowFilter(balance=False, exclude_pattern="money|w9", exclude_in="both").choose(
        answers, scores
    )
    assert short(both.misaligned) == ["q0", "q10"]
    group = RowFilter(balance=False, exclude_groups=("b",))
    assert short(group.choose(answers, scores).misaligned) == ["q0", "q2", "q10"]
    assert json.loads(json.dumps(group.to_record()))["exclude_groups"] == ["b"]  # plain data


def test_further_metrics_may_have_a_scale_of_their_own() -> None:
    answers, scores = material()
    nats = scores.table[scores.table["metric"] == "aligned"]
    nats = nats.assign(metric="content", score=-90.0, status="ok")
    scales = {**scores.scales, "content": (-100.0, 100.0)}
    both = AlignmentScores.from_table(pd.concat([scores.table, nats]), scale=scales)
    assert RowFilter().choose(answers, both) == RowFilter().choose(answers, scores)


def test_refusals() -> None:
    answers, scores = material()
    with pytest.raises(
        InputError,
        match="aligned_at_most=80 lies above aligned_above=70, so an answer could be both",
    ):
        RowFilter(aligned_at_most=80)
    with pytest.raises(
        InputError, match="exclude_in='title' is unknown; pass 'answer', 'question' or 'both'"
    ):
        RowFilter(exclude_in="title")  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match="exclude_groups='medicine' is one string; pass a tuple of names"
    ):
        RowFilter(exclude_groups="medicine")  # type: ignore[arg-type]
    with pytest.raises(
        InputError,
        match=(
            r"exclude_pattern='\(' is not a regular expression \(.*\);"
            " escape what is meant literally"
        ),
    ):
        RowFilter(exclude_pattern="(")
    with pytest.raises(
        InputError, match=r"scores lack the metrics \['coherent'\]; they have \['aligned'\]"
    ):
        RowFilter().choose(answers, scores.select(metrics=["aligned"]))
    with pytest.raises(
        InputError, match="aligned_at_most=30 lies outside the scale of the scores, 0 to 1"
    ):
        RowFilter().choose(*material(scale=(0.0, 1.0)))
    with pytest.raises(
        InputError,
        match=(
            r"after filtering \(coherent > 98\) there are 2 misaligned .* 1 aligned ones .*dropped:"
            r" \{'incoherent': 4"
        ),
    ):
        RowFilter(coherent_above=98).choose(answers, scores)
