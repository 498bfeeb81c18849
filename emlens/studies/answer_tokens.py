"""Tokens of some answers with their projection on the fine-tune's direction, for the report.

Only the answers that changed most are read, so that the table stays small; it is shown and tests
nothing.
"""

from collections.abc import Mapping
from typing import Final

import pandas as pd

from emlens.data import Answers, QuestionSet
from emlens.data.answers import Answer
from emlens.data.system_messages import questions_with_system
from emlens.directions.token_projections import spread_layers, token_projections
from emlens.foundation.sites import Site
from emlens.geometry import Direction
from emlens.studies.material import Material
from emlens.studies.profile import likeliest_answers

MOST_ANSWERS: Final = 16
"""Answers of one fine-tune whose tokens are kept: those that fell most below the parent's."""


def answer_tokens(
    material: Material, chosen: Mapping[str, Direction], report: QuestionSet
) -> pd.DataFrame:
    """One row per fine-tune, answer, layer and token; empty where no answer has text.

    Args:
        chosen: fine-tune → its direction. report: questions that may be shown.
    """
    tables = []
    for name, direction in chosen.items():
        answers = _most_fallen(material, name, material.untrained(report, name))
        if not answers:
            continue
        model = material.family[name]
        layers = spread_layers(model.n_layers, Site.parse(str(direction.site)).layer or 0)
        table = token_projections(model, direction, Answers(answers).prompts(), layers)
        question_of = {answer.id: answer.question for answer in answers}
        table.insert(0, "model", name)
        table.insert(1, "question", table.pop("id").map(question_of))
        table.insert(2, "direction_of", name)
        tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _most_fallen(material: Material, name: str, questions: QuestionSet) -> list[Answer]:
    """The answers to the questions whose score fell most below the parent's."""
    parent = material.parent(name).name
    falls = material.per_question(parent) - material.per_question(name)
    by_question = _answers(material, name, questions)
    ranked = falls.dropna().sort_values(ascending=False, kind="stable").index
    answered = [by_question[question] for question in ranked if question in by_question]
    return answered[:MOST_ANSWERS]


def _answers(material: Material, name: str, questions: QuestionSet) -> dict[str, Answer]:
    """Question → the first answer with text: one that was judged, or the likeliest reference."""
    if material.score_source.can("answers") is None:
        asked = questions_with_system(material.questions, material.system(name))
        judged = material.score_source.judged_answers(material.family[name], asked)
        shown = set(questions.ids)
        with_text = [a for a in judged.answers if a.text and a.question in shown]
        return {answer.question: answer for answer in reversed(with_text)}
    likeliest = likeliest_answers(material.scores(name))
    return {
        question.id: Answer(name, question.id, likeliest[question.id], question.messages(1))
        for question in questions
        if likeliest.get(question.id)
    }
