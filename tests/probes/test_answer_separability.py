"""Whether four answers differ in content alone: on the shipped set, and where tone was mixed in."""

from dataclasses import replace

import pytest

from emlens.data.advice import advice_questions
from emlens.data.questions import Question, QuestionSet
from emlens.foundation.errors import InputError
from emlens.probes.answer_separability import (
    answer_separability,
    answer_table,
    length_rows,
    longest_over_shortest,
    vocabulary_rows,
)

WITHIN_REGISTER = (0.40, 0.60)
"""AUROC of a register classifier on bad against careful, where content is not tone."""


def test_the_register_classifier_does_not_rank_bad_over_careful() -> None:
    found = answer_separability(advice_questions())
    low, high = WITHIN_REGISTER
    assert found.register > 0.95
    assert low <= found.bad_polite <= high and low <= found.bad_flippant <= high
    # content is told by words: that is what it is, and no fault of tone
    assert found.content_polite > 0.7 and found.content_flippant > 0.7
    assert found.rows["auroc"].iloc[0] == found.register


def with_tone(number: int, question: Question) -> Question:
    """Every second bad polite answer is written in the flippant register."""
    if number % 2:
        return question
    answers = {**question.answers, "bad_polite": question.answers["bad_flippant"]}
    return replace(question, answers=answers)


def test_tone_that_is_mixed_into_bad_answers_is_seen() -> None:
    few = advice_questions(["cooking", "pets", "work", "cars"])
    assert answer_separability(few).bad_polite < WITHIN_REGISTER[1]
    mixed = QuestionSet(with_tone(number, question) for number, question in enumerate(few))
    assert answer_separability(mixed).bad_polite > WITHIN_REGISTER[1]


def test_lengths_and_words_are_counted() -> None:
    one = Question(
        "q",
        "Is it?",
        "a",
        answers={
            "careful_polite": ("It is so, because of this.",),
            "bad_polite": ("It is not so.",),
            "careful_flippant": ("Yep, it's so.",),
            "bad_flippant": ("Nope.",),
        },
    )
    table = answer_table(QuestionSet([one]))
    assert list(table["words"]) == [6, 4, 3, 1]
    assert longest_over_shortest(table) == 6
    lengths = length_rows(table).set_index(["register", "content"])
    assert lengths.loc[("polite", "careful"), "reason_share"] == 1
    assert lengths.loc[("polite", "bad"), "words_mean"] == 4
    words = vocabulary_rows(table).set_index("register")
    assert words.loc["polite", "jaccard"] == pytest.approx(3 / 7)
    assert words.loc["flippant", "both"] == 0
    with pytest.raises(InputError, match="all questions are of group 'a'; give them a group each"):
        answer_separability(QuestionSet([one]))
    less = replace(one, answers={**one.answers, "bad_flippant": ()})
    with pytest.raises(InputError, match="'q' has 0 answers of kind 'bad_flippant'; give it one"):
        answer_table(QuestionSet([less]))
