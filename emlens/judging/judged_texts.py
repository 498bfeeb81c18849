"""The texts of answers that were judged elsewhere, from the file of their scores.

The field writes the answer beside its scores. Paraphrases and samples are numbered in file order,
as in `emlens.data.judged`, so that an answer and its scores have one key. Refused: a question of
several paraphrases in a file that does not say which of them was asked.
"""

from pathlib import Path
from typing import Final

from emlens.data.answers import Answer, Answers
from emlens.data.judged import AnswerNumbering
from emlens.data.prompts import Message
from emlens.data.questions import Question, QuestionSet
from emlens.data.tables import read_csv_rows
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line

TEXTS: Final = ("answer", "response")
"""Columns that the field writes answers in."""


def has_answers(path: str | Path) -> bool:
    """Whether a judged CSV has a column of answers."""
    _, first = next(read_csv_rows(path), ("", {}))
    return any(column in first for column in TEXTS)


def answers_of_file(path: str | Path, model: str, questions: QuestionSet) -> Answers:
    """The answers of a judged CSV to these questions, as chats; those to others are left out.

    Args:
        model: what the answers' model is called; of a file of several models, which one.

    Raises:
        InputError: no column of answers, no answer to these questions, or a question of several
            paraphrases whose text the file does not give.
    """
    asked = {question.id: question for question in questions}
    rows = list(read_csv_rows(path))
    models = {row.get("model", "") for _, row in rows}
    text_column = next((name for name in TEXTS if rows and name in rows[0][1]), None)
    if text_column is None:
        raise InputError(f"{path}: has no column {' or '.join(map(repr, TEXTS))}; add the answers")
    numbering = AnswerNumbering()
    answers = []
    for where, row in rows:
        row_model = row.get("model", "")
        id = row.get("question_id") or row.get("question", "")
        text = row.get("question", "")
        paraphrase, sample = numbering.next(row_model, id, text)
        if id not in asked or (len(models) > 1 and row_model != model):
            continue
        question = asked[id]
        answers.append(
            Answer(
                model,
                id,
                row[text_column],
                _chat(question, text, where),
                paraphrase,
                sample,
                group=question.group,
            )
        )
    if not answers:
        raise InputError(f"{path}: has no answer to any of these {len(questions)} questions")
    return Answers(answers)


def _chat(question: Question, text: str, where: str) -> tuple[Message, ...]:
    """The chat that was answered: the paraphrase of this text, under the question's messages.

    Raises:
        InputError: several paraphrases, and the text is none of them.
    """
    if text in question.paraphrases:
        return question.messages(question.paraphrases.index(text) + 1)
    if len(question.paraphrases) == 1:
        return question.messages()
    raise InputError(
        f"{where}: question {one_line(question.id)!r} has {len(question.paraphrases)} paraphrases,"
        " and the column 'question' names none of them; write there what was asked"
    )
