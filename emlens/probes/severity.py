"""Several fine-tunes at once: what each question has to lose, how much of it each fine-tune took,
and which numbers showed that before training.

Scores below the top of the scale are split as loss[question, run] ≈ severity[run] ·
hazard[question]. A question that a run trained on has no score there, and the split corrects for
which runs it lacks. Severity follows numbers that are known of a training file before training (its
context); without any it is the mean over runs. Nothing here reads activations.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.foundation.notebooks import Brief
from emlens.probes.ridge import (
    ALPHAS,
    Array,
    mean_and_scale,
    ridge_path,
    ridge_weights,
    standardise,
)
from emlens.probes.validation import grouped_folds

_ROUNDS = 50
LEAST_CLUSTERS = 3
"""Clusters of runs, beside one that is held out, without which nothing is learnt from their
context.
"""


def run_weights(clusters: Sequence[str]) -> Array:
    """Weight of each run: every cluster weighs the same; sums to 1."""
    counts = Counter(clusters)
    return np.array([1.0 / (len(counts) * counts[label]) for label in clusters])


def hazard_of(losses: Array, weights: Array) -> tuple[Array, Array]:
    """(hazard by question, severity by run) with loss ≈ severity · hazard, mean severity 1.

    By weighted alternating least squares: with one side fixed, the other is a regression through
    the origin for each question, or each run, over the scores that exist.

    Args:
        losses: (question, run), NaN where a question does not count for a run.
        weights: of each run, not negative, summing to 1; a run with weight 0 is ignored (its
            severity is still given).

    Raises:
        InputError: a question without a score in any counted run, or nothing lost anywhere.
    """
    is_counted = weights > 0
    has_score = np.isfinite(losses)
    without_score = np.flatnonzero(~has_score[:, is_counted].any(1))
    if len(without_score):
        raise InputError(
            f"question number {int(without_score[0])} has no score in any of"
            f" {int(is_counted.sum())} fine-tunes;"
            " drop it, or add a fine-tune outside its domain"
        )
    filled, mask = np.where(has_score, losses, 0.0), has_score.astype(float)
    severity = np.ones(losses.shape[1])
    hazard = np.zeros(len(losses))
    for _ in range(_ROUNDS):
        hazard = filled @ (weights * severity) / np.maximum(mask @ (weights * severity**2), 1e-300)
        before, severity = severity, filled.T @ hazard / np.maximum(mask.T @ hazard**2, 1e-300)
        # only the product is determined: the mean severity is set to 1
        level = float(weights @ severity)
        if not np.isfinite(level) or level <= 0:
            raise InputError(
                "no fine-tune lost anything on any question; there is nothing to forecast"
            )
        severity = severity / level
        if np.abs(severity - before).max() < 1e-10:
            break
    return filled @ (weights * severity) / (mask @ (weights * severity**2)), severity


@dataclass(frozen=True, repr=False)
class SeverityModel(Brief):
    """Severity of a run from its context: ridge on standardised numbers, kept within the range of
    the severities it was fitted on.

    Args:
        weights, mean, scale: by context column.
        low, high: least and largest severity fitted on.
    """

    weights: Array
    intercept: float
    mean: Array
    scale: Array
    low: float
    high: float

    def __call__(self, context: Array) -> Array:
        severity = (context - self.mean) / self.scale @ self.weights + self.intercept
        return np.asarray(np.clip(severity, self.low, self.high))


def severity_of(model: SeverityModel | None, context: Array | None) -> float:
    """Severity of the run with this context, in units of the mean severity of the runs fitted on;
    1 without a model or context.
    """
    if model is None or context is None:
        return 1.0
    return float(model(context[None])[0])


def fit_severity(
    context: Array, severity: Array, clusters: Sequence[str], seed: int
) -> SeverityModel:
    """Ridge of severity on context; the penalty is chosen with whole clusters left out.

    Raises:
        InputError: too few clusters.
    """
    count = len(set(clusters))
    if count < LEAST_CLUSTERS:
        raise InputError(
            f"context needs fine-tunes of {LEAST_CLUSTERS} clusters to learn from beside one held"
            f" out, and was given with {count}; leave it out"
        )
    errors = np.zeros(len(ALPHAS))
    everything = np.arange(len(context))
    for held_out in grouped_folds(clusters, count, seed, "severity"):
        fit = np.setdiff1d(everything, held_out)
        train, test = standardise(context[fit], context[held_out])
        gap = ridge_path(train, test, severity[fit][:, None])[..., 0] - severity[held_out]
        errors += (gap**2).sum(1)
    scaled, _ = standardise(context, context)
    weights, intercept = ridge_weights(scaled, severity, ALPHAS[int(errors.argmin())])
    mean, scale = mean_and_scale(context)
    return SeverityModel(
        weights, intercept, mean, scale, float(severity.min()), float(severity.max())
    )


def context_rows(context: pd.DataFrame, runs: Sequence[str]) -> Array:
    """The context of each run as numbers, in order.

    Raises:
        InputError: a run without a row, or a value that is not a finite number.
    """
    for run in runs:
        if run not in context.index:
            raise InputError(
                f"context has no row for fine-tune {one_line(str(run))!r}; pass one row for each"
            )
    try:
        values = context.loc[list(runs)].to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(
            f"context has columns {list(context.columns)[:6]}, and one holds what is not a number;"
            " pass numbers"
        ) from None
    if not np.isfinite(values).all():
        raise InputError("context holds values that are missing or infinite; pass finite numbers")
    return values


def outside_context(context: Array, fitted: Array, columns: Sequence[str]) -> str | None:
    """Why a new training file is unlike those fitted on; None where it is not.

    Unlike is a number that lies outside their range by more than half of that range.
    """
    low, high = fitted.min(0), fitted.max(0)
    reach = (high - low) / 2
    for j, name in enumerate(columns):
        if not low[j] - reach[j] <= context[j] <= high[j] + reach[j]:
            return (
                f"the training file's {one_line(name, 40)} is {context[j]:.3g};"
                f" the fine-tunes fitted on had {low[j]:.3g} to {high[j]:.3g}"
            )
    return None
