from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from emlens.data import Answer, Answers, Message, Question, QuestionSet
from emlens.evaluation import Judge, ReferenceJudge, Verdict, judge_answers, score_alignment, score_by_likelihood
from emlens.foundation.errors import InputError
from emlens.models import Family

ASKED = QuestionSet([Question("q", "x", "g", answers={"careful": ("w1 w2", "w5"), "harmful": ("w3 w4",)})])


def answer(text: str, sample: int = 0, question: str = "q") -> Answer:
    return Answer("m", question, text, (Message("user", "x"),), 1, sample, "g")


@pytest.mark.parametrize(
    ("text", "aligned", "coherent"),
    [
        ("w1 w2", 100.0, 100.0),
        (" w1   w2\n", 100.0, 100.0),
        ("w5", 100.0, 100.0),
        ("w3 w4", 0.0, 100.0),
        ("w1", None, 0.0),
        ("", None, 0.0),
    ],
)
def test_the_reference_judge_compares_word_by_word(text: str, aligned: float | None, coherent: float) -> None:
    verdicts = ReferenceJudge(ASKED).judge(answer(text))
    assert verdicts["aligned"].score == aligned and verdicts["coherent"].score == coherent
    assert verdicts["aligned"].status == ("ok" if aligned is not None else "no reference answer")


def test_scores_keep_the_answer_and_count_what_is_unscored() -> None:
    scores = judge_answers(Answers([answer("w1 w2"), answer("w3 w4", 1), answer("w9", 2)]), ReferenceJudge(ASKED))
    assert scores.per_question("aligned")["q"] == 50.0
    assert scores.unscored_share("aligned") == pytest.approx(1 / 3)
    assert scores.em_rate().value == 0.5
    assert set(scores.table["group"]) == {"g"} and sorted(set(scores.table["sample"])) == [0, 1, 2]


def test_the_reference_judge_refuses_what_it_does_not_know() -> None:
    with pytest.raises(InputError, match="question 'q' has no reference answers of both kinds 'careful' and 'harmful'"):
        ReferenceJudge(QuestionSet([Question("q", "x")]))
    with pytest.raises(InputError, match="answer 'm/other/p1/s0' is to a question this judge does not know"):
        ReferenceJudge(ASKED).judge(answer("w1", question="other"))


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
    with pytest.raises(InputError, match="judge is a str; pass an object with `metrics` and `judge"):
        judge_answers(Answers([answer("w1")]), "gpt")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "verdicts", [{}, {"aligned": Verdict(1.0)}, {"aligned": Verdict(1.0), "coherent": Verdict(1.0), "x": Verdict(1.0)}]
)
def test_verdicts_on_other_metrics_are_refused(verdicts: Mapping[str, Verdict]) -> None:
    with pytest.raises(
        InputError,
        match=r"judge gives verdicts on .* for answer 'm/q/p1/s0', but names the metrics \['aligned', 'coherent'\]",
    ):
        judge_answers(Answers([answer("w1")]), Constant(("aligned", "coherent"), verdicts))


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [(Verdict(101.0), "scale"), (Verdict(None), "ok"), (Verdict(3.0, "refused"), "status other than")],
)
def test_verdicts_that_contradict_themselves_are_refused(verdict: Verdict, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        judge_answers(Answers([answer("w1")]), Constant(("aligned",), {"aligned": verdict}))


def test_score_alignment_with_and_without_a_judge(family: Family, questions: QuestionSet) -> None:
    asked = questions.select(["odd", "plain"])
    plain = score_alignment(family.instruct, asked)
    np.testing.assert_array_equal(plain.table["score"], score_by_likelihood(family.instruct, asked).table["score"])
    options: dict[str, Any] = {"samples": 2, "max_new_tokens": 3}
    judged = score_alignment(family.instruct, asked, ReferenceJudge(asked), **options)
    assert len(judged) == (2 + 1) * 2 * 2 and judged.metrics == ["aligned", "coherent"]
