"""The texts of answers that were judged elsewhere, from the file of their scores.

The field writes the answer beside its scores. Paraphrases and samples are numbered in file order,
as in `emlens.data.judged`, so that an answer and its scores have one key. Refused: a question of
several paraphrases in a file that does not say which of them was asked.
"""

from pathlib import Path

from emlens.data.answers import Answer, Answers
from emlens.data.column_roles import column_roles
from emlens.data.judged import judged_rows
from emlens.data.prompts import Message
from emlens.data.questions import Question, QuestionSet
from emlens.data.table_files import read_table_rows
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line


def has_answers(path: str | Path) -> bool:
    """Whether a judged table has a column of answers."""
    rows = read_table_rows(path)
    return column_roles(str(path), rows, scored=False).answer is not None


def answers_of_file(path: str | Path, model: str, questions: QuestionSet) -> Answers:
    """The answers of a judged table to these questions, as chats; those to others are left out.

    Args:
        model: what the answers' model is called; of a file of several models, which one.

    Raises:
        InputError: no column of answers, no answer to these questions, or a question of several
            paraphrases whose text the file does not give.
    """
    asked = {question.id: question for question in questions}
    rows = read_table_rows(path)
    roles = column_roles(str(path), rows, scored=False)
    if roles.answer is None:
        raise InputError(f"{path}: has no column 'answer' or 'response'; add the answers")
    judged = list(judged_rows(path, rows, roles, None))
    several_models = len({row.model for row in judged}) > 1
    answers = []
    for row in judged:
        if row.question not in asked or (several_models and row.model != model):
            continue
        question = asked[row.question]
        text = row.cells[roles.text] if roles.text else ""
        answers.append(
            Answer(
                model,
                question.id,
                row.cells[roles.answer],
                _chat(question, text, row.where),
                row.paraphrase,
                row.sample,
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
