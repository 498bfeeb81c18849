"""A validated forecast: what was predicted out of fold, how good that is, and beside what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from emlens.foundation.estimate import Estimate
from emlens.foundation.notebooks import as_table, in_a_line
from emlens.probes.calibration import Calibration, calibration_line
from emlens.probes.ridge import Array
from emlens.probes.validation import OuterFold
from emlens.stats import (
    NullDistribution,
    max_statistic_p,
    nadeau_bengio_interval,
    ratio_of_means,
    spearman,
)

RESAMPLES = 1999
SETTLED = 300
"""Questions, held out one by one, above which intervals of R² hold: .95 with 384, .86 with 96
(docs/statistics.md).
"""


@dataclass(frozen=True)
class Forecast:
    """A validated forecast. `float(forecast.r2)` is the headline; `gain_over["text"]` is what it
    adds.

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
        ceiling: the R² that the target's own noise leaves possible, where it was given.
        target: "score", or "logit" with the clamp it was made with.
        shuffle: what the null deals out anew.
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
    ceiling: Estimate | None
    target: str
    shuffle: str

    def _facts(self) -> dict[str, object]:
        chance = (
            {}
            if self.null is None
            else {
                "R² under the null, 95 %": f"{self.null.quantile(0.95):.3g}",
                "p": f"{self.p_value:.3g}",
            }
        )
        gains = {f"gain over {name}": gain for name, gain in self.gain_over.items()}
        return {
            "R²": self.r2,
            "Spearman": self.spearman,
            **chance,
            **gains,
            "held out": self.held_out,
            "estimator": self.estimator,
            "n": len(self.predictions),
        }

    def __repr__(self) -> str:
        return in_a_line("Forecast", self._facts())

    def _repr_html_(self) -> str:
        return as_table("Forecast", self._facts())

    def table(self) -> pd.DataFrame:
        """One row a predictor: R² with interval, and the forecast's gain over it."""
        rows = [{"predictor": "activations", **_flat("r2", self.r2), **_flat("gain", None)}]
        for name, estimate in self.baseline_r2.items():
            rows.append(
                {"predictor": name, **_flat("r2", estimate), **_flat("gain", self.gain_over[name])}
            )
        return pd.DataFrame(rows)


def _flat(name: str, estimate: Estimate | None) -> dict[str, float]:
    if estimate is None:
        return {name: np.nan, f"{name}_low": np.nan, f"{name}_high": np.nan}
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


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


def pooled_r2(predicted: Array, means: Array, columns: Array) -> Array:
    """Pooled R² of each target column, over repeats; (target,)."""
    return np.asarray(
        1 - ((predicted - columns) ** 2).sum((0, 1)) / ((means - columns) ** 2).sum((0, 1))
    )


def assemble(
    setup: Setup,
    target: Array,
    ours: Array,
    means: Array,
    others: Mapping[str, Array],
    chosen: tuple[str, ...],
    null: NullDistribution | None,
    by_site: pd.DataFrame,
    ceiling: Estimate | None,
) -> Forecast:
    """The record of one target.

    Args:
        target: (row,). ours, means, others: predictions (repeat, row) of the forecast, the training
            mean, and baselines.
    """
    units = setup.units
    floor = ((means - target) ** 2).mean(0)
    errors = {
        name: ((values - target) ** 2).mean(0)
        for name, values in {"activations": ours, **others}.items()
    }
    few = setup.held_out != "question" or len(target) < SETTLED
    given = (
        "; outside its design range: fits are taken as given,"
        " which makes it short with groups held out or few questions"
        if few
        else ""
    )

    def over_floor(values: Array) -> Estimate:
        return ratio_of_means(values, floor, clusters=units, resamples=RESAMPLES, seed=setup.seed)

    def r2_of(name: str) -> Estimate:
        share = over_floor(errors[name])
        return replace(
            share,
            value=1 - share.value,
            low=1 - share.high,
            high=1 - share.low,
            method=f"pooled out-of-fold R²; {share.method}{given}",
        )

    def gain(name: str) -> Estimate:
        found = over_floor(errors[name] - errors["activations"])
        return replace(found, method=found.method + given)

    predictions = pd.DataFrame(
        {"id": setup.ids, "group": setup.groups, "target": target, "predicted": ours.mean(0)}
    )
    for name, values in others.items():
        predictions[name] = values.mean(0)
    r2 = r2_of("activations")
    return Forecast(
        predictions=predictions,
        r2=r2,
        r2_fold_mean=_over_folds(ours, means, target, setup.folds),
        spearman=spearman(
            predictions["predicted"],
            target,
            clusters=units if len(set(units)) < len(units) else None,
        ),
        rmse=float(np.sqrt(errors["activations"].mean())),
        null=null,
        p_value=float("nan") if null is None else null.p_value(),
        baseline_r2={name: r2_of(name) for name in others if name != "mean"},
        gain_over={name: gain(name) for name in others},
        by_site=by_site,
        chosen=chosen,
        held_out=setup.held_out,
        estimator=setup.estimator,
        calibration=calibration_line(ours.mean(0), target, units),
        ceiling=ceiling,
        target=setup.target,
        shuffle=setup.shuffle,
    )


def _over_folds(ours: Array, means: Array, target: Array, folds: Sequence[OuterFold]) -> Estimate:
    """The paper's R²: one a fold, averaged."""
    left, whole = (
        np.array([((values[f.repeat][f.test] - target[f.test]) ** 2).sum() for f in folds])
        for values in (ours, means)
    )
    if min(len(f.test) for f in folds) < 2 or (whole == 0).any():
        return Estimate.undefined(
            "a fold has one test row, or rows that all equal the training mean, so it has no R²",
            len(folds),
        )
    share = float(np.mean([len(f.test) / len(f.train) for f in folds]))
    return nadeau_bengio_interval(1 - left / whole, share)


def site_table(names: Sequence[str], squared: Array, means: Array, columns: Array) -> pd.DataFrame:
    """R² of each candidate, and its p-value corrected over all of them by the maximum over
    shuffles.

    Args:
        squared: (candidate, target): squared errors over rows and repeats; target 0 is the measured
            one, the others shuffles.
        means: (repeat, row, target). columns: (row, target).
    """
    r2 = 1 - squared / ((means - columns) ** 2).sum((0, 1))
    shuffled = r2.shape[1] > 1
    p = (
        max_statistic_p(r2[:, 0], r2[:, 1:].T, step_down=False)
        if shuffled
        else np.full(len(r2), np.nan)
    )
    high = float(np.quantile(r2[:, 1:].max(0), 0.95)) if shuffled else np.nan
    parts = [name.rsplit("@", 1) if "@" in name else [name, ""] for name in names]
    return pd.DataFrame(
        {
            "site": [a for a, _ in parts],
            "position": [b for _, b in parts],
            "r2": r2[:, 0],
            "p_max": p,
            "null_max_95": high,
        }
    )
