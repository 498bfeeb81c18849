"""Each question has one role: to extract directions, to select one, or to report it.

A layer and position that looks best on the questions it is reported on is best partly by luck. So
the three sets are disjoint, in their ids and in their texts, and a direction is never selected or
reported on a question that it was extracted from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import pandas as pd

from emlens.data.base_questions import base_question, base_questions
from emlens.data.questions import Question, QuestionSet
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.geometry import Direction


@dataclass(frozen=True)
class QuestionRoles:
    """Questions to extract directions from, to select one on, and to report it on.

    Raises:
        InputError: a question that has two roles, under its id or with one text under two ids.
    """

    extract: QuestionSet
    select: QuestionSet
    report: QuestionSet

    def __post_init__(self) -> None:
        require_disjoint(extract=self.extract, select=self.select, report=self.report)

    @property
    def table(self) -> pd.DataFrame:
        """One row per question: question, group, used_to."""
        rows = []
        for role in ("extract", "select", "report"):
            for question in getattr(self, role):
                rows.append({"question": question.id, "group": question.group, "used_to": role})
        return pd.DataFrame(rows)


def require_disjoint(**sets: QuestionSet) -> None:
    """Refuse sets of questions that share one: a base question, or a paraphrase of any question.

    Raises:
        InputError: names the two sets and the first shared question.
    """
    for (first, a), (second, b) in combinations(sets.items(), 2):
        shared = sorted(set(base_questions(a.ids)) & set(base_questions(b.ids)))
        if shared:
            raise InputError(
                f"{first} and {second} share {len(shared)} base questions,"
                f" the first {one_line(shared[0])!r}; each question has one role"
            )
        id_of_text = {}
        for question in a:
            for key in _asked_texts(question):
                id_of_text[key] = question.id
        for question in b:
            for key in _asked_texts(question):
                if key in id_of_text:
                    raise InputError(
                        f"question {one_line(id_of_text[key])!r} of {first} and"
                        f" {one_line(question.id)!r} of {second} have one text;"
                        " each question has one role"
                    )


def _asked_texts(question: Question) -> list[tuple[str | None, str]]:
    """Its paraphrases; under another system message a text is another question."""
    return [(question.system, text) for text in question.paraphrases]


def require_unused(direction: Direction, questions: QuestionSet, role: str) -> None:
    """Refuse questions that a direction was extracted from.

    Its `ids` record them: ids of questions, paraphrases or answers.

    Raises:
        InputError: names the first of them.
    """
    question_ids = set(base_questions(questions.ids))
    for ids in direction.ids.values():
        for id in ids:
            for name in _question_names(id):
                if base_question(name) in question_ids:
                    raise InputError(
                        f"the direction at {direction.site} was extracted from question"
                        f" {one_line(name)!r}, which is to {role} it; pass other questions"
                    )


def _question_names(id: str) -> Sequence[str]:
    """The questions that an id may name.

    An id is a question, a paraphrase `question/p2`, or an answer `model/question/p1/s0`, where the
    names of model and question may have slashes in them.
    """
    stem, _, ending = id.rpartition("/")
    without_paraphrase = _without_number(stem, "p")
    is_answer = _is_numbered(ending, "s") and without_paraphrase != stem
    if not is_answer:
        return [id, _without_number(id, "p")]
    # where the model's name ends is not known: every ending may be the question
    parts = without_paraphrase.split("/")
    return ["/".join(parts[i:]) for i in range(1, len(parts))]


def _without_number(name: str, letter: str) -> str:
    """`name` without an ending such as `/p2`."""
    stem, _, ending = name.rpartition("/")
    return stem if stem and _is_numbered(ending, letter) else name


def _is_numbered(ending: str, letter: str) -> bool:
    return ending[:1] == letter and ending[1:].isdigit()
