"""What a table of scores must be before anything is computed from it.

Its columns, their types, the scales, and one row per answer and metric.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pandas as pd

from emlens.data.judged import COLUMNS, INT_COLUMNS, TEXT_COLUMNS
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line

ANSWER_KEY: Final = ("model", "question", "paraphrase", "sample")
OPTIONAL: Final = {"group": "", "paraphrase": 1, "raw": ""}

Scale = tuple[float, float]


def clean_table(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of a table of scores in their types; further columns are left out.

    Raises:
        InputError: a column that is missing, no row, a number that is none.
    """
    columns: dict[str, Any] = dict(OPTIONAL)
    columns |= {name: table[name] for name in COLUMNS if name in table.columns}
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        names = [str(name) for name in table.columns][:12]
        raise InputError(f"table lacks columns {missing}; it has {names}")
    if not len(table):
        raise InputError("table has no rows; pass at least one score")
    clean = pd.DataFrame({name: columns[name] for name in COLUMNS}, index=table.index)
    clean = clean.reset_index(drop=True)
    for name in TEXT_COLUMNS:
        clean[name] = clean[name].map(_as_text).astype(object)
    for name in INT_COLUMNS:
        clean[name] = _integers(clean[name], name)
    try:
        clean["score"] = clean["score"].astype(np.float64)
    except (TypeError, ValueError):
        raise InputError(
            f"column 'score' holds {clean['score'].dtype} values that are not numbers;"
            " pass NaN where unscored"
        ) from None
    return clean


def _as_text(cell: Any) -> str:
    return "" if pd.isna(cell) else str(cell)


def scales_of(table: pd.DataFrame, scale: Scale | Mapping[str, Scale]) -> dict[str, Scale]:
    """The scale of each metric of a table, from one scale for all or one for each.

    Raises:
        InputError: a scale that is none, or a metric without one.
    """
    metrics = [str(name) for name in table["metric"].unique()]
    by_metric = scale if isinstance(scale, Mapping) else dict.fromkeys(metrics, scale)
    for name in metrics:
        if name not in by_metric:
            raise InputError(
                f"scale names {sorted(map(str, by_metric))[:8]},"
                f" but the table also has metric {one_line(name, 40)!r};"
                " give each metric its scale"
            )
    return {name: _checked_scale(by_metric[name]) for name in metrics}


def _checked_scale(scale: Scale) -> Scale:
    try:
        low, high = map(float, scale)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (low < high and math.isfinite(low) and math.isfinite(high)):
        raise InputError(
            f"scale={scale!r} must be (low, high) with low < high;"
            " pass (0, 100) for the field's scale"
        )
    return low, high


def check_table(table: pd.DataFrame, scales: Mapping[str, Scale]) -> None:
    """Refuse empty names, scores that contradict their status or leave their scale, and answers
    scored twice.

    Raises:
        InputError: any of these; the message names the first row.
    """
    for name in ("model", "question", "metric", "status"):
        empty = table[name] == ""
        if empty.any():
            raise InputError(
                f"column {name!r} is empty in {int(empty.sum())} rows; every score needs one"
            )
    _check_status(table)
    _check_within_scales(table, scales)
    repeated = table.duplicated([*ANSWER_KEY, "metric"])
    if repeated.any():
        raise InputError(
            f"{int(repeated.sum())} rows score an answer a second time"
            f" ({_first_row(table, repeated)}); pass one row each"
        )
    _check_groups(table)


def _check_status(table: pd.DataFrame) -> None:
    score, ok = table["score"], table["status"] == "ok"
    without_score = score.isna() & ok
    if without_score.any():
        raise InputError(
            f"{int(without_score.sum())} rows have no score but status 'ok'"
            f" ({_first_row(table, without_score)}); pass the reason as status"
        )
    with_reason = score.notna() & ~ok
    if with_reason.any():
        raise InputError(
            f"{int(with_reason.sum())} rows have a score and a status other than 'ok'"
            f" ({_first_row(table, with_reason)}); pass NaN or 'ok'"
        )


def _check_within_scales(table: pd.DataFrame, scales: Mapping[str, Scale]) -> None:
    score = table["score"]
    low = table["metric"].map({name: scale[0] for name, scale in scales.items()})
    high = table["metric"].map({name: scale[1] for name, scale in scales.items()})
    outside = (score < low) | (score > high)
    if outside.any():
        scale = scales[table[outside]["metric"].iloc[0]]
        raise InputError(
            f"score {float(score[outside].iloc[0]):g} ({_first_row(table, outside)})"
            f" lies outside the scale {scale[0]:g} to {scale[1]:g};"
            " pass scale= (--scale), or metrics= (--metrics) with the columns that are scores"
        )


def _check_groups(table: pd.DataFrame) -> None:
    groups = table.drop_duplicates(["question", "group"])
    repeated = groups["question"].duplicated()
    if repeated.any():
        question = groups[repeated]["question"].iloc[0]
        names = sorted(groups[groups["question"] == question]["group"])
        raise InputError(
            f"question {one_line(question, 60)!r} comes in groups {names};"
            " pass one group per question"
        )


def _first_row(table: pd.DataFrame, rows: pd.Series) -> str:
    """The first of these rows, for a message."""
    row = table[rows].iloc[0]
    return (
        f"question {one_line(row['question'], 60)!r}, paraphrase {row['paraphrase']},"
        f" sample {row['sample']}, metric {one_line(row['metric'], 40)!r}"
    )


def require_threshold(value: float, name: str, scale: Scale) -> float:
    """A threshold on the scale.

    Raises:
        InputError: outside the scale, or a share where the scale is 0 to 100.
    """
    low, high = scale
    if not low <= value <= high:
        raise InputError(
            f"{name}={value!r} lies outside the scale {low:g} to {high:g}; pass a threshold on it"
        )
    if (low, high) == (0.0, 100.0) and 0 < value < 1:
        raise InputError(
            f"{name}={value!r} reads as a share, but the scale is 0 to 100; pass {100 * value:g}"
        )
    return float(value)


def _integers(column: pd.Series, name: str) -> pd.Series:
    try:
        numbers = pd.to_numeric(column).astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = pd.Series(np.nan, index=column.index)
    is_integer = np.isfinite(numbers) & (numbers == np.floor(numbers))
    # beyond 2^53 a float64 no longer holds every integer
    if not (is_integer & (numbers >= 0) & (numbers < 2**53)).all():
        raise InputError(f"column {name!r} must hold integers of 0 or more in every row")
    return numbers.astype(np.int64)
