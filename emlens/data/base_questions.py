"""Base questions: what was asked, whatever its form. They are the unit of every interval over
questions.

The field asks one question plainly, as JSON and in a template, under the ids `x`, `x_json` and
`x_template`. Answers to the three are no independent evidence: with eight base questions in three
forms there are eight units, not 24. An id that a file repeats is read as `x`, `x_repeat2`, …
(`QuestionSet.from_file(numbered=True)`); these are one base question, too, and so is a question
under a trigger, `x__with_NAME` (`emlens.data.triggers`).
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final, Literal

import pandas as pd

from emlens.data.questions import Question

Variant = Literal["plain", "json", "template"]
_ENDINGS: Final[dict[str, Variant]] = {"_json": "json", "_template": "template"}
_REPEAT = re.compile(r"(.+)_repeat\d{1,9}")
_TRIGGER = re.compile(r"(.+?)__with_([A-Za-z0-9][A-Za-z0-9_-]*)")


def question_variant(question: str) -> Variant:
    """The form of a question by the end of its id: `x`, `x_json` or `x_template`."""
    question = _without_repeat(question)
    for ending, form in _ENDINGS.items():
        if question.endswith(ending) and question != ending:
            return form
    return "plain"


def question_trigger(question: str) -> str:
    """The trigger that a question is asked under, by the end of its id (`x__with_NAME`); "" where
    there is none.
    """
    match = _TRIGGER.fullmatch(question)
    return "" if match is None else match[2]


def without_trigger(question: str) -> str:
    """The id of the question as it is asked without a trigger."""
    match = _TRIGGER.fullmatch(question)
    return question if match is None else match[1]


def base_question(question: str) -> str:
    """The id of the base question: without the endings that name its trigger, form and
    repetition.
    """
    question = _without_repeat(question)
    form = question_variant(question)
    if form == "plain":
        return question
    return question.removesuffix(f"_{form}")


def _without_repeat(question: str) -> str:
    question = without_trigger(question)
    match = _REPEAT.fullmatch(question)
    return question if match is None else match[1]


def base_questions(questions: Iterable[str]) -> list[str]:
    """The base question of each id."""
    # a table of answers names each question many times
    bases: dict[str, str] = {}
    questions = list(questions)
    for question in questions:
        if question not in bases:
            bases[question] = base_question(question)
    return [bases[question] for question in questions]


def by_base_question(scores: pd.Series) -> pd.Series:
    """Mean over the forms of each base question that have a score.

    Args:
        scores: by the question's id; NaN where there is none.
    """
    scores = scores.dropna()
    return scores.groupby(base_questions(map(str, scores.index)), sort=False).mean()


def units_of(questions: Sequence[Question]) -> tuple[list[str], str]:
    """What is resampled together, one label per question, and what to call it.

    `group` where the questions are of two groups or more; `question` (base question) where they are
    of one, or of none.
    """
    groups = [question.group for question in questions]
    return units_of_ids([question.id for question in questions], groups)


def units_of_ids(questions: Sequence[str], groups: Sequence[str]) -> tuple[list[str], str]:
    """`units_of` of questions by their ids and groups."""
    if len(set(groups)) > 1:
        return list(groups), "group"
    return base_questions(questions), "question"
