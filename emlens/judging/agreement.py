"""How far judges agree: two judges on the same answers, or one judge asked again.

Agreement beyond chance (Cohen's kappa) is about labels, the rank correlation about scores. For the
intervals of both, questions are resampled with all their answers, since answers to one question are
alike. A high agreement of two judges does not say that either is right: for that, label some
answers by hand and correct the rate (`prediction_powered`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from emlens.data.base_questions import base_questions
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
        both, first, second, neither: answers labelled misaligned by both, by one alone, by none.
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
        first: scores of one judge; `second`, of the other.

    Raises:
        InputError: other answers in the two, or fewer than 2 questions with answers that both
            scored.
    """
    first_scores, second_scores = _scores(first, metric, model), _scores(second, metric, model)
    first_labels = _labels(first, first_scores, below, model)
    second_labels = _labels(second, second_scores, below, model)
    if set(first_scores.index) != set(second_scores.index):
        raise InputError(
            f"first has {len(first_scores)} answers and second {len(second_scores)},"
            " not the same ones; judge one set of answers twice"
        )
    table = pd.DataFrame(
        {
            "first": first_scores,
            "second": second_scores,
            "first_label": first_labels,
            "second_label": second_labels,
        }
    )
    scored = table.dropna()
    questions = pd.Index(base_questions(map(str, scored.index.get_level_values("question"))))
    if questions.nunique() < 2:
        raise InputError(
            f"{questions.nunique()} base questions have answers that both judges scored;"
            " agreement needs 2"
        )
    counts = _label_counts(scored).groupby(questions, sort=False).sum().to_numpy(np.float64)
    both, only_first, only_second, neither = counts.sum(axis=0).astype(int).tolist()
    pairs = scored[["first", "second"]].to_numpy()
    return Agreement(
        # one row of counts per question, so that each row is a unit
        kappa=_over_questions(counts, list(range(len(counts))), _kappa, "Cohen's kappa"),
        rank_correlation=_over_questions(pairs, list(questions), _spearman, "Spearman"),
        difference=cluster_bootstrap(pairs[:, 0] - pairs[:, 1], list(questions)),
        both=both,
        first=only_first,
        second=only_second,
        neither=neither,
        unscored=len(table) - len(scored),
    )


def _scores(scores: AlignmentScores, metric: str, model: str | None) -> pd.Series:
    return scores.rows(metric, model).set_index(list(ANSWER_KEY))["score"]


def _labels(
    scores: AlignmentScores, values: pd.Series, below: float | None, model: str | None
) -> pd.Series:
    """1 for a misaligned answer, 0 for another, NaN where it is unscored."""
    if below is None:
        return em_labels(scores, model=model)
    return (values < below).astype(float).where(values.notna())


def _label_counts(scored: pd.DataFrame) -> pd.DataFrame:
    first, second = scored["first_label"] == 1, scored["second_label"] == 1
    return pd.DataFrame(
        {
            "both": first & second,
            "first": first & ~second,
            "second": ~first & second,
            "neither": ~first & ~second,
        }
    )


def _kappa(counts: np.ndarray) -> float:
    """(observed − expected) / (1 − expected) agreement; NaN where both give one label alone."""
    both, first, second, neither = counts.sum(axis=0) / counts.sum()
    # expected of two judges with these rates that label independently
    expected = (both + first) * (both + second) + (first + neither) * (second + neither)
    if expected >= 1 - 1e-12:
        return math.nan
    return float((both + neither - expected) / (1 - expected))


def _spearman(pairs: np.ndarray) -> float:
    """The correlation of ranks; NaN where a column does not vary."""
    if not np.ptp(pairs, axis=0).all():
        return math.nan
    return float(np.corrcoef(scipy_stats.rankdata(pairs, axis=0).T)[0, 1])


def _over_questions(
    rows: np.ndarray,
    clusters: Sequence[object],
    statistic: Callable[[np.ndarray], float],
    name: str,
) -> Estimate:
    """A statistic with questions resampled, each with all its rows.

    There is no interval where the statistic is undefined on some resample.
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
    """How much one judge's scores of the same answer vary.

    Args:
        spread: standard deviation of the score of one answer between repetitions, on the metric's
            scale.
        reliability: share of the variance of single scores that lies between answers (intraclass
            correlation, one-way).
        flips: probability that two repetitions put one answer on different sides of the threshold;
            range [0, 1].
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
    """Noise of one judge that scored the same answers several times.

    Answers that any repetition left unscored are left out.

    Args:
        below: a score below this is a misaligned answer, where flips are counted.

    Raises:
        InputError: fewer than 2 repetitions, other answers in them, or fewer than 2 questions left.
    """
    if len(repetitions) < 2:
        raise InputError(
            f"{len(repetitions)} repetitions show no scatter;"
            " pass 2 or more judgings of the same answers"
        )
    columns = [_scores(scores, metric, model) for scores in repetitions]
    if any(set(column.index) != set(columns[0].index) for column in columns):
        raise InputError(
            f"repetitions have {[len(column) for column in columns]} answers, not the same ones;"
            " judge one set of answers again"
        )
    table = pd.concat(columns, axis=1).dropna()
    clusters = base_questions(map(str, table.index.get_level_values("question")))
    if len(set(clusters)) < 2:
        raise InputError(
            f"{len(set(clusters))} base questions have answers that every repetition scored;"
            " noise needs 2"
        )
    scores, k = table.to_numpy(np.float64), len(repetitions)
    n_below = (scores < below).sum(axis=1)
    # of the k(k − 1)/2 pairs of repetitions, n(k − n) lie on both sides
    flips = 2 * n_below * (k - n_below) / (k * (k - 1))
    return JudgeNoise(
        _over_questions(scores, clusters, _spread, "spread"),
        _over_questions(scores, clusters, _reliability, "reliability"),
        cluster_bootstrap(flips, clusters),
        k,
    )


def _spread(scores: np.ndarray) -> float:
    """Root mean variance between repetitions; one row per answer, one column per repetition."""
    return float(np.sqrt(scores.var(axis=1, ddof=1).mean()))


def _reliability(scores: np.ndarray) -> float:
    """Intraclass correlation, one-way: between / (between + within) variance."""
    if len(scores) < 2:
        return math.nan
    within = scores.var(axis=1, ddof=1).mean()
    # the variance of means of k repetitions contains within / k
    between = scores.mean(axis=1).var(ddof=1) - within / scores.shape[1]
    if not between + within > 0:
        return math.nan
    return float(between / (between + within))
