"""Can the alignment of a training run be forecast from what is known before it is evaluated, and by
which predictors: loss, shifts, activations before training?

Rows are runs. Whole units (recipes with all their seeds, or fine-tunes) are held out in folds, and
everything is learnt from the other runs: scales, the penalty of ridge, trees. Each set of
predictors stands alone and with the others, by ridge and by a forest, beside the mean of the
training runs and beside the loss alone in the same folds. Which set and which estimator are best is
chosen inside each fold, with the mean among the candidates (nested selection), and the forecasts of
that choice are what is tested: the best of several sets that were compared on the same runs looks
better than it is. p is that of the whole procedure on shuffled scores.

Refused: fewer than 8 units. Cost: some 25 small forests for each set and shuffle.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.notebooks import Brief, Picture
from emlens.foundation.seeds import numpy_rng
from emlens.probes.ranking import LEAST_RUNS, numbers_of, predict_runs
from emlens.probes.ridge import Array
from emlens.probes.shuffles import shuffled_targets
from emlens.stats import NullDistribution, ratio_of_means

MEAN: Final = "mean of the other runs"
TOGETHER: Final = "together"
CHOSEN: Final = "chosen inside the folds"
ESTIMATORS: Final = ("linear", "forest")
FOLDS: Final = 5
INNER_FOLDS: Final = 4
Candidate = tuple[str, str]
"""Set of predictors, and estimator."""
_MEAN_CANDIDATE: Final[Candidate] = (MEAN, "")
_CHOSEN_CANDIDATE: Final[Candidate] = (CHOSEN, "")
TREES: Final = 16
"""Of a forest; each is grown anew for every shuffle."""
LEVEL: Final = 0.05
EITHER: Final = "either"
"""Estimator of the nested choice, which differs between folds."""


@dataclass(frozen=True, repr=False)
class RunForecasts(Brief):
    """How well runs can be forecast.

    Args:
        table: one row per set of predictors and estimator, and one of the nested choice: predictor,
            estimator; `r2`, 1 − Σ(y − forecast)² / Σ(y − mean of the training runs)², each unit
            weighing the same, with a 95 % bootstrap interval over units; `over_loss`, the same
            against the forecast from the loss alone; null_mean, null_q95 and p of r2 on shuffled
            scores; n runs, units.
        best: the set and estimator that are chosen from all runs; None where the nested choice does
            not beat the mean of the other runs (p ≤ .05 and an interval above 0).
        picks: predictor, estimator → in how many folds they were chosen.
    """

    table: pd.DataFrame
    best: Candidate | None
    picks: Mapping[Candidate, int]

    def plot(self) -> Picture:
        """R² of each set of predictors with its interval, beside shuffled scores."""
        from emlens.probes.pictures import picture_of_runs

        return picture_of_runs(self.table)


def forecast_runs(
    runs: pd.DataFrame,
    *,
    target: str,
    sets: Mapping[str, Sequence[str]],
    units: str,
    loss: str | None = None,
    permutations: int = 39,
    seed: int = 0,
) -> RunForecasts:
    """Forecast runs from each set of predictors, alone and together, and from the best of them.

    Args:
        runs: one row per run; the index names them.
        target: column that is forecast, such as alignment outside the domain.
        sets: name → its columns, all known before the target is measured.
        units: column of what is held out together: seeds of one recipe, or runs of one fine-tune.
        loss: name of the set that the others are compared with; None: no such comparison.
        permutations: shuffles of the target between units, for every p.

    Raises:
        InputError: fewer than 8 units, a column that is missing or not finite, the target among the
            predictors, a target that is constant, an unknown `loss`.
    """
    if not sets or (loss is not None and loss not in sets):
        raise InputError(f"loss={loss!r} is none of sets, {', '.join(sets) or 'which is empty'}")
    for name, columns in sets.items():
        if target in columns:
            raise InputError(f"sets[{name!r}] names the target {target!r} itself; leave it out")
    y = numbers_of(runs, [target], "the runs")[:, 0]
    features = {name: numbers_of(runs, columns, "the runs") for name, columns in sets.items()}
    if len(features) > 1:
        features[TOGETHER] = np.column_stack(list(features.values()))
    labels = [str(label) for label in runs[units]]
    if len(set(labels)) < LEAST_RUNS:
        raise InputError(
            f"{len(y)} runs are {len(set(labels))} units by {units!r}; a forecast over runs needs"
            f" {LEAST_RUNS}"
        )
    if np.ptp(y) == 0:
        raise InputError(f"target {target!r} is {y[0]:g} for every run; nothing can be forecast")
    procedure = _Procedure(features, labels, seed)
    names = [str(i) for i in range(len(y))]
    shuffles = shuffled_targets(y, names, labels, "group", permutations, seed)
    observed, *nulls = procedure.errors(np.column_stack([y, *shuffles]))
    rows = []
    for candidate in [*procedure.candidates[1:], _CHOSEN_CANDIDATE]:
        row = _row(candidate, observed, nulls, procedure, loss)
        rows.append({**row, "n": len(y), "units": len(set(labels))})
    table = pd.DataFrame(rows)
    last = table.iloc[-1]
    best = None
    if last["r2_low"] > 0 and last["p"] <= LEVEL:
        best = procedure.candidates[int(procedure.choose(y[:, None], np.arange(len(y)))[0])]
    if best == _MEAN_CANDIDATE:
        best = None
    return RunForecasts(table, best, observed.picks)


@dataclass(frozen=True)
class _Errors:
    """Squared errors out of fold, by unit; of the mean, of every candidate, of the nested choice.

    Args:
        of: candidate → (unit,) mean squared error of its runs.
        picks: candidate → in how many folds it was chosen.
    """

    of: Mapping[Candidate, Array]
    picks: Mapping[Candidate, int]

    def skill(self, candidate: Candidate, rival: Candidate, seed: int) -> Estimate:
        """1 − the errors over those of a rival, with its interval over units."""
        errors, rivals = self.of[candidate], self.of[rival]
        ratio = ratio_of_means(errors, rivals, resamples=1999, seed=seed)
        # errors are at least 0, so no skill is above 1, where a bootstrap interval can end
        high = min(1.0, 1 - ratio.low)
        return Estimate(1 - ratio.value, 1 - ratio.high, high, ratio.n, ratio.method)

    def r2(self, candidate: Candidate) -> float:
        return float(1 - self.of[candidate].sum() / self.of[_MEAN_CANDIDATE].sum())


@dataclass(frozen=True)
class _Procedure:
    """Everything that is done with one target or with many; the same folds for each.

    Args:
        features: set → (run, feature). labels: unit of each run.
    """

    features: Mapping[str, Array]
    labels: list[str]
    seed: int

    @cached_property
    def candidates(self) -> list[Candidate]:
        """Every set with every estimator, after the mean."""
        sets = [(name, estimator) for name in self.features for estimator in ESTIMATORS]
        return [_MEAN_CANDIDATE, *sets]

    @cached_property
    def _units(self) -> NDArray[np.str_]:
        return np.array(self.labels)

    def errors(self, targets: Array) -> list[_Errors]:
        """Out-of-fold errors of every candidate and of the choice inside each fold, by target.

        Args:
            targets: (run, target).
        """
        squares = np.empty((len(self.candidates), *targets.shape))
        chosen = np.empty(targets.shape)
        picks: list[dict[Candidate, int]] = [{} for _ in range(targets.shape[1])]
        for fit, test in self._folds(np.arange(len(targets)), FOLDS, "outer"):
            squares[:, test] = self._squares(targets, fit, test)
            for j, pick in enumerate(self.choose(targets, fit)):
                chosen[test, j] = squares[pick, test, j]
                candidate = self.candidates[pick]
                picks[j][candidate] = picks[j].get(candidate, 0) + 1
        errors = []
        for j in range(targets.shape[1]):
            of = {
                candidate: self._by_unit(squares[number, :, j])
                for number, candidate in enumerate(self.candidates)
            }
            of[_CHOSEN_CANDIDATE] = self._by_unit(chosen[:, j])
            errors.append(_Errors(of, picks[j]))
        return errors

    def choose(self, targets: Array, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each target the number of the candidate with the least error in inner folds of these
        runs; the first of them is the mean.
        """
        totals = np.zeros((len(self.candidates), targets.shape[1]))
        for fit, test in self._folds(rows, INNER_FOLDS, "inner"):
            squares = self._squares(targets, fit, test)
            totals += np.einsum("r,crt->ct", self._weights(test), squares)
        return np.asarray(totals.argmin(0))

    def _squares(self, targets: Array, fit: NDArray[np.int64], test: NDArray[np.int64]) -> Array:
        """Squared errors of every candidate (candidate, held-out run, target)."""
        units = [self.labels[row] for row in fit]
        squares = []
        for name, estimator in self.candidates:
            if name == MEAN:
                weights = self._weights(fit)
                forecast = weights @ targets[fit] / weights.sum()
            else:
                x = self.features[name]
                forecast = predict_runs(
                    estimator, x[fit], x[test], targets[fit], units, self.seed, trees=TREES
                )
            squares.append((forecast - targets[test]) ** 2)
        return np.stack(squares)

    def _by_unit(self, squares: Array) -> Array:
        """Mean over the runs of each unit."""
        names, unit, sizes = np.unique(self._units, return_inverse=True, return_counts=True)
        return np.asarray(np.bincount(unit, weights=squares, minlength=len(names)) / sizes)

    def _weights(self, rows: NDArray[np.int64]) -> Array:
        """One over the number of runs of the unit: units count the same."""
        _, unit, sizes = np.unique(self._units[rows], return_inverse=True, return_counts=True)
        return np.asarray(1.0 / sizes[unit])

    def _folds(
        self, rows: NDArray[np.int64], count: int, which: str
    ) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """(rows to learn from, rows held out); units stay whole."""
        names = np.unique(self._units[rows])
        rng = numpy_rng(self.seed, "folds of units", which, str(len(names)))
        folds = []
        for part in np.array_split(rng.permutation(len(names)), min(count, len(names))):
            is_out = np.isin(self._units[rows], names[part])
            folds.append((rows[~is_out], rows[is_out]))
        return folds


def _row(
    candidate: Candidate,
    observed: _Errors,
    nulls: Sequence[_Errors],
    procedure: _Procedure,
    loss: str | None,
) -> dict[str, object]:
    """One row of the table."""
    name, estimator = candidate
    r2 = observed.skill(candidate, _MEAN_CANDIDATE, procedure.seed)
    over = Estimate.undefined("no loss to compare with", 0)
    if loss is not None and name != loss:
        # the nested choice meets the better of both estimators
        rivals = [(loss, estimator)] if estimator else [(loss, each) for each in ESTIMATORS]
        rival = min(rivals, key=lambda each: float(observed.of[each].sum()))
        over = observed.skill(candidate, rival, procedure.seed)
    null = NullDistribution(
        np.array([errors.r2(candidate) for errors in nulls]),
        f"R² of {name} on scores shuffled between units",
        procedure.seed,
    )
    return {
        "predictor": name,
        "estimator": estimator or EITHER,
        "r2": r2.value,
        "r2_low": r2.low,
        "r2_high": r2.high,
        "over_loss": over.value,
        "over_loss_low": over.low,
        "over_loss_high": over.high,
        "null_mean": null.mean,
        "null_q95": null.quantile(0.95),
        "p": null.p_value(r2.value),
    }
