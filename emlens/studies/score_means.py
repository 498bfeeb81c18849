"""Mean score over questions, with an interval over what was sampled: domains, or base questions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from emlens.data.base_questions import units_of_ids
from emlens.data.rates import mean_over_questions
from emlens.foundation.estimate import Estimate
from emlens.results.wording import counted
from emlens.stats import cluster_bootstrap

SCALE = (0.0, 100.0)
DIFFERENCES = (-100.0, 100.0)


def mean_score(
    scores: pd.Series,
    questions: Sequence[str],
    seed: int,
    *,
    groups: Mapping[str, str] | None = None,
    limits: tuple[float, float] = SCALE,
) -> Estimate:
    """Mean of the scores of these questions, with a 95 % bootstrap interval that stays within the
    limits.

    Questions of one domain are alike, so an interval over questions holds for other questions of
    the same domains, and for other domains in 43 of 100 cases (docs/statistics.md). With `groups`
    whole domains are resampled, where there are two or more; base questions otherwise. Undefined
    of no question that has a score; without an interval of one unit. `n` counts units.

    Args:
        scores: by the question's id; NaN where a question has none.
        groups: domain of each question; None where they are all of one.
    """
    of_questions = scores[list(questions)].dropna()
    labels, unit = units_of_scores(of_questions, groups)
    if unit == "question":
        return mean_over_questions(of_questions, limits=limits, seed=seed)
    estimate = cluster_bootstrap(of_questions.to_numpy(np.float64), labels, seed=seed)
    low, high = np.clip([estimate.low, estimate.high], *limits).tolist()
    return replace(estimate, low=low, high=high)


def mean_by_unit(scores: pd.Series, groups: Mapping[str, str] | None = None) -> "pd.Series[float]":
    """Mean score of each unit: each domain where there are two or more, else each base question.

    Args:
        scores: by the question's id; NaN where a question has none.
    """
    scored = scores.dropna()
    labels, _ = units_of_scores(scored, groups)
    return scored.groupby(labels, sort=False).mean()


def units_of_scores(
    scores: pd.Series, groups: Mapping[str, str] | None = None
) -> tuple[list[str], str]:
    """What is resampled together, one label per score, and whether it is a `group` or a
    `question`.
    """
    ids = [str(question) for question in scores.index]
    return units_of_ids(ids, [(groups or {}).get(question, "") for question in ids])


def counted_units(scores: pd.Series, groups: Mapping[str, str] | None = None) -> str:
    """The units of a mean in words: "11 domains of 154 questions", "24 base questions"."""
    scored = scores.dropna()
    labels, unit = units_of_scores(scored, groups)
    if unit == "question":
        return counted(len(set(labels)), "base question")
    return f"{counted(len(set(labels)), 'domain')} of {counted(len(scored), 'question')}"
