"""How far judges agree: two judges on the same answers, or one judge asked again.

Agreement beyond chance (Cohen's kappa) is on labels, the rank correlation on scores; both resample
questions, since answers to one question are alike. A high agreement of two judges says nothing
about whether either is right: for that, label some answers by hand and correct the rate
(`prediction_powered`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from emlens.data.misalignment import em_labels
from emlens.data.score_checks import ANSWER_KEY
from emlens.data.scores import AlignmentScores
from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.stats import cluster_bootstrap

_RESAMPLES = 499


@dataclass(frozen=True)
class Agreement:
    """Two judges on the answers that both scored.

    Args:
        kappa: Cohen's kappa of "misaligned" (or of a score below a threshold); range [-1, 1], 0 at
            chance.
        rank_correlation: Spearman's of the scores; range [-1, 1].
        difference: mean score of the first minus the second.
        both, first, second, neither: answers called misaligned by both, by one alone, by none.
        unscored: answers that at least one of them left unscored.
    """

    kappa: Estimate
    rank_correlation: Estimate
    difference: Estimate
    both: int
    first: int
    second: int
    neither: int
    unscored: int


def judge_agreement(
    first: AlignmentScores,
    second: AlignmentScores,
    metric: str = "aligned",
    *,
    below: float | None = None,
    model: str | None = None,
) -> Agreement:
    """Agreement of two judges' scores of the same answers.

    Args:
        metric: whose scores are correlated.
        below: label = score of `metric` below this; left out, misaligned as in `em_rate` (needs
            `aligned` and `coherent`).

    Raises:
        InputError: other answers in the two, or fewer than 2 questions with answers that both
            scored.
    """
    sides = [
        scores.rows(metric, model).set_index(list(ANSWER_KEY))["score"]
        for scores in (first, second)
    ]
    labels = [
        (
            em_labels(scores, model=model)
            if below is None
            else (side < below).astype(float).where(side.notna())
        )
        for scores, side in zip((first, second), sides, strict=True)
    ]
    if set(sides[0].index) != set(sides[1].index):
        raise InputError(
            f"first has {len(sides[0])} answers and second {len(sides[1])}, not the same ones;"
            " judge one set of answers twice"
        )
    table = pd.DataFrame({"a": sides[0], "b": sides[1], "la": labels[0], "lb": labels[1]})
    scored = table.dropna()
    clusters = scored.index.get_level_values("question")
    if clusters.nunique() < 2:
        raise InputError(
            f"{clusters.nunique()} questions have answers that both judges scored;"
            " agreement needs 2"
        )
    counts = pd.DataFrame(
        {
            "both": (scored["la"] == 1) & (scored["lb"] == 1),
            "first": (scored["la"] == 1) & (scored["lb"] == 0),
            "second": (scored["la"] == 0) & (scored["lb"] == 1),
            "neither": (scored["la"] == 0) & (scored["lb"] == 0),
        }
    )
    by_question = counts.groupby(clusters, sort=False).sum().to_numpy(np.float64)
    both, one, other, neither = by_question.sum(axis=0).astype(int).tolist()
    gaps = (scored["a"] - scored["b"]).to_numpy()
    return Agreement(
        _over_questions(by_question, list(range(len(by_question))), _kappa, "Cohen's kappa"),
        _over_questions(scored[["a", "b"]].to_numpy(), list(clusters), _spearman, "Spearman"),
        cluster_bootstrap(gaps, list(clusters)),
        both,
        one,
        other,
        neither,
        len(table) - len(scored),
    )


def _kappa(counts: np.ndarray) -> float:
    both, first, second, neither = counts.sum(axis=0) / counts.sum()
    expected = (both + first) * (both + second) + (first + neither) * (second + neither)
    return float((both + neither - expected) / (1 - expected)) if expected < 1 - 1e-12 else math.nan


def _spearman(pairs: np.ndarray) -> float:
    return (
        float(np.corrcoef(scipy_stats.rankdata(pairs, axis=0).T)[0, 1])
        if np.ptp(pairs, axis=0).all()
        else math.nan
    )


def _over_questions(
    rows: np.ndarray,
    clusters: Sequence[object],
    statistic: Callable[[np.ndarray], float],
    name: str,
) -> Estimate:
    """A statistic with questions resampled; without an interval where some resample leaves it
    undefined.
    """
    value = statistic(rows)
    n = len(set(clusters))
    if math.isnan(value):
        return Estimate.undefined(f"{name} of labels or scores that do not vary", n)
    try:
        return cluster_bootstrap(rows, clusters, statistic, resamples=_RESAMPLES)
    except InputError:
        return Estimate(
            value,
            math.nan,
            math.nan,
            n,
            f"{name}; no interval, since it is undefined on some resamples of the questions",
        )


@dataclass(frozen=True)
class JudgeNoise:
    """What a judge's own scatter does.

    Args:
        spread: standard deviation of the score of one answer between repetitions, on the metric's
            scale.
        reliability: share of the variance of single scores that lies between answers (intraclass
            correlation, one-way).
        flips: chance that two repetitions put one answer on different sides of the threshold; range
            [0, 1].
        repetitions: how often each answer was judged.
    """

    spread: Estimate
    reliability: Estimate
    flips: Estimate
    repetitions: int


def judge_noise(
    repetitions: Sequence[AlignmentScores],
    metric: str = "aligned",
    *,
    below: float = 30,
    model: str | None = None,
) -> JudgeNoise:
    """Scatter of one judge that scored the same answers several times; answers that any repetition
    left unscored are left out.

    Raises:
        InputError: fewer than 2 repetitions, other answers in them, or fewer than 2 questions left.
    """
    if len(repetitions) < 2:
        raise InputError(
            f"{len(repetitions)} repetitions show no scatter;"
            " pass 2 or more judgings of the same answers"
        )
    columns = [
        scores.rows(metric, model).set_index(list(ANSWER_KEY))["score"] for scores in repetitions
    ]
    if any(set(column.index) != set(columns[0].index) for column in columns):
        raise InputError(
            f"repetitions have {[len(column) for column in columns]} answers, not the same ones;"
            " judge one set of answers again"
        )
    table = pd.concat(columns, axis=1).dropna()
    clusters = list(table.index.get_level_values("question"))
    if len(set(clusters)) < 2:
        raise InputError(
            f"{len(set(clusters))} questions have answers that every repetition scored;"
            " noise needs 2"
        )
    scores, k = table.to_numpy(np.float64), len(repetitions)
    low = (scores < below).sum(axis=1)
    flips = 2 * low * (k - low) / (k * (k - 1))

    def spread(rows: np.ndarray) -> float:
        return float(np.sqrt(rows.var(axis=1, ddof=1).mean()))

    def reliability(rows: np.ndarray) -> float:
        within = rows.var(axis=1, ddof=1).mean()
        between = rows.mean(axis=1).var(ddof=1) - within / k if len(rows) > 1 else math.nan
        return float(between / (between + within)) if between + within > 0 else math.nan

    return JudgeNoise(
        _over_questions(scores, clusters, spread, "spread"),
        _over_questions(scores, clusters, reliability, "reliability"),
        cluster_bootstrap(flips, clusters),
        k,
    )
