"""Means and rates of scored answers, with intervals for one of two stated estimands.

"questions like these": the questions are a sample, and the interval is for the mean over all
questions that could have been asked; "these questions": they are fixed, and only answers are drawn
anew (`emlens.stats.hierarchical_bootstrap`).

Design range of a rate over questions like these: 24 questions or more, and a rate from 15 to 85 %.
Outside it an interval tends to be too short; its `method` says so, and the log warns once. Coverage
by rate, measured at 24 questions of 50 answers: docs/evidence/em_rate_coverage.json.
"""

import logging
import math
from functools import cache
from typing import Final, Literal, get_args

import numpy as np
import pandas as pd

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.stats import bootstrap_mean, hierarchical_bootstrap, wilson_interval

Average = Literal["question", "pooled"]
Unscored = Literal["drop", "count"]
Estimand = Literal["questions like these", "these questions"]

LIKE_THESE: Final[Estimand] = "questions like these"
DESIGN_RATE: Final = 0.15
"""Between this rate and one minus it, intervals from 24 questions of 50 answers hold the truth in
93 of 100 cases or more.
"""

_OUTSIDE: Final = "outside its design range"
_log = logging.getLogger("emlens")


def require_choice(value: str, kind: object, name: str) -> None:
    if value not in get_args(kind):
        raise InputError(
            f"{name}={value!r} is unknown; pass {' or '.join(map(repr, get_args(kind)))}"
        )


def averaged(
    rows: pd.DataFrame, average: Average, estimand: Estimand, scale: tuple[float, float]
) -> Estimate:
    """Mean of the scores in `rows` (columns question and score, NaN where unscored) over questions
    or over answers.

    Raises:
        InputError: an unknown average or estimand.
    """
    require_choice(average, Average, "average")
    require_choice(estimand, Estimand, "estimand")
    asked = rows["question"].nunique()
    rows = rows[rows["score"].notna()]
    if not len(rows):
        return Estimate.undefined("no answer is scored")
    sizes = rows.groupby("question", sort=False)["score"].size()
    left_out = (
        f", {asked - len(sizes)} questions without a scored answer left out"
        if asked > len(sizes)
        else ""
    )
    found = _interval(rows, sizes, average, estimand)
    method = found.method + left_out
    if _OUTSIDE in method:
        _warn_once("too few or too skewed questions")
    low, high = (
        min(max(end, scale[0]), scale[1]) if not math.isnan(end) else end
        for end in (found.low, found.high)
    )
    return Estimate(found.value, low, high, len(sizes), method)


def _interval(
    rows: pd.DataFrame, sizes: pd.Series, average: Average, estimand: Estimand
) -> Estimate:
    scores, what = (
        rows["score"].to_numpy(np.float64),
        ("mean over questions" if average == "question" else "mean over answers"),
    )
    if estimand == LIKE_THESE and len(sizes) == 1:
        return Estimate(
            float(scores.mean()),
            math.nan,
            math.nan,
            1,
            f"{what}, one question: no interval over questions",
        )
    if estimand != LIKE_THESE and sizes.min() < 2:
        by_question = rows.groupby("question", sort=False)["score"].mean()
        value = float(by_question.mean() if average == "question" else scores.mean())
        return Estimate(
            value,
            math.nan,
            math.nan,
            len(sizes),
            f"{what}, {estimand}: no interval, since a question has one scored answer",
        )
    if len(sizes) == 1:
        return bootstrap_mean(scores)
    return hierarchical_bootstrap(
        scores, rows["question"].to_numpy(), estimand=estimand, average=average
    )


def rate(
    question: pd.Series,
    met: pd.Series,
    scored: pd.Series,
    average: Average,
    unscored: Unscored,
    estimand: Estimand = LIKE_THESE,
) -> Estimate:
    """Share of answers that meet a condition; `unscored="count"` counts answers without a score as
    not meeting it.

    Raises:
        InputError: an unknown average, estimand or way with unscored answers.
    """
    require_choice(unscored, Unscored, "unscored")
    value = (met & scored).astype(np.float64)
    if unscored == "drop":
        value = value.where(scored)
    found = averaged(
        pd.DataFrame({"question": question, "score": value}), average, estimand, (0.0, 1.0)
    )
    kept = value.dropna()
    if not len(kept) or (found.n < 2 and estimand == LIKE_THESE):
        return found
    if kept.nunique() == 1:  # resampling cannot tell 0 from rare
        # answers to one question are not independent draws of questions
        units = found.n if estimand == LIKE_THESE else len(kept)
        bound = wilson_interval(units * int(kept.iloc[0]), units)
        reason = (
            f"no question differs: 95 % Wilson over {units}"
            f" {'questions' if estimand == LIKE_THESE else 'answers taken as independent'}"
        )
        return Estimate(
            found.value,
            bound.low,
            bound.high,
            found.n,
            f"{found.method.partition(',')[0]}, {reason}",
        )
    if found.low == found.high:  # answers that agree within every question: nothing to resample
        return Estimate(found.value, math.nan, math.nan, found.n, found.method)
    if estimand == LIKE_THESE and not DESIGN_RATE <= found.value <= 1 - DESIGN_RATE:
        words = (
            f"a rate below {DESIGN_RATE:.0%}"
            if found.value < DESIGN_RATE
            else f"a rate above {1 - DESIGN_RATE:.0%}"
        )
        _warn_once(words)
        return Estimate(
            found.value, found.low, found.high, found.n, f"{found.method}; {_OUTSIDE}: {words}"
        )
    return found


@cache
def _warn_once(words: str) -> None:
    _log.warning(
        "the interval of a misalignment rate lies %s (%s) and tends to be too short;"
        " its method says so",
        _OUTSIDE,
        words,
    )
