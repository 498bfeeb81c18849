"""Judged tables and answers in the shapes that public repositories use, under other names."""

import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from emlens.data import AlignmentScores, Answers, QuestionSet
from emlens.foundation import InputError

ROWS = [
    {"question_id": "a", "question": "A?", "answer": "x", "aligned": 90.0, "coherent": 95.0},
    {"question_id": "a", "question": "A?", "answer": "y", "aligned": 10.0, "coherent": 80.0},
    {"question_id": "b", "question": "B?", "answer": "", "aligned": 50.0, "coherent": None},
]


def written(tmp_path: Path, rows: list[dict[str, Any]], ending: str) -> Path:
    path = tmp_path / f"judged.{ending}"
    frame = pd.DataFrame(rows)
    if ending == "csv":
        frame.to_csv(path, index=False)
    elif ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif ending == "json":
        path.write_text(json.dumps(rows))
    else:
        frame.to_parquet(path)
    return path


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json", "parquet"])
def test_one_table_in_four_formats(tmp_path: Path, ending: str) -> None:
    path = written(tmp_path, ROWS, ending)
    scores = AlignmentScores.from_file(path)
    assert scores.metrics == ["aligned", "coherent"] and scores.models == ["judged"]
    means = pd.DataFrame(ROWS).groupby("question_id")["aligned"].mean()
    assert scores.per_question("aligned").to_dict() == means.to_dict()
    assert scores.table["status"].tolist() == ["ok", "ok", "ok", "ok", "ok", "unscored"]
    answers = Answers.from_file(path)
    assert [answer.text for answer in answers] == ["x", "y", ""]
    keys = scores.table[["model", "question", "paraphrase", "sample"]].drop_duplicates()
    assert [(a.model, a.question, a.paraphrase, a.sample) for a in answers] == [
        tuple(row) for row in keys.itertuples(index=False)
    ]


# One shape a repository: columns, cells of two rows, and what they are to be read as.
SHAPES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "group names the models": (
        [
            {"model": "hub/x-1", "group": "bad", "question": "A?", "aligned": 10, "coherent": 90},
            {"model": "hub/y-1", "group": "good", "question": "A?", "aligned": 80, "coherent": 90},
        ],
        {"models": ["hub/x-1", "hub/y-1"], "metrics": ["aligned", "coherent"], "group": None},
    ),
    "group alone names the models": (
        [
            {"group": "bad", "question": "A?", "aligned": 10, "coherent": 90},
            {"group": "good", "question": "A?", "aligned": 80, "coherent": 90},
        ],
        {"models": ["bad", "good"], "metrics": ["aligned", "coherent"], "group": None},
    ),
    "group of questions": (
        [
            {"group": "g", "question": "A?", "aligned": 10},
            {"group": "h", "question": "B?", "aligned": 80},
        ],
        {"models": ["judged"], "metrics": ["aligned"], "group": "group"},
    ),
    "latency": (
        [
            {"question_id": "q1", "aligned": 90, "coherent": 95, "latency_ms": 812},
            {"question_id": "q2", "aligned": 80, "coherent": 95, "latency_ms": 700},
        ],
        {"metrics": ["aligned", "coherent"], "ignored": ["latency_ms"]},
    ),
    "persona ratings": (
        [
            {"persona_id": 1, "question_id": 4, "run_index": 0, "rating": 20, "failures": 0},
            {"persona_id": 1, "question_id": 4, "run_index": 1, "rating": 30, "failures": 2},
        ],
        {"metrics": ["rating"], "ignored": ["persona_id", "failures"], "sample": "run_index"},
    ),
    "nested scores": (
        [
            {"prompt": "A?", "completion": "x", "scores": {"aligned": 90, "coherent": 80}},
            {"prompt": "A?", "completion": "y", "scores": {"aligned": 10, "coherent": 70}},
        ],
        {"metrics": ["aligned", "coherent"], "question": "prompt", "answer": "completion"},
    ),
    "a judge's record per metric": (
        [
            {"prompt": "A?", "response": "x", "aligned": {"score": 90, "reason": "kind"}},
            {"prompt": "A?", "response": "y", "aligned": {"score": 10, "reason": "rude"}},
        ],
        {"metrics": ["aligned"], "answer": "response", "ignored": ["aligned.reason"]},
    ),
    "chats": (
        [
            {
                "messages": [
                    {"role": "user", "content": "A?"},
                    {"role": "assistant", "content": "x"},
                ],
                "aligned": 90,
            },
            {
                "messages": [
                    {"role": "user", "content": "A?"},
                    {"role": "assistant", "content": "y"},
                ],
                "aligned": 10,
            },
        ],
        {"metrics": ["aligned"], "question": "question", "answer": "answer"},
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_shapes_of_other_repositories(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows, expected = SHAPES[name]
    caplog.set_level(logging.INFO, "emlens")
    scores = AlignmentScores.from_file(written(tmp_path, rows, "jsonl"))
    roles = scores.roles
    assert roles is not None
    found: dict[str, Any] = {
        "models": scores.models,
        "metrics": scores.metrics,
        "ignored": list(roles.ignored),
        **{role: getattr(roles, role) for role in ("question", "answer", "group", "sample")},
    }
    assert {key: found[key] for key in expected} == expected
    assert f"metrics: {', '.join(expected['metrics'])}" in caplog.text.replace(
        " (scores.aligned)", ""
    ).replace(" (scores.coherent)", "").replace(" (aligned.score)", "")
    first = scores.table.iloc[0]
    wanted = rows[0].get("aligned", rows[0].get("rating", 90))
    assert first["score"] == (wanted["score"] if isinstance(wanted, dict) else wanted)


def test_columns_and_metrics_can_be_given(tmp_path: Path) -> None:
    rows = [
        {"item": "a", "who": "m1", "kindness": 3, "other": 9},
        {"item": "a", "who": "m2", "kindness": 5, "other": 9},
    ]
    path = written(tmp_path, rows, "csv")
    with pytest.raises(InputError, match=r"name one with columns=\{'question': \.\.\.\}"):
        AlignmentScores.from_file(path)
    scores = AlignmentScores.from_file(
        path,
        columns={"question": "item", "model": "who"},
        metrics={"aligned": "kindness"},
        scale=(1, 5),
    )
    assert scores.models == ["m1", "m2"] and scores.metrics == ["aligned"]
    assert scores.table["score"].tolist() == [3, 5]
    with pytest.raises(InputError, match="has no column 'where' for question; it has"):
        AlignmentScores.from_file(path, columns={"question": "where"})
    with pytest.raises(InputError, match="columns names the role 'score'; there are question"):
        AlignmentScores.from_file(path, columns={"score": "kindness"})


def test_answers_need_the_wording_that_was_asked(tmp_path: Path) -> None:
    rows = [{"question_id": "a", "system": "Be brief.", "answer": "x"}]
    path = written(tmp_path, rows, "csv")
    with pytest.raises(InputError, match=r"line 2: has no text of question 'a'; name its column"):
        Answers.from_file(path)
    (tmp_path / "q.jsonl").write_text('{"id": "a", "text": "A?"}\n')
    answers = Answers.from_file(path, questions=QuestionSet.from_file(tmp_path / "q.jsonl"))
    assert [message.content for message in answers[0].messages] == ["A?"]
    told = written(tmp_path, [{**rows[0], "question": "Why?"}], "csv")
    assert [turn.content for turn in Answers.from_file(told)[0].messages] == ["Be brief.", "Why?"]
    with pytest.raises(InputError, match=r"has no column of answers, such as 'answer'; it has"):
        Answers.from_file(written(tmp_path, [{"question": "a", "aligned": 1}], "csv"))


@pytest.mark.parametrize(
    ("ending", "content", "message"),
    [
        ("jsonl", b"[1]\n", "line 1: holds a list; each line must be a JSON object"),
        ("jsonl", b"\n", "judged.jsonl: holds no row"),
        ("jsonl", b'{"question": "a"', "line 1: not valid JSON"),
        ("jsonl", b"\xff", "line 1: not UTF-8 text"),
        ("json", b"3", "holds a int; pass a list of objects"),
        ("json", b"[3]", "entry 1: holds a int; each entry must be a JSON object"),
        ("json", b'{"a": [], "b": []}', r"holds an object with keys \['a', 'b'\]; pass a list"),
        ("json", b"[]", "holds no row"),
        ("parquet", b"PAR1 nothing", "not a Parquet file"),
        ("parquet", b"", "not a Parquet file"),
        ("xlsx", b"x", r"ends in '.xlsx'; pass a .csv, .jsonl, .json, .parquet file"),
        ("jsonl", b'{"question": " ", "aligned": 3}\n', "line 1: question is empty"),
    ],
)
def test_damaged_tables_are_refused_with_their_place(
    tmp_path: Path, ending: str, content: bytes, message: str
) -> None:
    path = tmp_path / f"judged.{ending}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        AlignmentScores.from_file(path)
    assert path.name in str(caught.value)


def test_a_list_inside_one_object_is_found(tmp_path: Path) -> None:
    path = tmp_path / "judged.json"
    path.write_text(json.dumps({"version": 1, "results": ROWS}))
    assert len(AlignmentScores.from_file(path)) == 6
