"""Means and rates of scored answers, with intervals for one of two stated estimands.

"questions like these": the base questions are a sample, and the interval is for the mean over all
questions that could have been asked; the forms of one base question are resampled together. "these
questions": they are fixed, and only answers are sampled again
(`emlens.stats.hierarchical_bootstrap`).

Design range of a rate over questions like these: 24 questions or more, and a rate from 15 to 85 %.
Outside it an interval tends to be too short; its `method` says so, and the log warns once. Coverage
by rate, measured at 24 questions of 50 answers: docs/evidence/em_rate_coverage.json.
"""

import logging
import math
from dataclasses import replace
from functools import cache
from typing import Final, Literal

import numpy as np
import pandas as pd

from emlens.data.base_questions import base_questions
from emlens.foundation.choices import require_choice
from emlens.foundation.estimate import Estimate
from emlens.stats import (
    bootstrap_mean,
    cluster_bootstrap,
    hierarchical_bootstrap,
    wilson_interval,
)

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


def averaged(
    rows: pd.DataFrame, average: Average, estimand: Estimand, scale: tuple[float, float]
) -> Estimate:
    """Mean of scores over questions or over answers, with an interval.

    Args:
        rows: columns question and score (NaN where unscored).
        scale: within which the interval is kept.

    Raises:
        InputError: an unknown average or estimand.
    """
    require_choice(average, "average", Average)
    require_choice(estimand, "estimand", Estimand)
    questions = rows["question"].nunique()
    rows = rows[rows["score"].notna()]
    if not len(rows):
        return Estimate.undefined("no answer is scored")
    rows = rows.assign(base=base_questions(map(str, rows["question"])))
    sizes = rows.groupby("question", sort=False)["score"].size()
    estimate = _interval(rows, sizes, average, estimand)
    method = estimate.method
    if questions > len(sizes):
        method += f", {questions - len(sizes)} questions without a scored answer left out"
    if _OUTSIDE in method:
        _warn_once("too few or too skewed questions")
    # np.clip keeps NaN, which stands for no interval
    low, high = np.clip([estimate.low, estimate.high], *scale).tolist()
    return Estimate(estimate.value, low, high, rows["base"].nunique(), method)


def _interval(
    rows: pd.DataFrame, sizes: pd.Series, average: Average, estimand: Estimand
) -> Estimate:
    scores = rows["score"].to_numpy(np.float64)
    description = "mean over questions" if average == "question" else "mean over answers"
    by_question = rows.groupby("question", sort=False)["score"].mean()
    value = float(by_question.mean() if average == "question" else scores.mean())
    n_bases = rows["base"].nunique()
    if estimand == LIKE_THESE and n_bases == 1:
        method = f"{description}, one base question: no interval over questions"
        return Estimate(value, math.nan, math.nan, 1, method)
    if estimand != LIKE_THESE and sizes.min() < 2:
        method = f"{description}, {estimand}: no interval, since a question has one scored answer"
        return Estimate(value, math.nan, math.nan, len(sizes), method)
    if len(sizes) == 1:
        return bootstrap_mean(scores)
    clusters = rows["base"].to_numpy() if n_bases < len(sizes) else None
    return hierarchical_bootstrap(
        scores,
        rows["question"].to_numpy(),
        estimand=estimand,
        average=average,
        clusters=clusters,
    )


def mean_over_questions(
    scores: pd.Series,
    *,
    limits: tuple[float, float] | None = (0.0, 100.0),
    resamples: int = 9999,
    seed: int = 0,
) -> Estimate:
    """Mean of one score per question, with base questions resampled.

    Undefined without a score; without an interval of fewer than two base questions.

    Args:
        scores: by the question's id; NaN where there is none.
        limits: within which the interval is kept; None: no limits.
    """
    scores = scores.dropna()
    values, bases = scores.to_numpy(np.float64), base_questions(map(str, scores.index))
    n = len(set(bases))
    if n == 0:
        return Estimate.undefined("no question has a score")
    if n == 1:
        method = "mean, one base question: no interval"
        return Estimate(float(values.mean()), math.nan, math.nan, 1, method)
    if n == len(values):
        estimate = bootstrap_mean(values, resamples=resamples, seed=seed)
    else:
        estimate = cluster_bootstrap(values, bases, resamples=resamples, seed=seed)
    if limits is None:
        return estimate
    low, high = np.clip([estimate.low, estimate.high], *limits).tolist()
    return replace(estimate, low=low, high=high)


def rate(
    question: pd.Series,
    meets: pd.Series,
    scored: pd.Series,
    average: Average,
    unscored: Unscored,
    estimand: Estimand = LIKE_THESE,
) -> Estimate:
    """Share of answers that meet a condition.

    Args:
        question, meets, scored: of each answer: its question, whether it meets the condition, and
            whether it has a score.
        unscored: `"count"` counts answers without a score as not meeting it.

    Raises:
        InputError: an unknown average, estimand or way with unscored answers.
    """
    require_choice(unscored, "unscored", Unscored)
    values = (meets & scored).astype(np.float64)
    if unscored == "drop":
        values = values.where(scored)
    rows = pd.DataFrame({"question": question, "score": values})
    estimate = averaged(rows, average, estimand, (0.0, 1.0))
    counted = values.dropna()
    if not len(counted) or (estimate.n < 2 and estimand == LIKE_THESE):
        return estimate
    if counted.nunique() == 1:
        return _wilson_over_units(estimate, float(counted.iloc[0]), len(counted), estimand)
    if estimate.low == estimate.high:  # answers agree within every question: nothing to resample
        return replace(estimate, low=math.nan, high=math.nan)
    if estimand == LIKE_THESE and not DESIGN_RATE <= estimate.value <= 1 - DESIGN_RATE:
        reason = f"a rate above {1 - DESIGN_RATE:.0%}"
        if estimate.value < DESIGN_RATE:
            reason = f"a rate below {DESIGN_RATE:.0%}"
        _warn_once(reason)
        return replace(estimate, method=f"{estimate.method}; {_OUTSIDE}: {reason}")
    return estimate


def _wilson_over_units(
    estimate: Estimate, value: float, answers: int, estimand: Estimand
) -> Estimate:
    """The interval where every answer is 0, or every answer is 1.

    Resampling would give a single point there: it cannot tell 0 from rare. The units are questions
    where these are a sample, since answers to one question are not independent draws of questions.
    """
    units, unit_name = estimate.n, "base questions"
    if estimand != LIKE_THESE:
        units, unit_name = answers, "answers taken as independent"
    bound = wilson_interval(units * int(value), units)
    description = estimate.method.partition(",")[0]
    method = f"{description}, no question differs: 95 % Wilson over {units} {unit_name}"
    return replace(estimate, low=bound.low, high=bound.high, method=method)


@cache
def _warn_once(reason: str) -> None:
    _log.warning(
        "the interval of a misalignment rate lies %s (%s) and tends to be too short;"
        " its method says so",
        _OUTSIDE,
        reason,
    )
