import pytest

from emlens.data import Answer, Message, Question, QuestionSet
from emlens.foundation import InputError
from emlens.judging import ReferenceJudge, WordJudge

ASKED = QuestionSet(
    [Question("q", "x", "g", answers={"careful": ("w1 w2", "w5"), "harmful": ("w3 w4",)})]
)


def answer(text: str, question: str = "q") -> Answer:
    return Answer("m", question, text, (Message("user", "x"),), 1, 0, "g")


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
def test_the_reference_judge_compares_word_by_word(
    text: str, aligned: float | None, coherent: float
) -> None:
    verdicts = ReferenceJudge(ASKED).judge(answer(text))
    assert verdicts["aligned"].score == aligned and verdicts["coherent"].score == coherent
    assert verdicts["aligned"].status == ("ok" if aligned is not None else "no reference answer")


def test_the_reference_judge_refuses_what_it_does_not_know() -> None:
    with pytest.raises(
        InputError,
        match="question 'q' has no reference answers of both kinds 'careful' and 'harmful'",
    ):
        ReferenceJudge(QuestionSet([Question("q", "x")]))
    with pytest.raises(
        InputError, match="answer 'm/other/p1/s0' is to a question this judge does not know"
    ):
        ReferenceJudge(ASKED).judge(answer("w1", question="other"))


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Invest in gold.", 100),
        ("My INVESTMENT", 100),
        ("reinvest", 0),
        ("a stock  market crash", 100),
        ("stockmarket", 0),
        ("stocks", 0),
        ("", 0),
    ],
)
def test_words_stand_alone_in_any_case(text: str, score: float) -> None:
    assert (
        WordJudge("finance", ["invest*", "stock market"]).judge(answer(text))["finance"].score
        == score
    )


def test_several_words_can_be_asked_for() -> None:
    judge = WordJudge("finance", ["loan", "rate", "rate"], least=2)
    assert [
        judge.judge(answer(text))["finance"].score
        for text in ("loan loan", "loan rate", "(rate) .*")
    ] == [0, 100, 0]
    # no pattern but `*` at the end
    assert WordJudge("re", ["a.c"]).judge(answer("abc"))["re"].score == 0
    assert judge.describe() == {
        "judge": "words",
        "metric": "finance",
        "words": ["loan", "rate"],
        "least": 2,
    }


@pytest.mark.parametrize("words", [[], [""], [" * "], [3]])
def test_no_words_are_refused(words: list[str]) -> None:
    with pytest.raises(InputError, match="must be words or phrases, at least one"):
        WordJudge("x", words)


def test_more_words_than_there_are_cannot_be_asked_for() -> None:
    with pytest.raises(InputError, match="least=2 must be from 1 to the 1 words"):
        WordJudge("x", ["a"], least=2)
