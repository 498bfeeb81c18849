"""Noise ceilings: the R² that a perfect forecast of the true score could reach, given how noisily
it was measured.

From answers: a question's mean over few sampled answers strays from its true mean. From seeds: runs
of one recipe that differ in their seed differ in scores, and nothing known before fine-tuning can
foresee which seed is run. A forecast is compared with its ceiling, not with 1. A ceiling has an
interval, by resampling units; a forecast above it is luck or a leak.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from emlens.data.base_questions import base_questions
from emlens.data.scores import AlignmentScores
from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.files import one_line
from emlens.probes.ridge import Array
from emlens.probes.targets import sampling_variance
from emlens.stats import cluster_bootstrap
from emlens.stats.samples import labels_in_order


def ceiling_from_answers(
    scores: AlignmentScores,
    metric: str = "aligned",
    model: str | None = None,
    *,
    clusters: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Estimate:
    """1 − (mean squared sampling error of a question's score) / (variance of questions' scores).

    Range (−∞, 1]; 0 or less where the scores are noise. Scores without sampling (likelihoods) have
    no such ceiling.

    Args:
        clusters: question → what is resampled together, such as its domain; each base question by
            default.

    Raises:
        InputError: a question with fewer than two scored answers, scores that are all alike.
    """
    error, mean = sampling_variance(scores, metric, model), scores.per_question(metric, model)
    for name in mean.index:
        if not np.isfinite(error.get(name, np.nan)):
            raise InputError(
                f"question {one_line(str(name))!r} has fewer than two scored answers,"
                " so its sampling error is unknown; sample more answers"
            )
    _require_spread(mean.to_numpy(), metric)
    rows = np.c_[mean.to_numpy(), error.reindex(mean.index).to_numpy()]

    def ceiling(rows: Array) -> float:
        spread = float(rows[:, 0].var(ddof=1))
        return 1 - float(rows[:, 1].mean()) / spread if spread > 0 else 0.0

    names = [str(name) for name in mean.index]
    units = base_questions(names)
    if clusters is not None:
        units = [clusters[name] for name in names]
    return cluster_bootstrap(rows, units, ceiling, resamples=499, method="percentile", seed=seed)


def ceiling_from_seeds(
    table: pd.DataFrame, *, clusters: Sequence[str] | None = None, seed: int = 0
) -> Estimate:
    """The share of one run's variance over questions that it has in common with other seeds.

    The mean covariance of two runs over the mean variance of a run: what the best forecast of a
    single run could reach if it knew the recipe's mean score of each question. Range (−∞, 1].

    Args:
        table: one row per question, one column per seed of the same recipe.
        clusters: one label per row, what is resampled together; by default the base questions
            that the index names.

    Raises:
        InputError: fewer than two seeds, scores that are missing or all alike, clusters that do not
            fit.
    """
    values = table.to_numpy(dtype=np.float64)
    if values.ndim != 2 or values.shape[1] < 2:
        raise InputError(
            f"table has {values.shape[-1]} seeds;"
            " a ceiling from seeds needs at least 2 runs of one recipe"
        )
    if not np.isfinite(values).all():
        raise InputError(
            "table holds scores that are NaN or infinite;"
            " keep the questions that every seed has a score for"
        )
    for column in values.T:
        _require_spread(column, "seed's")

    def ceiling(rows: Array) -> float:
        covariance = np.cov(rows, rowvar=False)
        runs, trace = len(covariance), float(np.trace(covariance))
        variance = trace / runs
        between = (float(covariance.sum()) - trace) / (runs * (runs - 1))
        return between / variance if variance > 0 else 0.0

    units: list[Any] = base_questions(map(str, table.index))
    if clusters is not None:
        units = labels_in_order(clusters, "clusters")
    return cluster_bootstrap(values, units, ceiling, resamples=499, method="percentile", seed=seed)


def _require_spread(values: Array, what: str) -> None:
    if np.ptp(values) == 0:
        raise InputError(
            f"the {what} score is {values[0]:g} for every question;"
            " a ceiling needs scores that differ"
        )
