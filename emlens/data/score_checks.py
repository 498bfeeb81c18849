"""What a table of scores must be before anything is computed from it: columns, types, scales, one
row an answer and metric.
"""

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
import pandas as pd

from emlens.data.judged import INT_COLUMNS, TEXT_COLUMNS
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
ANSWER_KEY: Final = ("model", "question", "paraphrase", "sample")
OPTIONAL: Final = {"group": "", "paraphrase": 1, "raw": ""}

Scale = tuple[float, float]


def clean_table(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of a table of scores in their types; further columns are left out.

    Raises:
        InputError: a column that lacks, no row, a number that is none.
    """
    lacking = [name for name in COLUMNS if name not in table.columns and name not in OPTIONAL]
    if lacking:
        raise InputError(
            f"table lacks columns {lacking}; it has {[str(name) for name in table.columns][:12]}"
        )
    if not len(table):
        raise InputError("table has no rows; pass at least one score")
    clean = pd.DataFrame(
        {name: table[name] if name in table.columns else OPTIONAL[name] for name in COLUMNS},
        index=table.index,
    )
    clean = clean.reset_index(drop=True)
    for name in TEXT_COLUMNS:
        clean[name] = (
            clean[name].map(lambda cell: "" if pd.isna(cell) else str(cell)).astype(object)
        )
    for name in INT_COLUMNS:
        clean[name] = _integers(clean[name], name)
    try:
        clean["score"] = clean["score"].astype(np.float64)
    except (TypeError, ValueError):
        raise InputError(
            f"column 'score' holds {clean['score'].dtype} values that are no numbers;"
            " pass NaN where unscored"
        ) from None
    return clean


def scales_of(table: pd.DataFrame, scale: Scale | Mapping[str, Scale]) -> dict[str, Scale]:
    """The scale of each metric of a table, from one scale for all or one for each.

    Raises:
        InputError: a scale that is none, or a metric without one.
    """
    metrics = [str(name) for name in table["metric"].unique()]
    given = scale if isinstance(scale, Mapping) else dict.fromkeys(metrics, scale)
    if lacking := [name for name in metrics if name not in given]:
        raise InputError(
            f"scale names {sorted(map(str, given))[:8]},"
            f" but the table also has metric {one_line(lacking[0], 40)!r};"
            " give each metric its scale"
        )
    found = {}
    for name in metrics:
        try:
            low, high = map(float, given[name])
        except (TypeError, ValueError):
            low = high = math.nan
        if not (low < high and math.isfinite(low) and math.isfinite(high)):
            raise InputError(
                f"scale={given[name]!r} must be (low, high) with low < high;"
                " pass (0, 100) for the field's scale"
            )
        found[name] = (low, high)
    return found


def check_table(table: pd.DataFrame, scales: Mapping[str, Scale]) -> None:
    """Refuse empty names, scores that contradict their status or leave their scale, and answers
    scored twice.

    Raises:
        InputError: any of these; the message names the first row.
    """

    def show(bad: pd.Series) -> str:
        row = table[bad].iloc[0]
        question, metric = one_line(row["question"], 60), one_line(row["metric"], 40)
        return (
            f"question {question!r}, phrasing {row['paraphrase']}, sample {row['sample']},"
            f" metric {metric!r}"
        )

    for name in ("model", "question", "metric", "status"):
        if (bad := table[name] == "").any():
            raise InputError(
                f"column {name!r} is empty in {int(bad.sum())} rows; every score needs one"
            )
    score, ok = table["score"], table["status"] == "ok"
    if (bad := score.isna() & ok).any():
        raise InputError(
            f"{int(bad.sum())} rows have no score but status 'ok' ({show(bad)});"
            " pass the reason as status"
        )
    if (bad := score.notna() & ~ok).any():
        raise InputError(
            f"{int(bad.sum())} rows have a score and a status other than 'ok' ({show(bad)});"
            " pass NaN or 'ok'"
        )
    low = table["metric"].map({name: ends[0] for name, ends in scales.items()})
    high = table["metric"].map({name: ends[1] for name, ends in scales.items()})
    if (bad := (score < low) | (score > high)).any():
        worst = float(score[bad].iloc[0])
        ends = scales[table[bad]["metric"].iloc[0]]
        raise InputError(
            f"score {worst:g} ({show(bad)}) lies outside the scale {ends[0]:g} to {ends[1]:g};"
            " pass scores on it, or scale="
        )
    if (bad := table.duplicated([*ANSWER_KEY, "metric"])).any():
        raise InputError(
            f"{int(bad.sum())} rows score an answer a second time ({show(bad)}); pass one row each"
        )
    kinds = table.drop_duplicates(["question", "group"])
    if (bad := kinds["question"].duplicated()).any():
        question = kinds[bad]["question"].iloc[0]
        groups = sorted(kinds[kinds["question"] == question]["group"])
        raise InputError(
            f"question {one_line(question, 60)!r} comes in groups {groups};"
            " pass one group a question"
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
    if not (
        np.isfinite(numbers) & (numbers == np.floor(numbers)) & (numbers >= 0) & (numbers < 2**53)
    ).all():
        raise InputError(f"column {name!r} must hold integers of 0 or more in every row")
    return numbers.astype(np.int64)
