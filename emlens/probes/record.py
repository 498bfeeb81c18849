"""A validated forecast: what was predicted out of fold, how good that is, and beside what."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final, Literal, Self

import numpy as np
import pandas as pd

from emlens.activations import Activations
from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.notebooks import Picture, as_table, in_a_line
from emlens.geometry import Direction
from emlens.probes.baselines import OTHER_PARENT
from emlens.probes.calibration import Calibration, calibration_line
from emlens.probes.final_fit import FinalFit
from emlens.probes.ridge import Array
from emlens.probes.validation import OuterFold
from emlens.stats import (
    NullDistribution,
    adjust_p_values,
    max_statistic_p,
    nadeau_bengio_interval,
    ratio_of_means,
    spearman,
)

Verdict = Literal["shown", "not shown", "undecided"]
LEVEL: Final = 0.05
"""p at or below which a forecast counts as better than on shuffled scores."""
RESAMPLES = 1999
SETTLED = 300
"""Questions, held out one by one, above which intervals of R² hold: .95 with 384, .86 with 96
(docs/statistics.md).
"""
WIDENED: Final = 1.31
"""How much wider an interval has to be that covers .864 instead of .95: 1.960 / 1.491, the normal
quantiles of both.
"""


@dataclass(frozen=True)
class Forecast:
    """A validated forecast: `float(forecast.r2)` is the headline, `gain_over["text"]` what it adds.

    Args:
        predictions: id, group, target, predicted, and each baseline's prediction; out of fold,
            averaged over repeats.
        r2: pooled out of fold, against the training-fold mean; interval by resampling the held-out
            unit.
        r2_fold_mean: mean over folds, Nadeau–Bengio interval.
        spearman: rank correlation of prediction and target.
        rmse: root mean squared error, in units of the target.
        null: pooled R² of the same nested procedure on shuffled targets; `p_value` from it.
        baseline_r2, gain_over: by baseline: its R², and R² minus its R² with a paired interval.
        by_site: exploratory R² of every site and position, p corrected over the grid by the maximum
            statistic.
        chosen: site@position that inner selection took in each outer fold.
        held_out: what was held out together: question, group or custom labels.
        calibration: the line of target on prediction.
        ceiling: the R² that the target's own noise leaves possible; None unless `with_ceiling` set
            it.
        missing: baselines that were not given; without them nothing is shown.
        tests: forecasts whose p-values are corrected together. p_holm: `p_value` so corrected.
        target: "score", or "logit" with the clamp it was made with.
        shuffle: what the null shuffles.
        estimator: how it was fitted, by name.
        fit: what `predict` and `direction` are made from.
    """

    predictions: pd.DataFrame
    r2: Estimate
    r2_fold_mean: Estimate
    spearman: Estimate
    rmse: float
    null: NullDistribution | None
    p_value: float
    baseline_r2: Mapping[str, Estimate]
    gain_over: Mapping[str, Estimate]
    by_site: pd.DataFrame
    chosen: tuple[str, ...]
    held_out: str
    estimator: str
    calibration: Calibration
    target: str
    shuffle: str
    ceiling: Estimate | None = None
    missing: tuple[str, ...] = ()
    tests: int = 1
    p_holm: float = float("nan")
    fit: FinalFit | None = field(default=None, repr=False, compare=False)

    def predict(self, acts: Activations, *, allow: Collection[str] = ()) -> pd.Series:
        """Forecast of each row of new questions by id, on the scale of `target`.

        By the ridge fitted on all questions of the forecast, at the site, position and penalty that
        its inner folds choose. How good it is says `r2`, out of fold; `fit_forecaster` gives
        intervals, and refuses questions that are unlike those it knows.

        Args:
            acts: of the same model, before fine-tuning, at the site and position of `direction`.
            allow: facts of the capture that may differ: `"model"`, `"template"`, `"interventions"`.

        Raises:
            InputError: the forecast is no ridge on the stream; another model, template or
                interventions; a site or position that is missing.
        """
        return self._fit.predict(acts, allow)

    @cached_property
    def direction(self) -> Direction:
        """Where the forecast rises in the stream: towards higher scores, with site and position, so
        that it can be ablated, added or drawn on tokens.

        As long as the standard deviation of the questions along it; the baseline is their mean.

        Raises:
            InputError: the forecast is no ridge on the stream, or its weights are zero.
        """
        return self._fit.direction()

    @property
    def _fit(self) -> FinalFit:
        if self.fit is None:
            raise InputError(
                "this forecast was not made by cross_validate_forecast, so what it was fitted on is"
                " not known; make it again"
            )
        return self.fit

    @property
    def gain_over_rivals(self) -> dict[str, Estimate]:
        """Gains over everything that needs no prior of this model: all but the other parent."""
        return {name: gain for name, gain in self.gain_over.items() if name != OTHER_PARENT}

    @property
    def not_beaten(self) -> tuple[str, ...]:
        """Rivals over which the gain is not above 0 with its whole 95 % interval.

        Outside the design range of these intervals (fewer than 300 questions, or groups held out)
        they are too short, and the gain has to clear an interval that is 1.31 times as wide.
        """
        is_settled = self.held_out == "question" and len(self.predictions) >= SETTLED
        factor = 1.0 if is_settled else WIDENED
        names = []
        for name, gain in self.gain_over_rivals.items():
            if not gain.value > factor * (gain.value - gain.low):  # also where either is NaN
                names.append(name)
        return tuple(names)

    @property
    def can_be_shown(self) -> bool:
        """Whether the shuffles are many enough for the number of forecasts corrected together."""
        return self.null is not None and self.null.smallest_p() * self.tests <= LEVEL

    @property
    def verdict(self) -> Verdict:
        """Whether a forecast from the model's prior is shown.

        `"shown"`: better than on shuffled scores (`p_holm`), every rival is beaten, and no baseline
        is missing. `"not shown"`: p is above .05, or a rival is better with its whole interval.
        `"undecided"`: anything else, such as too few shuffles for the number of forecasts. That
        every gain has to hold needs no correction over rivals (intersection–union test; Berger
        1982).
        """
        gains = self.gain_over_rivals.values()
        if not self.not_beaten and not self.missing and self.p_holm <= LEVEL:
            return "shown"
        if any(gain.high < 0 for gain in gains) or self.p_value > LEVEL:
            return "not shown"
        if self.p_holm > LEVEL and self.can_be_shown:
            return "not shown"
        return "undecided"

    def with_ceiling(self, ceiling: Estimate) -> Self:
        """The same forecast with the noise ceiling of its scores (`probes.ceilings`) beside it."""
        return replace(self, ceiling=ceiling)

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {"R²": self.r2, "Spearman": self.spearman}
        if self.null is not None:
            facts["R² under the null, 95 %"] = f"{self.null.quantile(0.95):.3g}"
            facts["p"] = f"{self.p_value:.3g}"
        for name, gain in self.gain_over.items():
            facts[f"gain over {name}"] = gain
        if self.missing:
            facts["baselines missing"] = ", ".join(self.missing)
        facts["from the model's prior"] = self.verdict
        facts["held out"] = self.held_out
        facts["estimator"] = self.estimator
        facts["n"] = len(self.predictions)
        return facts

    def __repr__(self) -> str:
        return in_a_line("Forecast", self._facts())

    def _repr_html_(self) -> str:
        return as_table("Forecast", self._facts())

    def plot(self) -> Picture:
        """Forecast against measurement, one point per question, with R² and rank correlation."""
        from emlens.probes.pictures import picture_of_forecast

        return picture_of_forecast(self)

    def table(self) -> pd.DataFrame:
        """One row per predictor: R² with interval, and the forecast's gain over it."""
        undefined = Estimate.undefined("a forecast has no gain over itself", 0)
        rows = [_table_row("activations", self.r2, undefined)]
        for name, estimate in self.baseline_r2.items():
            rows.append(_table_row(name, estimate, self.gain_over[name]))
        return pd.DataFrame(rows)


def _table_row(predictor: str, r2: Estimate, gain: Estimate) -> dict[str, object]:
    return {
        "predictor": predictor,
        "r2": r2.value,
        "r2_low": r2.low,
        "r2_high": r2.high,
        "gain": gain.value,
        "gain_low": gain.low,
        "gain_high": gain.high,
    }


@dataclass(frozen=True)
class Setup:
    """What forecasts of several targets share: rows, folds, and how they were made."""

    ids: Sequence[str]
    groups: Sequence[str]
    units: Sequence[str]
    folds: Sequence[OuterFold]
    held_out: str
    estimator: str
    target: str
    shuffle: str
    seed: int
    missing: tuple[str, ...] = ()
    fit: FinalFit | None = None


@dataclass(frozen=True)
class OutOfFold:
    """Out-of-fold predictions of one target, (repeat, row) each.

    Args:
        target: (row,) what was measured.
        predicted: by the forecast.
        mean: by the mean of the training rows.
        baselines: by each baseline, the training mean among them as "mean".
        chosen: site@position that the forecast chose in each outer fold.
    """

    target: Array
    predicted: Array
    mean: Array
    baselines: Mapping[str, Array]
    chosen: tuple[str, ...]


def pooled_r2(predicted: Array, means: Array, columns: Array) -> Array:
    """Pooled R² of each target column, over repeats; (target,)."""
    errors = ((predicted - columns) ** 2).sum((0, 1))
    return np.asarray(1 - errors / ((means - columns) ** 2).sum((0, 1)))


def make_forecast(
    setup: Setup, result: OutOfFold, null: NullDistribution | None, by_site: pd.DataFrame
) -> Forecast:
    """The record of one target: R², gains and calibration from its out-of-fold predictions."""
    target, units = result.target, setup.units
    comparison = _Comparison(setup, result)
    mean_prediction = result.predicted.mean(0)
    predictions = pd.DataFrame(
        {"id": setup.ids, "group": setup.groups, "target": target, "predicted": mean_prediction}
    )
    for name, values in result.baselines.items():
        predictions[name] = values.mean(0)
    units_repeat = len(set(units)) < len(units)
    baseline_r2, gains = {}, {}
    for name, values in result.baselines.items():
        if name != "mean":  # its R² against itself is 0
            baseline_r2[name] = comparison.r2(values)
        gains[name] = comparison.gain(values)
    return Forecast(
        predictions=predictions,
        r2=comparison.r2(result.predicted),
        r2_fold_mean=_fold_mean_r2(result, setup.folds),
        spearman=spearman(mean_prediction, target, clusters=units if units_repeat else None),
        rmse=float(np.sqrt(comparison.errors(result.predicted).mean())),
        null=null,
        p_value=float("nan") if null is None else null.p_value(),
        baseline_r2=baseline_r2,
        gain_over=gains,
        by_site=by_site,
        chosen=result.chosen,
        held_out=setup.held_out,
        estimator=setup.estimator,
        calibration=calibration_line(mean_prediction, target, units),
        target=setup.target,
        shuffle=setup.shuffle,
        missing=setup.missing,
        fit=setup.fit,
    )


def corrected_forecasts(forecasts: Mapping[str, Forecast]) -> dict[str, Forecast]:
    """The forecasts with `p_holm` over all of them that have a p-value."""
    tested = [name for name, forecast in forecasts.items() if np.isfinite(forecast.p_value)]
    corrected = dict(forecasts)
    if tested:
        p_holm = adjust_p_values([forecasts[name].p_value for name in tested], "holm")
        for name, p in zip(tested, p_holm, strict=True):
            corrected[name] = replace(forecasts[name], tests=len(tested), p_holm=float(p))
    return corrected


class _Comparison:
    """R² and gains of one target, with intervals that resample what was held out."""

    def __init__(self, setup: Setup, result: OutOfFold):
        self._setup, self._target = setup, result.target
        self._floor = self.errors(result.mean)
        self._own = self.errors(result.predicted)
        self._caution = ""
        if setup.held_out != "question" or len(result.target) < SETTLED:
            self._caution = (
                "; outside its design range: fits are taken as given,"
                " which makes it short with groups held out or few questions"
            )

    def errors(self, values: Array) -> Array:
        """(row,) squared errors of predictions (repeat, row), averaged over repeats."""
        return np.asarray(((values - self._target) ** 2).mean(0))

    def r2(self, values: Array) -> Estimate:
        """Pooled R²: 1 − errors / errors of the training mean; the ends of the ratio swap."""
        share = self._over_floor(self.errors(values))
        return replace(
            share,
            value=1 - share.value,
            low=1 - share.high,
            high=1 - share.low,
            method=f"pooled out-of-fold R²; {share.method}{self._caution}",
        )

    def gain(self, values: Array) -> Estimate:
        """The forecast's R² minus that of `values`, with a paired interval.

        Both R² have the same denominator, so their difference is one ratio of differences.
        """
        share = self._over_floor(self.errors(values) - self._own)
        return replace(share, method=share.method + self._caution)

    def _over_floor(self, values: Array) -> Estimate:
        return ratio_of_means(
            values,
            self._floor,
            clusters=self._setup.units,
            resamples=RESAMPLES,
            seed=self._setup.seed,
        )


def _fold_mean_r2(result: OutOfFold, folds: Sequence[OuterFold]) -> Estimate:
    """The paper's R²: one per fold, averaged.

    Folds share most of their training rows, so the variance over folds is too small for a mean over
    them. Nadeau and Bengio (2003) enlarge it by n_test / n_train, here averaged over folds.
    """
    errors, floors, shares = [], [], []
    for fold in folds:
        target = result.target[fold.test]
        errors.append(((result.predicted[fold.repeat][fold.test] - target) ** 2).sum())
        floors.append(((result.mean[fold.repeat][fold.test] - target) ** 2).sum())
        shares.append(len(fold.test) / len(fold.train))
    smallest = min(len(fold.test) for fold in folds)
    if smallest < 2 or 0 in floors:
        return Estimate.undefined(
            "a fold has one test row, or rows that all equal the training mean, so it has no R²",
            len(folds),
        )
    return nadeau_bengio_interval(1 - np.array(errors) / np.array(floors), float(np.mean(shares)))


def site_table(names: Sequence[str], squared: Array, means: Array, columns: Array) -> pd.DataFrame:
    """R² of each candidate, with p corrected over all of them by the maximum over shuffles.

    Args:
        squared: (candidate, target): squared errors over rows and repeats; target 0 is the measured
            one, the others shuffles.
        means: (repeat, row, target).
        columns: (row, target).
    """
    r2 = 1 - squared / ((means - columns) ** 2).sum((0, 1))
    p, null_max_q95 = np.full(len(r2), np.nan), np.nan
    if r2.shape[1] > 1:
        p = max_statistic_p(r2[:, 0], r2[:, 1:].T, step_down=False)
        null_max_q95 = float(np.quantile(r2[:, 1:].max(0), 0.95))
    sites, positions = [], []
    for name in names:
        site, _, position = name.rpartition("@")
        if "@" not in name:
            site, position = name, ""  # a feature set that is of no single place
        sites.append(site)
        positions.append(position)
    return pd.DataFrame(
        {
            "site": sites,
            "position": positions,
            "r2": r2[:, 0],
            "p_max": p,
            "null_max_q95": null_max_q95,
        }
    )
