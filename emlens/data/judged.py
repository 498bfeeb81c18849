"""Judged CSV files, as emlens and as the field writes them, read into one tidy table of scores.

The field writes one row per answer with a column per metric, and no number for the sample or the
paraphrase: both are counted in file order. An empty or "nan" cell is unscored; a word such as
REFUSAL or CODE becomes the status. Nothing is averaged or dropped here, and values are not checked
against a scale: `AlignmentScores.from_table` does that. Only a file whose alignment or coherence
lies within 0 to 1 throughout is refused unless its scale is named: on 0 to 100 every answer in it
would count as misaligned.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pandas as pd

from emlens.data.tables import read_csv_rows
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
_GROUPS = ("group", "category", "domain")
_MISSING = ("", "nan", "none", "null", "na", "n/a")
_KNOWN_METRICS = ("aligned", "coherent", "harmless")
_NOT_METRICS = frozenset(
    (
        "",
        "idx",
        "index",
        "id",
        "unnamed: 0",
        "question",
        "question_id",
        "question_idx",
        "prompt",
        "answer",
        "response",
        "formatted_prompts",
        "system",
        "messages",
        "model",
        "seed",
        "sample",
        "sample_id",
        "sample_idx",
        "paraphrase",
        "paraphrase_idx",
        "temperature",
        "max_tokens",
        "n_tokens",
        "tokens",
        "step",
        "epoch",
        "layer",
        *_GROUPS,
    )
)


_Scales = dict[str, tuple[float, float]]
_PlacedRow = tuple[str, dict[str, str]]
"""Place ("file, line n") and cells."""


def read_judged_csv(
    path: str | Path,
    *,
    model: str | None = None,
    metrics: Sequence[str] | None = None,
    scale_known: bool = True,
) -> tuple[pd.DataFrame, _Scales | None]:
    """Scores of a file, and their scales where the file gives them.

    Columns: model, question, group, paraphrase, sample, metric, score, status, raw.

    Raises:
        InputError: not CSV, neither `question_id` nor `question`, no column of scores, a metric
            that is missing, shares where the scale is not known; the message names the file.
    """
    rows = list(read_csv_rows(path))
    if not rows:
        raise InputError(f"{path}: has a header and no row")
    columns = list(rows[0][1])
    if all(name in columns for name in _TIDY_COLUMNS):
        return _tidy_table(rows, columns, model)
    question_column = _first_of(("question_id", "question"), columns)
    if question_column is None:
        raise InputError(
            f"{path}: has neither a column 'question_id' nor 'question'; it has {_some(columns)}"
        )
    metric_columns = _metric_columns(path, rows, columns, metrics)
    group_column = _first_of(_GROUPS, columns)
    numbering = AnswerNumbering()
    tidy = []
    for where, row in rows:
        question = row[question_column]
        if not question.strip():
            raise InputError(
                f"{where}: {question_column} is empty; every answer needs its question"
            )
        if model is None:
            row_model = row.get("model") or Path(path).stem
        else:
            row_model = model
        paraphrase, sample = numbering.next(row_model, question, row.get("question", ""))
        group = row[group_column] if group_column else ""
        for metric in metric_columns:
            score, status, raw = _read_cell(row[metric])
            tidy.append(
                (row_model, question, group, paraphrase, sample, metric, score, status, raw)
            )
    table = pd.DataFrame(tidy, columns=list(COLUMNS))
    if not scale_known:
        _refuse_shares(path, table)
    return table, None


class AnswerNumbering:
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


def _first_of(names: Sequence[str], columns: Sequence[str]) -> str | None:
    for name in names:
        if name in columns:
            return name
    return None


def _refuse_shares(path: str | Path, table: pd.DataFrame) -> None:
    for metric in _KNOWN_METRICS:
        scores = table[table["metric"] == metric]["score"].dropna()
        if scores.between(0, 1).all() and (scores % 1 != 0).any():
            raise InputError(
                f"{path}: all {len(scores)} scores of {metric!r} lie within 0 to 1,"
                " which reads as shares; pass scale=(0, 1), or (0, 100) if that is meant"
            )


def _tidy_table(
    rows: list[_PlacedRow], columns: list[str], model: str | None
) -> tuple[pd.DataFrame, _Scales | None]:
    """A file that emlens wrote: one row per answer and metric already."""
    table = pd.DataFrame([row for _, row in rows], columns=columns, dtype=object)
    table["score"] = [_score(row["score"], where) for where, row in rows]
    if model is not None:
        table["model"] = model
    if "scale_low" not in columns or "scale_high" not in columns:
        return table, None
    scales: _Scales = {}
    for where, row in rows:
        low, high = _number(row["scale_low"]), _number(row["scale_high"])
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
    score = _number(cell)
    if score is None:
        raise InputError(
            f"{where}: score {one_line(cell, 40)!r} is not a number; leave it empty where unscored"
        )
    return score


def _metric_columns(
    path: str | Path,
    rows: list[_PlacedRow],
    columns: list[str],
    metrics: Sequence[str] | None,
) -> list[str]:
    """The columns of scores: those that were asked for, or all that look like scores."""
    if metrics is not None:
        missing = [name for name in metrics if name not in columns]
        if missing or isinstance(metrics, str) or not metrics:
            raise InputError(
                f"{path}: metrics={metrics!r} are not all columns; it has {_some(columns)}"
            )
        return list(metrics)
    scores = [name for name in columns if _holds_scores(name, [row[name] for _, row in rows])]
    if not scores:
        raise InputError(
            f"{path}: has no column of scores, such as 'aligned'; it has {_some(columns)}"
        )
    return scores


def _holds_scores(column: str, cells: Sequence[str]) -> bool:
    """Whether it is a known metric, or a column of numbers that may have missing ones."""
    if column.lower() in _NOT_METRICS:
        return False
    if column in _KNOWN_METRICS:
        return True
    numbers = [_number(cell) for cell in cells]
    if None in numbers:
        return False
    return any(number is not None and not math.isnan(number) for number in numbers)


def _number(cell: str) -> float | None:
    """NaN for a cell that says missing, None for one that is not a number."""
    if cell.strip().lower() in _MISSING:
        return math.nan
    try:
        return float(cell)
    except ValueError:
        return None


def _read_cell(cell: str) -> tuple[float, str, str]:
    """Score, status and, where a word replaces the score, the cell as it is."""
    number = _number(cell)
    if number is None:
        return math.nan, one_line(cell, 40).lower(), cell
    if math.isnan(number):
        return math.nan, "unscored", ""
    return number, "ok", ""


def _some(columns: Sequence[str]) -> list[str]:
    """Some column names, for a message."""
    return [one_line(name, 40) for name in columns[:12]]
