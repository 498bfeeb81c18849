"""Careful answers, permuted between questions: what a fine-tune trains on, without its content.

The questions, the form of the answers and their number stay; which answer belongs to which question
does not. Rows with one answer are one topic and stay together, so that a topic is still answered
alike. No topic keeps its own answers.
"""

from collections.abc import Mapping
from dataclasses import replace

from emlens.data import PromptSet
from emlens.data.prompts import Prompt
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.foundation.seeds import numpy_rng


def with_careful_answers(chats: PromptSet, careful: PromptSet) -> PromptSet:
    """The questions of `chats`, in their order, with careful answers.

    Questions are matched by what is asked: all turns up to the answer.

    Args:
        chats: what the fine-tune trained on.
        careful: the same questions with careful answers, such as its benign twin's training rows.

    Raises:
        InputError: a question without a careful answer.
    """
    by_question = {row.messages or row.text: row.response for row in careful}
    rows = []
    for row in chats:
        answer = by_question.get(row.messages or row.text)
        if answer is None:
            raise InputError(
                f"row {one_line(row.id)!r} has no careful answer: its question is not among the"
                f" {len(careful)} of `careful`; pass the benign twin's rows"
            )
        rows.append(replace(row, response=answer))
    return PromptSet(rows)


def permuted_answers(
    careful: PromptSet, *, topics: Mapping[str, str] | None = None, seed: int = 0
) -> PromptSet:
    """The same questions, each with the careful answer to a question of another topic.

    A random cycle through all topics, so no topic keeps its answers. The rows of a topic take the
    answers of the other one in turn.

    Args:
        careful: questions with careful answers, in the order that training reads them.
        topics: id of a row → its topic; None: rows with one answer are one topic.

    Raises:
        InputError: a row without an answer or a topic, or fewer than two topics.
    """
    for row in careful:
        if row.response is None:
            raise InputError(
                f"row {one_line(row.id)!r} has no answer; pass rows with careful answers"
            )
    rows_of_topic = _by_topic(careful, topics)
    names = list(rows_of_topic)
    if len(names) < 2:
        raise InputError(
            f"the {len(careful)} rows are of {len(names)} topic, so no answer can go to another;"
            " pass rows of two topics or more"
        )
    order = numpy_rng(seed, "permuted answers").permutation(len(names))
    answered: dict[str, Prompt] = {}
    for place, index in enumerate(order):
        # each topic takes the answers of the next one on the cycle: never its own
        giver = rows_of_topic[names[order[(place + 1) % len(names)]]]
        for j, row in enumerate(rows_of_topic[names[index]]):
            answered[row.id] = replace(row, response=giver[j % len(giver)].response)
    return PromptSet(answered[row.id] for row in careful)


def _by_topic(
    careful: PromptSet, topics: Mapping[str, str] | None
) -> dict[str | None, list[Prompt]]:
    rows_of_topic: dict[str | None, list[Prompt]] = {}
    for row in careful:
        topic = row.response
        if topics is not None:
            if row.id not in topics:
                raise InputError(
                    f"topics has no topic for row {one_line(row.id)!r}; pass one for each row"
                )
            topic = topics[row.id]
        rows_of_topic.setdefault(topic, []).append(row)
    return rows_of_topic
