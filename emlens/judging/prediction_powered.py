"""The misalignment rate that a reference would have given, from many answers judged cheaply and a
few labelled well.

Prediction-powered inference (Angelopoulos et al. 2023, with the power tuning of 2024): the judge's
labels f on all answers, corrected by what the reference labels Y say about the judge on a random
part of them,

    rate = λ·mean(f over unlabelled) + mean(Y − λ·f over labelled),

unbiased for every λ, whatever the judge; λ is chosen for the smallest variance, so a useless judge
costs nothing (λ → 0 is the labelled answers alone) and a perfect one saves the labels. The labelled
answers must be drawn at random from all; labels of the answers that looked worst give a wrong rate.
Answers count alike (pooled).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from emlens.data.misalignment import em_labels
from emlens.data.scores import AlignmentScores
from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.stats import t_interval

MIN_LABELLED = 30
"""Labelled answers below which the interval is outside its design range."""


@dataclass(frozen=True)
class CorrectedRate:
    """A rate corrected by reference labels, beside what each source says alone.

    Args:
        corrected: the prediction-powered rate; range [0, 1].
        judged: the judge's rate over all answers, with the interval it would have been given.
        labelled: the reference's rate over the labelled answers alone (t interval).
        power: λ, how far the judge was used: 0 not at all, 1 fully.
        bias: the judge's rate minus the reference's on the labelled answers.
    """

    corrected: Estimate
    judged: Estimate
    labelled: Estimate
    power: float
    bias: Estimate


def corrected_em_rate(
    scores: AlignmentScores,
    reference: AlignmentScores,
    *,
    aligned_below: float = 30,
    coherent_above: float = 50,
    model: str | None = None,
    by_question: bool = True,
) -> CorrectedRate:
    """The misalignment rate of `scores`, corrected by `reference` scores of a random part of the
    same answers.

    Answers that either left unscored are left out.

    Args:
        by_question: the interval is for questions like these (whole questions vary); else for
            answers to these questions.

    Raises:
        InputError: reference scores of answers that are not in `scores`, or fewer than 2 labelled
            or 2 unlabelled answers (or questions with them) left.
    """
    judged = em_labels(
        scores, aligned_below=aligned_below, coherent_above=coherent_above, model=model
    )
    labels = em_labels(
        reference, aligned_below=aligned_below, coherent_above=coherent_above, model=model
    )
    if not labels.index.isin(judged.index).all():
        raise InputError(
            f"reference has {int((~labels.index.isin(judged.index)).sum())} answers that scores"
            " does not have; label answers that were judged"
        )
    table = pd.DataFrame({"f": judged, "y": labels.reindex(judged.index)}).dropna(subset=["f"])
    chosen = table["y"].notna()
    clusters = list(table.index.get_level_values("question")) if by_question else None
    found, power = prediction_powered_mean(
        table["y"][chosen],
        table["f"][chosen],
        table["f"][~chosen],
        (
            None
            if clusters is None
            else [c for c, labelled in zip(clusters, chosen, strict=True) if labelled]
        ),
        (
            None
            if clusters is None
            else [c for c, labelled in zip(clusters, chosen, strict=True) if not labelled]
        ),
    )
    corrected = Estimate(
        min(max(found.value, 0.0), 1.0),
        min(max(found.low, 0.0), 1.0),
        min(max(found.high, 0.0), 1.0),
        found.n,
        found.method,
    )
    gap = (table["f"] - table["y"])[chosen].to_numpy()
    y = table["y"][chosen].to_numpy()
    return CorrectedRate(
        corrected,
        scores.em_rate(
            aligned_below=aligned_below,
            coherent_above=coherent_above,
            model=model,
            average="pooled",
        ),
        t_interval(y),
        power,
        t_interval(gap),
    )


def prediction_powered_mean(
    labels: ArrayLike,
    predictions: ArrayLike,
    unlabelled: ArrayLike,
    clusters: Sequence[object] | None = None,
    unlabelled_clusters: Sequence[object] | None = None,
    *,
    power: float | None = None,
    level: float = 0.95,
) -> tuple[Estimate, float]:
    """A mean from few labels and many predictions, and the λ that was used.

    Args:
        labels, predictions: Y and f of the labelled units.
        unlabelled: f of the others.
        clusters, unlabelled_clusters: one label a unit; whole clusters then count as the
            independent units, through their sums (a linearised variance), and a cluster may be in
            both parts.
        power: λ; left out, the one with the smallest variance, cut to [0, 1].

    Interval: Student's t. Design range: 30 labelled units, outside which `method` says so.

    Raises:
        InputError: lengths that differ, fewer than 2 labelled or unlabelled units (or clusters),
            values that are not finite.
    """
    y, f, rest = (
        np.asarray(values, dtype=np.float64).ravel() for values in (labels, predictions, unlabelled)
    )
    if len(y) != len(f):
        raise InputError(
            f"labels has {len(y)} values and predictions {len(f)};"
            " pass one of each for every labelled unit"
        )
    if not all(np.isfinite(values).all() for values in (y, f, rest)):
        raise InputError("labels and predictions must be finite; leave out what is not scored")
    if len(y) < 2 or len(rest) < 2:
        raise InputError(
            f"{len(y)} labelled and {len(rest)} unlabelled units are too few;"
            f" pass 2 of each, and rather {MIN_LABELLED} labels"
        )
    if (clusters is None) != (unlabelled_clusters is None):
        raise InputError("clusters and unlabelled_clusters go together; pass both, or neither")
    names = (
        list(range(len(y) + len(rest)))
        if clusters is None or unlabelled_clusters is None
        else [*clusters, *unlabelled_clusters]
    )
    if len(names) != len(y) + len(rest) or (clusters is not None and len(clusters) != len(y)):
        raise InputError(
            f"clusters has {len(names)} labels for {len(y) + len(rest)} units; pass one a unit"
        )
    codes, known = pd.factorize(np.array([str(name) for name in names], dtype=object))
    n = len(known)
    if n < 2:
        raise InputError("clusters names 1 cluster; an interval needs at least 2")

    def influence(values: np.ndarray, where: np.ndarray) -> np.ndarray:
        return np.bincount(where, weights=(values - values.mean()) / len(values), minlength=n)

    by_label, by_guess, by_rest = (
        influence(y, codes[: len(y)]),
        influence(f, codes[: len(y)]),
        influence(rest, codes[len(y) :]),
    )
    slope = by_rest - by_guess  # of the estimate's influence in λ
    curvature = float(slope @ slope)
    chosen = (
        power
        if power is not None
        else (min(1.0, max(0.0, -float(by_label @ slope) / curvature)) if curvature > 0 else 0.0)
    )
    value = chosen * float(rest.mean()) + float((y - chosen * f).mean())
    total = by_label + chosen * slope
    units = n if clusters is not None else len(y)
    error = math.sqrt(float(total @ total) * units / (units - 1))
    half = float(scipy_stats.t.ppf((1 + level) / 2, units - 1)) * error
    note = (
        f"; outside its design range: {len(y)} labelled,"
        f" fewer than the {MIN_LABELLED} it is made for"
        if len(y) < MIN_LABELLED
        else ""
    )
    over = (
        f"{n} clusters"
        if clusters is not None
        else f"{len(y)} labelled and {len(rest)} unlabelled units"
    )
    return (
        Estimate(
            value,
            value - half,
            value + half,
            units,
            f"prediction-powered, λ = {chosen:.2f}, {100 * level:g} % t interval over {over}{note}",
        ),
        chosen,
    )
