"""Judged CSV files, as emlens and as the field writes them, brought to one tidy table of scores.

The field writes one row an answer with a column a metric, and no number for the sample or the
phrasing: both are counted in file order. An empty or "nan" cell is unscored; a word such as REFUSAL
or CODE becomes the status. Nothing is averaged or dropped here, and values are not checked against
a scale: `AlignmentScores.from_table` does that. Only a file whose alignment or coherence lies
within 0 to 1 throughout is refused unless its scale is named: on 0 to 100 it would read as
misaligned from end to end.
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

TEXT_COLUMNS: Final = ("model", "question", "group", "metric", "status", "raw")
INT_COLUMNS: Final = ("paraphrase", "sample")

_TIDY = ("model", "question", "sample", "metric", "score", "status")
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


def read_judged_csv(
    path: str | Path,
    *,
    model: str | None = None,
    metrics: Sequence[str] | None = None,
    scale_known: bool = True,
) -> tuple[pd.DataFrame, dict[str, tuple[float, float]] | None]:
    """A table with columns model, question, group, paraphrase, sample, metric, score, status, raw;
    and its scales if given.

    Raises:
        InputError: not CSV, neither `question_id` nor `question`, no column of scores, a metric
            that lacks, shares where the scale is not known; the message names the file.
    """
    rows = list(read_csv_rows(path))
    if not rows:
        raise InputError(f"{path}: has a header and no row")
    columns = list(rows[0][1])
    if all(name in columns for name in _TIDY):
        return _tidy(path, rows, columns, model)
    key = next((name for name in ("question_id", "question") if name in columns), None)
    if key is None:
        raise InputError(
            f"{path}: has neither a column 'question_id' nor 'question'; it has {_shown(columns)}"
        )
    chosen = _metric_columns(path, rows, columns, metrics)
    name = model if model is not None else Path(path).stem
    group = next((column for column in _GROUPS if column in columns), None)
    phrasings: dict[tuple[str, str], dict[str, int]] = {}
    samples: Counter[tuple[str, str, int]] = Counter()
    tidy = []
    for where, row in rows:
        question, by = row[key], row["model"] if row.get("model") and model is None else name
        if not question.strip():
            raise InputError(f"{where}: {key} is empty; every answer needs its question")
        known = phrasings.setdefault((by, question), {})
        paraphrase = known.setdefault(row.get("question", ""), len(known) + 1)
        sample = samples[by, question, paraphrase]
        samples[by, question, paraphrase] += 1
        head = (by, question, row[group] if group else "", paraphrase, sample)
        tidy += [(*head, metric, *_cell(row[metric])) for metric in chosen]
    table = pd.DataFrame(
        tidy,
        columns=[
            "model",
            "question",
            "group",
            "paraphrase",
            "sample",
            "metric",
            "score",
            "status",
            "raw",
        ],
    )
    if not scale_known:
        _refuse_shares(path, table)
    return table, None


def _refuse_shares(path: str | Path, table: pd.DataFrame) -> None:
    for metric in _KNOWN_METRICS:
        scores = table[table["metric"] == metric]["score"].dropna()
        if scores.between(0, 1).all() and (scores % 1 != 0).any():
            raise InputError(
                f"{path}: all {len(scores)} scores of {metric!r} lie within 0 to 1,"
                " which reads as shares; pass scale=(0, 1), or (0, 100) if that is meant"
            )


def _tidy(
    path: str | Path, rows: list[tuple[str, dict[str, str]]], columns: list[str], model: str | None
) -> tuple[pd.DataFrame, dict[str, tuple[float, float]] | None]:
    table = pd.DataFrame([row for _, row in rows], columns=columns, dtype=object)
    scores = []
    for where, row in rows:
        score = _number(row["score"])
        if score is None:
            raise InputError(
                f"{where}: score {one_line(row['score'], 40)!r} is no number;"
                " leave it empty where unscored"
            )
        scores.append(score)
    table["score"] = scores
    if model is not None:
        table["model"] = model
    if "scale_low" not in columns or "scale_high" not in columns:
        return table, None
    scales: dict[str, tuple[float, float]] = {}
    for where, row in rows:
        low, high = _number(row["scale_low"]), _number(row["scale_high"])
        known = scales.get(row["metric"], (low, high))
        if low is None or high is None or not low < high or known != (low, high):
            raise InputError(
                f"{where}: columns scale_low and scale_high must hold one scale a metric,"
                " such as 0 and 100, in every row"
            )
        scales[row["metric"]] = (low, high)
    return table, scales


def _metric_columns(
    path: str | Path,
    rows: list[tuple[str, dict[str, str]]],
    columns: list[str],
    metrics: Sequence[str] | None,
) -> list[str]:
    if metrics is not None:
        lacking = [name for name in metrics if name not in columns]
        if lacking or isinstance(metrics, str) or not metrics:
            raise InputError(
                f"{path}: metrics={metrics!r} are not all columns; it has {_shown(columns)}"
            )
        return list(metrics)
    chosen = []
    for name in columns:
        if name.lower() in _NOT_METRICS:
            continue
        numbers = [_number(row[name]) for _, row in rows]
        numeric = any(number is not None and not math.isnan(number) for number in numbers)
        if name in _KNOWN_METRICS or (numeric and None not in numbers):
            chosen.append(name)
    if not chosen:
        raise InputError(
            f"{path}: has no column of scores, such as 'aligned'; it has {_shown(columns)}"
        )
    return chosen


def _number(cell: str) -> float | None:
    """NaN for a cell that says missing, None for one that is no number."""
    if cell.strip().lower() in _MISSING:
        return math.nan
    try:
        return float(cell)
    except ValueError:
        return None


def _cell(cell: str) -> tuple[float, str, str]:
    number = _number(cell)
    if number is None:
        return math.nan, one_line(cell, 40).lower(), cell
    return (math.nan, "unscored", "") if math.isnan(number) else (number, "ok", "")


def _shown(columns: Sequence[str]) -> list[str]:
    return [one_line(name, 40) for name in columns[:12]]
