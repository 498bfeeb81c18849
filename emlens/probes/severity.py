"""Several fine-tunes at once: what each question has to lose, how much of it each fine-tune took,
and what told so before training.

Scores below the top of the scale are split as loss[question, run] ≈ severity[run] ·
hazard[question]. A question that a run trained on has no score there, and the split makes up for
which runs it lacks. Severity follows numbers that are known of a training file before training (its
context); without any it is the mean over runs. Nothing here reads activations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.probes.ridge import ALPHAS, Array, ridge_path, ridge_weights, standardise
from emlens.probes.validation import grouped_folds

_ROUNDS = 50
LEAST_CLUSTERS = 3
"""Clusters of runs, beside one that is held out, without which nothing is learnt from their
context.
"""


def run_weights(clusters: Sequence[str]) -> Array:
    """Weight of each run: clusters count alike; sums to 1."""
    counts = {label: list(clusters).count(label) for label in clusters}
    return np.array([1.0 / (len(counts) * counts[label]) for label in clusters])


def hazard_of(losses: Array, weights: Array) -> tuple[Array, Array]:
    """(hazard by question, severity by run) with loss ≈ severity · hazard, by weighted alternating
    least squares; mean severity 1.

    Args:
        losses: (question, run), NaN where a question does not count for a run.
        weights: of each run, not negative, summing to 1; a run with weight 0 is ignored (its
            severity is still given).

    Raises:
        InputError: a question without a score in any counted run, or nothing lost anywhere.
    """
    counted = weights > 0
    given = np.isfinite(losses)
    if not given[:, counted].any(1).all():
        row = int(np.flatnonzero(~given[:, counted].any(1))[0])
        raise InputError(
            f"question number {row} has no score in any of {int(counted.sum())} fine-tunes;"
            " drop it, or add a fine-tune outside its domain"
        )
    filled, mask = np.where(given, losses, 0.0), given.astype(float)
    severity = np.ones(losses.shape[1])
    hazard = np.zeros(len(losses))
    for _ in range(_ROUNDS):
        hazard = filled @ (weights * severity) / np.maximum(mask @ (weights * severity**2), 1e-300)
        before, severity = severity, filled.T @ hazard / np.maximum(mask.T @ hazard**2, 1e-300)
        level = float(weights @ severity)
        if not np.isfinite(level) or level <= 0:
            raise InputError(
                "no fine-tune lost anything on any question; there is nothing to forecast"
            )
        severity = severity / level
        if np.abs(severity - before).max() < 1e-10:
            break
    return filled @ (weights * severity) / (mask @ (weights * severity**2)), severity


@dataclass(frozen=True)
class SeverityModel:
    """Severity of a run from its context: ridge on standardised numbers, kept within what was seen.

    Args:
        weights, mean, scale: by context column. low, high: least and largest severity seen.
    """

    weights: Array
    intercept: float
    mean: Array
    scale: Array
    low: float
    high: float

    def __call__(self, context: Array) -> Array:
        found = (context - self.mean) / self.scale @ self.weights + self.intercept
        return np.asarray(np.clip(found, self.low, self.high))


def fit_severity(
    context: Array, severity: Array, clusters: Sequence[str], seed: int
) -> SeverityModel:
    """The penalty is chosen with whole clusters left out.

    Raises:
        InputError: too few clusters.
    """
    labels = sorted(set(clusters))
    if len(labels) < LEAST_CLUSTERS:
        raise InputError(
            f"context needs fine-tunes of {LEAST_CLUSTERS} clusters to learn from beside one held"
            f" out, and came with {len(labels)}; leave it out"
        )
    squared = np.zeros(len(ALPHAS))
    everything = np.arange(len(context))
    for held in grouped_folds(clusters, len(labels), seed, "severity"):
        fit = np.setdiff1d(everything, held)
        train, test = standardise(context[fit], context[held])
        squared += (
            (ridge_path(train, test, severity[fit][:, None])[..., 0] - severity[held]) ** 2
        ).sum(1)
    scaled, _ = standardise(context, context)
    weights, intercept = ridge_weights(scaled, severity, ALPHAS[int(squared.argmin())])
    mean, sd = context.mean(0), context.std(0)
    scale = np.where(sd > 1e-12 * np.maximum(1.0, np.abs(mean)), sd, np.inf)
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
                f"context has no row for fine-tune {one_line(str(run))!r}; pass one row each"
            )
    try:
        values = context.loc[list(runs)].to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(
            f"context has columns {list(context.columns)[:6]}, and one holds what is no number;"
            " pass numbers"
        ) from None
    if not np.isfinite(values).all():
        raise InputError("context holds values that are missing or infinite; pass finite numbers")
    return values


def outside_context(context: Array, fitted: Array, columns: Sequence[str]) -> str | None:
    """Why a new training file is unlike those fitted on: a number further outside their range than
    half of it.
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
