import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from judges_side_by_side import SideBySide

from emlens.data import Answer, Answers, Message, Question, QuestionSet
from emlens.foundation import provenance
from emlens.foundation.errors import InputError, IntegrityError
from emlens.judging import (
    Judge,
    ReferenceJudge,
    Verdict,
    judge_answers,
    score_alignment,
    score_by_likelihood,
)
from emlens.judging.answers_on_file import AnswersOnFile
from emlens.judging.judges import AskingJudge
from emlens.judging.on_file import judge_file
from emlens.models import Family

ASKED = QuestionSet(
    [Question("q", "x", "g", answers={"careful": ("w1 w2", "w5"), "harmful": ("w3 w4",)})]
)


def answer(text: str, sample: int = 0, question: str = "q") -> Answer:
    return Answer("m", question, text, (Message("user", "x"),), 1, sample, "g")


def test_scores_keep_the_answer_and_count_what_is_unscored() -> None:
    scores = judge_answers(
        Answers([answer("w1 w2"), answer("w3 w4", 1), answer("w9", 2)]), ReferenceJudge(ASKED)
    )
    assert scores.per_question("aligned")["q"] == 50.0
    assert scores.unscored_share("aligned") == pytest.approx(1 / 3)
    assert scores.em_rate().value == 0.5
    assert set(scores.table["group"]) == {"g"} and sorted(set(scores.table["sample"])) == [0, 1, 2]


class Constant:
    def __init__(self, metrics: tuple[str, ...], verdicts: Mapping[str, Verdict]):
        self.metrics = metrics
        self.verdicts = verdicts

    def judge(self, answer: Answer) -> Mapping[str, Verdict]:
        return self.verdicts


def test_any_object_with_the_protocol_is_a_judge() -> None:
    judge = Constant(("aligned",), {"aligned": Verdict(7.0, raw="7")})
    assert isinstance(judge, Judge)
    assert judge_answers(Answers([answer("w1")]), judge).table["score"].tolist() == [7.0]
    with pytest.raises(
        InputError, match="judge is a str; pass an object with `metrics` and `judge"
    ):
        judge_answers(Answers([answer("w1")]), "gpt")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "verdicts",
    [
        {},
        {"aligned": Verdict(1.0)},
        {"aligned": Verdict(1.0), "coherent": Verdict(1.0), "x": Verdict(1.0)},
    ],
)
def test_verdicts_on_other_metrics_are_refused(verdicts: Mapping[str, Verdict]) -> None:
    with pytest.raises(
        InputError,
        match=(
            r"judge gives verdicts on .* for answer 'm/q/p1/s0', but names the metrics \['aligned',"
            r" 'coherent'\]"
        ),
    ):
        judge_answers(Answers([answer("w1")]), Constant(("aligned", "coherent"), verdicts))


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        (Verdict(101.0), "scale"),
        (Verdict(None), "ok"),
        (Verdict(3.0, "refused"), "status other than"),
    ],
)
def test_verdicts_that_contradict_themselves_are_refused(verdict: Verdict, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        judge_answers(Answers([answer("w1")]), Constant(("aligned",), {"aligned": verdict}))


class Counting(AskingJudge):
    """Scores the length of the text, in reverse order, and stops like a killed process after
    some.
    """

    metrics = ("aligned", "coherent")

    def __init__(self, stop_after: int | None = None, version: int = 1):
        self.asked: list[tuple[str, str]] = []
        self.stop_after, self.version = stop_after, version

    def describe(self) -> dict[str, Any]:
        return {"judge": "counting", "version": self.version}

    def verdicts(self, asked: Sequence[tuple[Answer, str]]) -> Iterator[tuple[int, Verdict]]:
        for done, i in enumerate(reversed(range(len(asked)))):
            if done == self.stop_after:
                raise KeyboardInterrupt
            answer, metric = asked[i]
            self.asked.append((answer.id, metric))
            yield i, Verdict(float(len(answer.text)), raw=metric)


FIVE = Answers([answer("x" * (i + 1), i) for i in range(5)])


def test_a_judge_that_answers_in_any_order_gives_the_same_table() -> None:
    table = judge_answers(FIVE, Counting()).table
    assert table["sample"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert table[table["metric"] == "aligned"]["score"].tolist() == [1, 2, 3, 4, 5]
    assert Counting().judge(FIVE[2]) == {
        "aligned": Verdict(3.0, raw="aligned"),
        "coherent": Verdict(3.0, raw="coherent"),
    }


@pytest.mark.parametrize("torn", ["", '{"answer": "m/q/p1/s', "\x00"])
def test_an_interrupted_judging_goes_on_where_it_was(tmp_path: Path, torn: str) -> None:
    out = tmp_path / "verdicts.jsonl"
    with pytest.raises(KeyboardInterrupt):
        judge_answers(FIVE, Counting(stop_after=3), out=out)
    with open(out, "a", encoding="utf-8") as file:
        file.write(torn)
    second = Counting()
    scores = judge_answers(FIVE, second, out=out)
    assert len(second.asked) == 7 and len(set(second.asked)) == 7
    pd.testing.assert_frame_equal(scores.table, judge_answers(FIVE, Counting()).table)
    third = Counting()
    judge_answers(Answers([*FIVE, answer("new", 5)]), third, out=out)
    assert sorted(third.asked) == [("m/q/p1/s5", "aligned"), ("m/q/p1/s5", "coherent")]
    assert judge_answers(Answers(FIVE[:2]), Counting(stop_after=0), out=out).table[
        "score"
    ].tolist() == [1, 1, 2, 2]


def test_a_judging_that_was_cut_anywhere_ends_with_the_same_bytes(tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    FIVE.to_jsonl(answers)
    whole = tmp_path / "whole.jsonl"
    table = judge_answers(FIVE, SideBySide(), out=whole).table
    lines = whole.read_bytes().splitlines(keepends=True)
    assert len(lines) == 11
    for cut in range(len(lines)):
        in_memory, on_file = tmp_path / f"{cut}.memory.jsonl", tmp_path / f"{cut}.file.jsonl"
        in_memory.write_bytes(b"".join(lines[:cut]))
        on_file.write_bytes(b"".join(lines[:cut]))
        pd.testing.assert_frame_equal(judge_answers(FIVE, SideBySide(), out=in_memory).table, table)
        scores = tmp_path / f"{cut}.csv"
        judge_file(AnswersOnFile(answers), SideBySide(), scores, verdicts=on_file, progress=False)
        assert in_memory.read_bytes() == on_file.read_bytes() == whole.read_bytes(), cut


def test_an_upgrade_between_two_runs_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers, out = tmp_path / "answers.jsonl", tmp_path / "verdicts.jsonl"
    FIVE.to_jsonl(answers)
    judge_answers(FIVE, SideBySide(), out=out)
    lines = out.read_bytes().splitlines(keepends=True)
    monkeypatch.setattr(provenance, "made_with", lambda: "torch 9")
    judge_answers(FIVE, SideBySide(), out=out)
    assert not caplog.records  # nothing was left to judge
    out.write_bytes(b"".join(lines[:4]))
    on_file = tmp_path / "on_file.jsonl"
    on_file.write_bytes(b"".join(lines[:4]))
    judge_answers(FIVE, SideBySide(), out=out)
    scores = tmp_path / "s.csv"
    judge_file(AnswersOnFile(answers), SideBySide(), scores, verdicts=on_file, progress=False)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and all("is gone on with torch 9" in line for line in said)


def test_a_kill_before_anything_was_judged(tmp_path: Path) -> None:
    out = tmp_path / "verdicts.jsonl"
    out.write_bytes(b'{"format": 1, "jud')
    assert len(judge_answers(FIVE, Counting(), out=out)) == 10
    assert len(judge_answers(FIVE, Counting(stop_after=0), out=out)) == 10


def test_another_judge_or_another_text_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "verdicts.jsonl"
    judge_answers(FIVE, Counting(), out=out)
    with pytest.raises(
        IntegrityError,
        match=r"was written by a judge that differs in \['version'\]; pass another file",
    ):
        judge_answers(FIVE, Counting(version=2), out=out)
    with pytest.raises(
        IntegrityError, match="answer 'm/q/p1/s0' has another text now than when it was judged"
    ):
        judge_answers(Answers([answer("other"), *FIVE[1:]]), Counting(), out=out)
    with pytest.raises(IntegrityError, match="differs in .*'judge'.*; pass another file"):
        judge_answers(FIVE, ReferenceJudge(ASKED), out=out)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"id": 1}'], "line 1: does not name a judge, so this is not a journal of verdicts"),
        (['{"format": 9, "judge": {}}'], "line 1: does not name a judge"),
        (
            ['{"format": 1, "judge": {"judge": "counting", "version": 1}}', '{"answer": 3}'],
            r"line 2: is not a verdict; found keys \['answer'\]",
        ),
    ],
)
def test_files_that_are_no_journals_are_refused(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    out = tmp_path / "verdicts.jsonl"
    out.write_text("\n".join(lines) + "\n")
    with pytest.raises(IntegrityError, match=message):
        judge_answers(FIVE, Counting(), out=out)
    assert out.read_text() == "\n".join(lines) + "\n"


class Wrong(Counting):
    def __init__(self, numbers: list[int]):
        super().__init__()
        self.numbers = numbers

    def verdicts(self, asked: Sequence[tuple[Answer, str]]) -> Iterator[tuple[int, Verdict]]:
        yield from ((i, Verdict(1.0)) for i in self.numbers)


def test_judges_that_miscount_are_refused() -> None:
    one = Answers([answer("x")])
    with pytest.raises(
        InputError, match="judge gives no verdict on 1 of 2 pairs of answer and metric; give one"
    ):
        judge_answers(one, Wrong([0]))
    with pytest.raises(
        InputError, match="judge gives verdict 0 of 2 twice, or it was not asked for"
    ):
        judge_answers(one, Wrong([0, 0]))
    with pytest.raises(
        InputError, match="judge gives verdict 7 of 2 twice, or it was not asked for"
    ):
        judge_answers(one, Wrong([7]))


def test_the_journal_holds_what_was_judged_in_plain_lines(tmp_path: Path) -> None:
    out = tmp_path / "verdicts.jsonl"
    judge_answers(Answers([answer("w1 w2"), answer("?", 1)]), ReferenceJudge(ASKED), out=out)
    head, *lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert head["judge"]["judge"] == "reference answers"
    assert [(line["metric"], line["score"], line["status"]) for line in lines] == [
        ("aligned", 100.0, "ok"),
        ("coherent", 100.0, "ok"),
        ("aligned", None, "no reference answer"),
        ("coherent", 0.0, "ok"),
    ]


def test_score_alignment_with_and_without_a_judge(family: Family, questions: QuestionSet) -> None:
    asked = questions.select(["odd", "plain"])
    plain = score_alignment(family.instruct, asked)
    np.testing.assert_array_equal(
        plain.table["score"], score_by_likelihood(family.instruct, asked).table["score"]
    )
    options: dict[str, Any] = {"samples": 2, "max_new_tokens": 3}
    judged = score_alignment(family.instruct, asked, ReferenceJudge(asked), **options)
    assert len(judged) == (2 + 1) * 2 * 2 and judged.metrics == ["aligned", "coherent"]
