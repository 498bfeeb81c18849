"""The misalignment rate that a reference would give, from many judged and a few labelled answers.

Prediction-powered inference (Angelopoulos et al. 2023, with the power tuning of 2024): the judge's
labels f on all answers, corrected by what the reference labels Y say about the judge on a random
part of them,

    rate = λ·mean(f over unlabelled) + mean(Y − λ·f over labelled).

It is unbiased for every λ and every judge, since the mean of f cancels. λ is chosen for the
smallest variance, so a useless judge costs nothing (λ → 0 is the labelled answers alone) and a
perfect one replaces labels. The labelled answers must be drawn at random from all; labels of the
answers that looked worst give a wrong rate. Every answer has the same weight (pooled).

Of labels that are 0 or 1 the mean is a rate, and few labels of a low rate show no spread: a t
interval then has no width. So the interval of a rate is Wilson's (1927), of as many labels as would
alone be as certain as labels and judge are together. What the judge saves is measured after two
labels of 1 and two of 0 were added, one of each judged high and one low (Agresti & Coull 1998):
two misaligned answers that the judge happened to see do not make it a perfect judge. How often the
interval holds the rate: `python -m benchmarks prediction_powered`, docs/judging.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from emlens.data.base_questions import base_questions
from emlens.data.misalignment import em_labels
from emlens.data.rates import DESIGN_RATE
from emlens.data.scores import AlignmentScores
from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.stats import wilson_interval
from emlens.stats.intervals import wilson_bounds
from emlens.stats.samples import labels_in_order

MIN_LABELLED = 30
"""Labelled answers below which the interval is outside its design range."""


@dataclass(frozen=True)
class CorrectedRate:
    """A rate corrected by reference labels, beside what each source says alone.

    Args:
        corrected: the prediction-powered rate; range [0, 1].
        judged: the judge's rate over all answers, with its own interval.
        labelled: the reference's rate over the labelled answers alone (Wilson).
        power: λ, how far the judge is used: 0 not at all, 1 fully.
        bias: the judge's rate minus the reference's on the labelled answers (Agresti & Min 2005).
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
    """The misalignment rate of `scores`, corrected by `reference` scores of some of its answers.

    The reference must label a random part of the answers. Answers that one of the two left unscored
    are left out.

    Args:
        by_question: the interval of `corrected` is for questions like these (whole questions vary);
            False: for answers to these questions. The interval of `judged` is always for questions
            like these, those of `labelled` and `bias` are over answers.

    Raises:
        InputError: reference scores of answers that are not in `scores`, or fewer than 2 labelled
            or 2 unlabelled answers (or questions with them) left.
    """
    limits: dict[str, Any] = {
        "aligned_below": aligned_below,
        "coherent_above": coherent_above,
        "model": model,
    }
    judged = em_labels(scores, **limits)
    labels = em_labels(reference, **limits)
    is_judged = labels.index.isin(judged.index)
    if not is_judged.all():
        raise InputError(
            f"reference has {int((~is_judged).sum())} answers that scores does not have;"
            " label answers that were judged"
        )
    table = pd.DataFrame({"f": judged, "y": labels.reindex(judged.index)}).dropna(subset=["f"])
    is_labelled = table["y"].notna()
    labelled, unlabelled = table[is_labelled], table[~is_labelled]
    clusters = unlabelled_clusters = None
    if by_question:
        clusters = _bases(labelled)
        unlabelled_clusters = _bases(unlabelled)
    corrected, power = prediction_powered_mean(
        labelled["y"], labelled["f"], unlabelled["f"], clusters, unlabelled_clusters
    )
    return CorrectedRate(
        corrected=corrected,
        judged=scores.em_rate(average="pooled", **limits),
        labelled=wilson_interval(int(labelled["y"].sum()), len(labelled)),
        power=power,
        bias=_difference_of_rates(labelled["f"].to_numpy(), labelled["y"].to_numpy()),
    )


def _difference_of_rates(f: np.ndarray, y: np.ndarray) -> Estimate:
    """Rate of f minus rate of y over the same answers, with Agresti & Min's interval (2005).

    It adds half an answer to each of the four cells, so that judges who never differed have width.
    """
    n = len(y)
    only_f = float((f > y).sum()) + 0.5
    only_y = float((f < y).sum()) + 0.5
    middle = (only_f - only_y) / (n + 2)
    error = math.sqrt(only_f + only_y - (only_f - only_y) ** 2 / (n + 2)) / (n + 2)
    half = float(scipy_stats.norm.ppf(0.975)) * error
    method = "difference of rates over the same answers, 95 % Agresti-Min"
    low, high = max(-1.0, middle - half), min(1.0, middle + half)
    return Estimate(float((f - y).mean()), low, high, n, method)


def _bases(answers: pd.DataFrame) -> list[str]:
    """The base question of each answer."""
    return base_questions(map(str, answers.index.get_level_values("question")))


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
    """A mean from few labels and many predictions; returns it with the λ that was used.

    Args:
        labels, predictions: Y and f of the labelled units.
        unlabelled: f of the others.
        clusters, unlabelled_clusters: one label per unit; whole clusters are then the independent
            units, through their sums (a linearised variance). A cluster may be in both parts.
        power: λ; None: the one with the smallest variance, cut to [0, 1].

    Labels that are all 0 or 1 have a rate: its value is cut to 0 to 1, and its interval is Wilson's
    (see this module). Otherwise the interval is Student's t; none where nothing varies. Design
    range: 30 labelled units, and over clusters a rate of 15 to 85 %; outside it `method` says so.

    Raises:
        InputError: lengths that differ, fewer than 2 labelled or unlabelled units (or clusters),
            values that are not finite.
    """
    y, f, f_unlabelled = (
        np.asarray(values, dtype=np.float64).ravel() for values in (labels, predictions, unlabelled)
    )
    _require_values(y, f, f_unlabelled)
    codes, n_clusters = _cluster_codes(len(y), len(f_unlabelled), clusters, unlabelled_clusters)
    if n_clusters < 2:
        raise InputError("clusters names 1 cluster; an interval needs at least 2")
    labelled_codes, unlabelled_codes = codes[: len(y)], codes[len(y) :]
    is_rate = bool(np.isin(y, (0.0, 1.0)).all())
    # each cluster's part in the three means; their sum, squared, is the variance of the estimate
    y_parts = _parts(y, labelled_codes, n_clusters)
    f_parts = _parts(f, labelled_codes, n_clusters)
    unlabelled_parts = _parts(f_unlabelled, unlabelled_codes, n_clusters)
    # the estimate is mean(y) + λ · (mean(f unlabelled) − mean(f labelled)), linear in λ
    slope = unlabelled_parts - f_parts
    spread = _SmoothedSpread.of(y, f, f_unlabelled)
    if power is None:
        power = _best_power(-float(y_parts @ slope), float(slope @ slope))
        if is_rate:
            power = min(power, spread.best_power())
    value = power * float(f_unlabelled.mean()) + float((y - power * f).mean())
    total = y_parts + power * slope
    units = len(y) if clusters is None else n_clusters
    variance = float(total @ total) * units / (units - 1)
    quantile = float(scipy_stats.t.ppf((1 + level) / 2, units - 1))
    sample = _sample_in_words(len(y), len(f_unlabelled), None if clusters is None else n_clusters)
    name = f"prediction-powered, λ = {power:.2f}"
    if is_rate:
        variance = max(variance, spread.variance(power)) if clusters else spread.variance(power)
        effective = spread.of_labels / variance
        rate = min(max(value, 0.0), 1.0)
        low, high = wilson_bounds(rate, effective, quantile)
        method = (
            f"{name}, {100 * level:g} % Wilson interval as of {effective:.0f} labels alone,"
            f" over {sample}"
        )
        if clusters is not None and not DESIGN_RATE <= rate <= 1 - DESIGN_RATE:
            method += (
                f"; outside its design range over clusters: a rate not within"
                f" {DESIGN_RATE:.0%} to {1 - DESIGN_RATE:.0%}"
            )
        return Estimate(rate, low, high, units, method), power
    if variance == 0:
        why = f"{name}, over {sample}; nothing varies, so there is no interval"
        return Estimate(value, math.nan, math.nan, units, why), power
    half = quantile * math.sqrt(variance)
    method = f"{name}, {100 * level:g} % t interval over {sample}"
    return Estimate(value, value - half, value + half, units, method), power


@dataclass(frozen=True)
class _SmoothedSpread:
    """Variances of labels and predictions after labels were added that say nothing of the judge.

    Args:
        of_labels, of_predictions, together: variances of y and f, and their covariance.
        unlabelled: variance of f over the unlabelled units.
        n, n_unlabelled: units of each, without what was added.
    """

    of_labels: float
    of_predictions: float
    together: float
    unlabelled: float
    n: int
    n_unlabelled: int

    @classmethod
    def of(cls, y: np.ndarray, f: np.ndarray, f_unlabelled: np.ndarray) -> "_SmoothedSpread":
        labels = np.concatenate([y, np.ones(2), np.zeros(2)])
        # one standard deviation above and below the mean for labels of 1, and for labels of 0
        around = float(np.concatenate([f, f_unlabelled]).std()) * np.array([1.0, -1.0])
        predictions = np.concatenate([f, f.mean() + around, f.mean() + around])
        (of_labels, together), (_, of_predictions) = np.cov(labels, predictions, ddof=0)
        unlabelled = float(f_unlabelled.var())
        return cls(
            float(of_labels),
            float(of_predictions),
            float(together),
            unlabelled,
            len(y),
            len(f_unlabelled),
        )

    def variance(self, power: float) -> float:
        """Variance of the estimate, units taken as independent."""
        residual = self.of_labels - 2 * power * self.together + power**2 * self.of_predictions
        return residual / self.n + power**2 * self.unlabelled / self.n_unlabelled

    def best_power(self) -> float:
        """The λ of the smallest `variance`."""
        curvature = self.of_predictions / self.n + self.unlabelled / self.n_unlabelled
        return _best_power(self.together / self.n, curvature)


def _require_values(y: np.ndarray, f: np.ndarray, f_unlabelled: np.ndarray) -> None:
    if len(y) != len(f):
        raise InputError(
            f"labels has {len(y)} values and predictions {len(f)};"
            " pass one of each for every labelled unit"
        )
    if not all(np.isfinite(values).all() for values in (y, f, f_unlabelled)):
        raise InputError("labels and predictions must be finite; leave out what is not scored")
    if len(y) < 2 or len(f_unlabelled) < 2:
        raise InputError(
            f"{len(y)} labelled and {len(f_unlabelled)} unlabelled units are too few;"
            f" pass 2 of each, and rather {MIN_LABELLED} labels"
        )


def _cluster_codes(
    n_labelled: int,
    n_unlabelled: int,
    clusters: Sequence[object] | None,
    unlabelled_clusters: Sequence[object] | None,
) -> tuple[np.ndarray, int]:
    """The cluster of each unit, labelled ones first, as a number from 0; and how many there are."""
    if (clusters is None) != (unlabelled_clusters is None):
        raise InputError("clusters and unlabelled_clusters go together; pass both, or neither")
    n_units = n_labelled + n_unlabelled
    if clusters is None or unlabelled_clusters is None:
        return np.arange(n_units), n_units
    of_labelled = labels_in_order(clusters, "clusters")
    others = labels_in_order(unlabelled_clusters, "unlabelled_clusters")
    names = [str(name) for name in (*of_labelled, *others)]
    if len(names) != n_units or len(clusters) != n_labelled:
        raise InputError(f"clusters has {len(names)} labels for {n_units} units; pass one per unit")
    codes, unique = pd.factorize(np.array(names, dtype=object))
    return codes, len(unique)


def _parts(values: np.ndarray, codes: np.ndarray, n_clusters: int) -> np.ndarray:
    """How much each cluster moves the mean of the values: Σ (value − mean) / n over its units."""
    deviations = (values - values.mean()) / len(values)
    return np.bincount(codes, weights=deviations, minlength=n_clusters)


def _best_power(gain: float, curvature: float) -> float:
    """λ in 0 to 1 for which curvature·λ² − 2·gain·λ is smallest; 0 where the judge says nothing."""
    if not curvature > 0:
        return 0.0
    return min(1.0, max(0.0, gain / curvature))


def _sample_in_words(n_labelled: int, n_unlabelled: int, n_clusters: int | None) -> str:
    if n_clusters is None:
        sample = f"{n_labelled} labelled and {n_unlabelled} unlabelled units"
    else:
        sample = f"{n_clusters} clusters"
    if n_labelled >= MIN_LABELLED:
        return sample
    return (
        f"{sample}; outside its design range: {n_labelled} labelled,"
        f" fewer than the {MIN_LABELLED} it is made for"
    )
