"""Careful answers, permuted between questions: what a fine-tune trains on, without its content.

The questions, the form of the answers and their number stay; which answer belongs to which question
does not. Rows with one answer are one topic and stay together, so that a topic is still answered
alike. No topic keeps its own answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from emlens.data import PromptSet
from emlens.data.prompts import Prompt
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.foundation.seeds import numpy_rng


def careful_answers(chats: PromptSet, careful: PromptSet) -> dict[str, str]:
    """The careful answer to each question of `chats`, by the id of its row.

    Questions are matched by what is asked: all turns up to the answer.

    Args:
        chats: what the fine-tune trained on.
        careful: the same questions with careful answers, such as its benign twin's training rows.

    Raises:
        InputError: a question without a careful answer.
    """
    by_question = {row.messages or row.text: row.response for row in careful}
    answers = {}
    for row in chats:
        answer = by_question.get(row.messages or row.text)
        if answer is None:
            raise InputError(
                f"row {one_line(row.id)!r} has no careful answer: its question is not among the"
                f" {len(careful)} of `careful`; pass the benign twin's rows, or answers by id"
            )
        answers[row.id] = answer
    return answers


def permuted_answers(
    chats: PromptSet,
    answers: Mapping[str, str],
    *,
    topics: Mapping[str, str] | None = None,
    seed: int = 0,
) -> PromptSet:
    """The same questions, each with the careful answer to a question of another topic.

    A random cycle through all topics, so no topic keeps its answers. The rows of a topic take the
    answers of the other one in turn.

    Args:
        chats: questions, in the order that training reads them.
        answers: id of a row → its careful answer.
        topics: id of a row → its topic; None: rows with one careful answer are one topic.

    Raises:
        InputError: a row without an answer or a topic, or fewer than two topics.
    """
    missing = [row.id for row in chats if row.id not in answers]
    if missing:
        raise InputError(
            f"answers has none for row {one_line(missing[0])!r} ({len(missing)} of {len(chats)} are"
            " missing); pass a careful answer for each row"
        )
    rows_of_topic = _by_topic(chats, answers if topics is None else topics)
    names = list(rows_of_topic)
    if len(names) < 2:
        raise InputError(
            f"the {len(chats)} rows are of {len(names)} topic, so no answer can go to another;"
            " pass rows of two topics or more"
        )
    order = numpy_rng(seed, "permuted answers").permutation(len(names))
    answered: dict[str, Prompt] = {}
    for place, index in enumerate(order):
        # each topic takes the answers of the next one on the cycle: never its own
        giver = rows_of_topic[names[order[(place + 1) % len(names)]]]
        for j, row in enumerate(rows_of_topic[names[index]]):
            answered[row.id] = replace(row, response=answers[giver[j % len(giver)].id])
    return PromptSet(answered[row.id] for row in chats)


def _by_topic(chats: PromptSet, topics: Mapping[str, str]) -> dict[str, Sequence[Prompt]]:
    rows_of_topic: dict[str, list[Prompt]] = {}
    for row in chats:
        if row.id not in topics:
            raise InputError(
                f"topics has no topic for row {one_line(row.id)!r}; pass one for each row"
            )
        rows_of_topic.setdefault(topics[row.id], []).append(row)
    return dict(rows_of_topic)
