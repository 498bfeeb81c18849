"""Judged tables, as emlens and as the field writes them, read into one tidy table of scores.

The field writes one row per answer with a column per metric, under many names
(`emlens.data.column_roles`), as CSV, JSONL, JSON or Parquet. Often it gives no number for the
sample or the paraphrase: both are then counted in file order. An empty or "nan" cell is unscored;
a word such as REFUSAL or CODE becomes the status. Nothing is averaged or dropped here, and values
are not checked against a scale: `AlignmentScores.from_table` does that. Only a file whose
alignment or coherence lies within 0 to 1 throughout is refused unless its scale is named: on 0 to
100 every answer in it would count as misaligned.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd

from emlens.data.column_roles import KNOWN_METRICS, ColumnRoles, cell_number, column_roles
from emlens.data.table_files import PlacedRow, read_table_rows, require_one_kind
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line

COLUMNS: Final = (
    "model",
    "question",
    "group",
    "paraphrase",
    "sample",
    "metric",
    "score",
    "status",
    "raw",
)
"""Columns of a table of scores, in order."""
TEXT_COLUMNS: Final = ("model", "question", "group", "metric", "status", "raw")
INT_COLUMNS: Final = ("paraphrase", "sample")

_TIDY_COLUMNS = ("model", "question", "sample", "metric", "score", "status")
_Scales = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class JudgedTable:
    """A judged file as it was read.

    Args:
        table: model, question, group, paraphrase, sample, metric, score, status, raw.
        scales: of each metric, where the file gives them.
        roles: what each column was read as; None for a file that emlens wrote.
    """

    table: pd.DataFrame
    scales: Mapping[str, tuple[float, float]] | None
    roles: ColumnRoles | None


@dataclass(frozen=True)
class JudgedRow:
    """One row of a judged table: an answer, with the cells of its metrics."""

    where: str
    model: str
    question: str
    group: str
    paraphrase: int
    sample: int
    cells: Mapping[str, str]


def read_judged_table(
    path: str | Path,
    *,
    model: str | None = None,
    metrics: Sequence[str] | Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
    scale_known: bool = True,
) -> JudgedTable:
    """Scores of a file, with their scales where the file gives them.

    Args:
        model: name of the model; None: the column of models, else the file's name.
        metrics: columns that are scores, or name of a metric → column; None: all that look like
            scores.
        columns: role (`question`, `text`, `answer`, `model`, `group`, `sample`) → column.
        scale_known: a file of shares is not refused.

    Raises:
        InputError: not of the format of its ending, no question, no column of scores, a metric or
            column that is missing, shares where the scale is not known; the message names the file.
    """
    rows = read_table_rows(path)
    names = list(rows[0][1])
    if not columns and is_tidy(names):
        table, scales = tidy_table(rows, names, model)
        return JudgedTable(table, scales, None)
    roles = column_roles(str(path), rows, given=columns, metrics=metrics)
    tidy = []
    for row in judged_rows(path, rows, roles, model):
        place = (row.model, row.question, row.group, row.paraphrase, row.sample)
        for column, metric in roles.metrics.items():
            tidy.append((*place, metric, *_read_cell(row.cells[column])))
    table = pd.DataFrame(tidy, columns=list(COLUMNS))
    if not scale_known:
        _refuse_shares(path, table)
    return JudgedTable(table, None, roles)


def judged_rows(
    path: str | Path, rows: Sequence[PlacedRow], roles: ColumnRoles, model: str | None
) -> Iterator[JudgedRow]:
    """The answers of a table, with their paraphrases and samples numbered.

    Raises:
        InputError: a row without its question, a column of text that holds something else.
    """
    require_one_kind(rows, roles.question, id=True)
    for column in (roles.text, roles.answer):
        if column is not None and column != roles.question:
            require_one_kind(rows, column)
    numbering = _Numbering()
    numbered = _numbered_samples(rows, roles)
    for where, row in rows:
        question = row[roles.question]
        if not question.strip():
            raise InputError(f"{where}: {roles.question} is empty; every answer needs its question")
        row_model = model
        if row_model is None:
            row_model = (row[roles.model] if roles.model else "") or Path(path).stem
        text = row[roles.text] if roles.text else ""
        paraphrase, sample = numbering.next(row_model, question, text)
        if numbered:
            sample = int(row[str(roles.sample)])
        group = row[roles.group] if roles.group else ""
        yield JudgedRow(where, row_model, question, group, paraphrase, sample, row)


def _numbered_samples(rows: Sequence[PlacedRow], roles: ColumnRoles) -> bool:
    """Whether the column of samples holds whole numbers that tell all answers apart."""
    if roles.sample is None:
        return False
    seen: set[tuple[str, ...]] = set()
    for _, row in rows:
        cell = row[roles.sample]
        if not (cell.isascii() and cell.isdigit() and len(cell) < 10):
            return False
        answer = [row[column] for column in (roles.model, roles.question, roles.text) if column]
        seen.add((*answer, str(int(cell))))
    return len(seen) == len(rows)


class _Numbering:
    """Numbers paraphrases from 1 and the samples of each from 0, in the order of a file."""

    def __init__(self) -> None:
        self._paraphrases: dict[tuple[str, str], dict[str, int]] = {}
        self._samples: Counter[tuple[str, str, int]] = Counter()

    def next(self, model: str, question: str, text: str) -> tuple[int, int]:
        """Paraphrase and sample of the next answer; a new text is a new paraphrase."""
        numbers = self._paraphrases.setdefault((model, question), {})
        paraphrase = numbers.setdefault(text, len(numbers) + 1)
        sample = self._samples[model, question, paraphrase]
        self._samples[model, question, paraphrase] += 1
        return paraphrase, sample


def _refuse_shares(path: str | Path, table: pd.DataFrame) -> None:
    for metric in KNOWN_METRICS:
        scores = table[table["metric"] == metric]["score"].dropna()
        if scores.between(0, 1).all() and (scores % 1 != 0).any():
            raise InputError(
                f"{path}: all {len(scores)} scores of {metric!r} lie within 0 to 1,"
                " which reads as shares; pass scale=(0, 1), or (0, 100) if that is meant"
            )


def is_tidy(columns: Iterable[str]) -> bool:
    """Whether a table has the columns of one that emlens wrote."""
    return set(_TIDY_COLUMNS) <= set(columns)


def tidy_table(
    rows: list[PlacedRow], columns: list[str], model: str | None
) -> tuple[pd.DataFrame, _Scales | None]:
    """A file that emlens wrote, or rows of it: one row per answer and metric already."""
    table = pd.DataFrame([row for _, row in rows], columns=columns, dtype=object)
    table["score"] = [_score(row["score"], where) for where, row in rows]
    if model is not None:
        table["model"] = model
    if "scale_low" not in columns or "scale_high" not in columns:
        return table, None
    scales: _Scales = {}
    for where, row in rows:
        low, high = cell_number(row["scale_low"]), cell_number(row["scale_high"])
        is_scale = False
        if low is not None and high is not None and low < high:
            is_scale = scales.setdefault(row["metric"], (low, high)) == (low, high)
        if not is_scale:
            raise InputError(
                f"{where}: columns scale_low and scale_high must hold one scale per metric,"
                " such as 0 and 100, in every row"
            )
    return table, scales


def _score(cell: str, where: str) -> float:
    score = cell_number(cell)
    if score is None:
        raise InputError(
            f"{where}: score {one_line(cell, 40)!r} is not a number; leave it empty where unscored"
        )
    return score


def _read_cell(cell: str) -> tuple[float, str, str]:
    """Score, status and, where a word replaces the score, the cell as it is."""
    number = cell_number(cell)
    if number is None:
        return math.nan, one_line(cell, 40).lower(), cell
    if math.isnan(number):
        return math.nan, "unscored", ""
    return number, "ok", ""
