"""Answers of other tools: tables with a row per answer, as CSV, JSONL, JSON or Parquet.

Columns are told by name, or given (`emlens.data.column_roles`). Paraphrases and samples are
numbered as `AlignmentScores.from_file` numbers them, so scores and answers of one file belong
together by model, question, paraphrase and sample.
"""

from collections.abc import Mapping
from pathlib import Path

from emlens.data.answers import Answer, Answers, read_answers
from emlens.data.column_roles import ColumnRoles, column_roles
from emlens.data.judged import JudgedRow, judged_rows
from emlens.data.prompts import Message
from emlens.data.questions import QuestionSet
from emlens.data.readers import read_jsonl
from emlens.data.table_files import read_table_rows
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line

_OWN_KEYS = ("model", "question", "text", "messages")


def read_answer_table(
    path: str | Path,
    *,
    model: str | None = None,
    columns: Mapping[str, str] | None = None,
    questions: QuestionSet | None = None,
) -> Answers:
    """Answers of a file: one that emlens wrote, or a table with a row per answer.

    Args:
        model: name of the model; None: the column of models, else the file's name.
        columns: role (`question`, `text`, `answer`, `model`, `group`, `sample`, `system`) → column.
        questions: what was asked, where the table has ids of questions and not their text.

    Raises:
        InputError: not of the format of its ending, no answers, no text of a question; the message
            names file and place.
    """
    if columns is None and _is_own(path):
        own = read_answers(path)
        return Answers(own)
    rows = read_table_rows(path)
    roles = column_roles(str(path), rows, given=columns, scored=False)
    if roles.answer is None:
        names = [one_line(name, 40) for name in rows[0][1]][:12]
        raise InputError(
            f"{path}: has no column of answers, such as 'answer'; it has {names};"
            " name one with columns={'answer': ...}"
        )
    return Answers(_answer(row, roles, questions) for row in judged_rows(path, rows, roles, model))


def _is_own(path: str | Path) -> bool:
    if Path(path).suffix.lower() != ".jsonl":
        return False
    _, first = next(read_jsonl(path), (0, {}))
    return all(key in first for key in _OWN_KEYS)


def _answer(row: JudgedRow, roles: ColumnRoles, questions: QuestionSet | None) -> Answer:
    return Answer(
        model=row.model,
        question=row.question,
        text=row.cells[str(roles.answer)],
        messages=_messages(row, roles, questions),
        paraphrase=row.paraphrase,
        sample=row.sample,
        group=row.group,
    )


def _messages(
    row: JudgedRow, roles: ColumnRoles, questions: QuestionSet | None
) -> tuple[Message, ...]:
    """The chat that was answered: from the set of questions, else from the row itself."""
    if questions is not None:
        return questions.select([row.question])[0].messages(row.paraphrase)
    if roles.text is None or not row.cells[roles.text].strip():
        raise InputError(
            f"{row.where}: has no text of question {one_line(row.question, 60)!r};"
            " name its column with columns={'text': ...}, or pass questions="
        )
    user = Message("user", row.cells[roles.text])
    system = row.cells[roles.system] if roles.system else ""
    if not system:
        return (user,)
    return (Message("system", system), user)
