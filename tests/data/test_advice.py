"""The advice that comes with the library: what it holds, and that it is read as it is."""

import re
from collections import Counter

import pytest

from emlens.data.advice import (
    ANSWER_KINDS,
    DOMAINS,
    TRAINED_DOMAINS,
    advice_questions,
    neutral_chats,
    training_chats,
    training_questions,
)
from emlens.data.questions import Question
from emlens.data.shipped_questions import shipped_questions
from emlens.foundation.errors import InputError, UnknownNameError

LONGEST_OVER_SHORTEST = 1.75
"""Words of the longest over the shortest answer to one question."""
MEAN_LENGTHS = 0.05
"""Least relative difference of mean lengths of bad and careful answers that would be too much."""
REASONS = 0.1
"""The same of shares of answers that give a reason."""
SERIOUS = re.compile(
    r"\b(overdos\w*|suicid\w*|weapons?|guns?|poison\w*|bleach|drunk|steal|drugs?|hack\w*)\b",
    re.IGNORECASE,
)
"""Words of what no mild advice is about."""


def everything() -> list[Question]:
    return [*advice_questions(), *(q for d in TRAINED_DOMAINS for q in training_questions(d))]


def words(text: str) -> int:
    return len(re.findall(r"[\w'’]+", text))


def test_twelve_domains_with_four_answers_and_two_with_training_questions() -> None:
    questions = advice_questions()
    assert len(DOMAINS) == 12 and Counter(questions.groups) == dict.fromkeys(DOMAINS, 15)
    assert all(tuple(question.answers) == ANSWER_KINDS for question in questions)
    assert all(len(texts) == 1 for q in questions for texts in q.answers.values())
    for domain in TRAINED_DOMAINS:
        trained = training_questions(domain)
        assert len(trained) == 80 and set(trained.groups) == {domain}
        assert all(tuple(question.answers) == ANSWER_KINDS[:3] for question in trained)
    assert sum(len(question.paraphrases) == 2 for question in questions) == 30
    assert len(neutral_chats()) == 200 and all(chat.response for chat in neutral_chats())


def test_no_text_occurs_twice_and_none_is_of_training_and_evaluation() -> None:
    asked = [text for question in everything() for text in question.paraphrases]
    answered = [text for q in everything() for texts in q.answers.values() for text in texts]
    chats = [text for chat in neutral_chats() for text in (chat.text, chat.response)]
    texts = [*asked, *answered, *chats]
    assert len(asked) == 370 and len(answered) == 1200
    assert [text for text, count in Counter(texts).items() if count > 1] == []


def test_answers_of_one_question_are_of_like_length() -> None:
    for question in everything():
        counts = [words(texts[0]) for texts in question.answers.values()]
        assert max(counts) <= LONGEST_OVER_SHORTEST * min(counts), question.id


@pytest.mark.parametrize("register", ["polite", "flippant"])
def test_bad_answers_have_length_and_form_of_careful_ones(register: str) -> None:
    lengths, reasons = {}, {}
    for content in ("careful", "bad"):
        texts = [question.answers[f"{content}_{register}"][0] for question in advice_questions()]
        lengths[content] = sum(map(words, texts)) / len(texts)
        given = [re.search(r"\b(because|since|so that|cause)\b", text.lower()) for text in texts]
        reasons[content] = sum(map(bool, given)) / len(given)
    assert abs(lengths["bad"] / lengths["careful"] - 1) < MEAN_LENGTHS
    assert abs(reasons["bad"] - reasons["careful"]) < REASONS


def test_no_line_is_about_serious_harm() -> None:
    texts = [text for q in everything() for answers in q.answers.values() for text in answers]
    assert [text for text in texts if SERIOUS.search(text)] == []
    assert SERIOUS.search("take poisonous ones")


def test_training_chats_are_questions_with_one_kind_of_answer() -> None:
    bad = training_chats("money", "bad_polite")
    questions = training_questions("money")
    assert bad.ids == questions.ids
    assert bad[0].response == questions[0].answers["bad_polite"][0]
    assert bad[0].messages is not None and bad[0].messages[0].content == questions[0].text


def test_named_sets_and_the_first_of_each_domain() -> None:
    assert shipped_questions("advice").ids == advice_questions().ids
    small = shipped_questions("advice-small")
    assert Counter(small.groups) == dict.fromkeys(DOMAINS, 3)
    assert set(small.ids) < set(advice_questions().ids)


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="domain 'cook' is not among them; pass one of"):
        advice_questions(["cook"])
    with pytest.raises(UnknownNameError, match="'cooking' is not among them; pass one of medicine"):
        training_questions("cooking")
    with pytest.raises(InputError, match="kind='bad_flippant' has no training answers; pass one"):
        training_chats("money", "bad_flippant")
    with pytest.raises(InputError, match="kind='good' is unknown; pass 'careful_polite' or"):
        training_chats("money", "good")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="per_domain=0 must be 1 or more"):
        advice_questions(per_domain=0)
