"""Which training configuration to choose, from what is known of each run without evaluating it: the
last stage of the paper's workflow.

Rows are runs; features are numbers known before the alignment evaluation: final loss, learning
rate, baseline activations, delta overlap. A model of the other runs predicts each run's alignment
(leave-run-out). A choice is judged by regret: how much worse than the best run the chosen one is,
among runs none of which the model has seen: it learns from one half of them and chooses in the
other. (Forecasts that each leave one run out, or average over halves without it, may not be
compared for this: what is learnt from the others falls as a run's own score rises. So nothing is
chosen among runs that are scored already: that takes candidates.) Beside it, the regret of taking
the lowest loss, of taking any run, and of the same procedure on shuffled scores. Cost: ridge, one
factorisation a split for all shuffles; a forest comes without shuffles.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.files import one_line
from emlens.foundation.seeds import numpy_rng
from emlens.probes.ridge import ALPHAS, Array, ridge_path, standardise
from emlens.probes.shuffles import shuffled_targets
from emlens.stats import NullDistribution, spearman

Model = Literal["linear", "forest"]
MODELS: Final[tuple[Model, ...]] = ("linear", "forest")
LEAST_RUNS: Final = 8
TREES: Final = 40
FOREST_SPLITS: Final = 40


@dataclass(frozen=True)
class Ranking:
    """What was chosen, and what choosing so costs.

    Args:
        table: one row a run and model, as they came: run, by, forecast (from the other runs),
            observed. These forecasts are no ranking: without information they fall as the observed
                score rises.
        choices: one row a way to choose: by; `regret` with interval: the best run minus the chosen
            one, on average over random halves of the runs; `null`: that of taking any run of the
            half; `gain`: how much less than that of the lowest loss, with interval; p of the regret
            against shuffled scores (clusters dealt whole); `spearman` of forecasts and scores
            inside a half that no fit saw, on average over halves (of lowest loss: of the negative
            loss over all runs), with interval.
        candidates: the new configurations, best forecast first: run, by, forecast, rank; empty
            where none were given.
        null: by model, regret on shuffled scores.
    """

    table: pd.DataFrame
    choices: pd.DataFrame
    candidates: pd.DataFrame
    null: Mapping[str, NullDistribution]

    def chosen(self, by: Model = "linear") -> str:
        """The candidate with the best forecast.

        Raises:
            InputError: no candidates were given: forecasts of runs whose scores were learnt from
                cannot be compared for a choice.
        """
        if not len(self.candidates):
            raise InputError(
                "no candidates were given, and forecasts of scored runs must not be compared for a"
                " choice; pass candidates="
            )
        return str(self.candidates[self.candidates["by"] == by]["run"].iloc[0])


def rank_configurations(
    runs: pd.DataFrame,
    *,
    target: str,
    features: Sequence[str],
    loss: str | None = None,
    clusters: str | None = None,
    candidates: pd.DataFrame | None = None,
    higher_is_better: bool = True,
    models: Sequence[Model] = MODELS,
    splits: int = 200,
    permutations: int = 199,
    seed: int = 0,
) -> Ranking:
    """Rank training configurations by forecast alignment, each forecast from the other runs, and
    say what the choice costs.

    Args:
        runs: one row a run; the index names them.
        target: column to be high (alignment). features: numeric columns known before it is
            measured.
        loss: column whose lowest value is the rival choice; None: no such rival.
        clusters: column that names what is left out together (a schedule, a data set); None: each
            run alone.
        candidates: configurations whose target is not known, with the feature columns, to choose
            among; None: only what choosing costs is told.
        models: `"linear"` (ridge, penalty chosen on inner folds) and `"forest"`.
        splits: random halves over which regret is averaged; a forest takes at most 40. Intervals:
            delete-one-cluster jackknife, fits as given.
        permutations: shuffles of the target for the null of the linear model.

    Raises:
        InputError: too few runs or clusters, a column that lacks, is no number, or is missing
            somewhere; the target among the features; a target that is constant.
    """
    x, y, labels = _read(runs, target, features, loss, clusters)
    sign = 1.0 if higher_is_better else -1.0
    best, names = sign * y, [str(name) for name in runs.index]
    halves = _splits(labels, splits, seed)
    rival = None if loss is None else -runs[loss].to_numpy(dtype=float)
    dealt = shuffled_targets(
        best, [str(i) for i in range(len(best))], labels, "group", permutations, seed
    )
    shuffled = np.stack(dealt, axis=1) if dealt else np.empty((len(best), 0))
    tables, rows, new, nulls = [], [], [], {}
    for model in models:
        if model not in MODELS:
            raise InputError(f"models names {model!r}; pass some of {', '.join(MODELS)}")
        own = halves if model == "linear" else halves[:FOREST_SPLITS]
        targets = best[:, None] if model == "forest" else np.column_stack([best, shuffled])
        forecast = _left_out(model, x, best, labels, seed)
        tables.append(
            pd.DataFrame({"run": names, "by": model, "forecast": sign * forecast, "observed": y})
        )
        values = [
            _fitted(model, x[fit], x[test], targets[fit], [labels[i] for i in fit], seed)
            for fit, test in own
        ]
        row = _row(model, [v[:, 0] for v in values], best, rival, labels, own)
        rows.append(row)
        if model == "linear" and permutations:
            draws = [
                np.mean(
                    [
                        shuffled[test, j].max() - shuffled[test[v[:, j + 1].argmax()], j]
                        for (_, test), v in zip(own, values, strict=True)
                    ]
                )
                for j in range(permutations)
            ]
            nulls[str(model)] = NullDistribution(
                np.array(draws), f"regret of {model} on shuffled scores", seed
            )
            rows[-1]["p"] = nulls[str(model)].p_value(row["regret"], side="less")
        if candidates is not None:
            given = _numbers(candidates, features, "candidates")
            found = sign * _fitted(model, x, given, best[:, None], labels, seed)[:, 0]
            place = np.argsort(-sign * found, kind="stable")
            names_new = [str(candidates.index[i]) for i in place]
            new.append(
                pd.DataFrame(
                    {
                        "run": names_new,
                        "by": model,
                        "forecast": found[place],
                        "rank": np.arange(1, len(place) + 1),
                    }
                )
            )
    if rival is not None:
        rows.append(
            _row("lowest loss", [rival[test] for _, test in halves], best, None, labels, halves)
            | _rank(rival, best)
        )
    shown = (
        pd.concat(new, ignore_index=True)
        if new
        else pd.DataFrame(columns=["run", "by", "forecast", "rank"])
    )
    return Ranking(pd.concat(tables, ignore_index=True), pd.DataFrame(rows), shown, nulls)


def _read(
    runs: pd.DataFrame, target: str, features: Sequence[str], loss: str | None, clusters: str | None
) -> tuple[Array, Array, list[str]]:
    if isinstance(features, str) or not features:
        raise InputError(f"features={features!r} must be a list of columns, at least one")
    if target in features:
        raise InputError(f"features names the target {target!r} itself; leave it out")
    for name in (target, *features, *([] if loss is None else [loss])):
        _numbers(runs, [name], "the runs")
    if clusters is not None and clusters not in runs.columns:
        raise InputError(f"clusters={clusters!r} is not among the runs' columns")
    labels = (
        [f"run {i}" for i in range(len(runs))]
        if clusters is None
        else [str(v) for v in runs[clusters]]
    )
    if len(set(labels)) < LEAST_RUNS:
        raise InputError(
            f"{len(runs)} runs in {len(set(labels))} clusters came;"
            f" ranking needs at least {LEAST_RUNS}, so that each can be left out"
        )
    y = _numbers(runs, [target], "the runs")[:, 0]
    if np.ptp(y) == 0:
        raise InputError(f"target {target!r} is {y[0]:g} for every run; there is nothing to rank")
    return _numbers(runs, features, "the runs"), y, labels


def _numbers(table: pd.DataFrame, columns: Sequence[str], whose: str) -> Array:
    for name in columns:
        if name not in table.columns:
            raise InputError(
                f"column {one_line(str(name))!r} is not among the columns of {whose}:"
                f" {[one_line(str(c), 40) for c in table.columns[:8]]}"
            )
        bad = table.index[
            ~np.isfinite(pd.to_numeric(table[name], errors="coerce").to_numpy(dtype=float))
        ]
        if len(bad):
            raise InputError(
                f"column {one_line(str(name))!r} has no finite number for run"
                f" {one_line(str(bad[0]))!r}; fill it, or leave the run out"
            )
    return table[list(columns)].apply(pd.to_numeric).to_numpy(dtype=float)


def _splits(
    labels: Sequence[str], count: int, seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(learn from, choose among): random halves of the clusters."""
    rng, place = numpy_rng(seed, "halves of runs"), np.array(labels)
    names = sorted(set(labels))
    found = []
    for _ in range(count):
        chosen = np.isin(place, [names[i] for i in rng.permutation(len(names))[: len(names) // 2]])
        found.append((np.flatnonzero(~chosen), np.flatnonzero(chosen)))
    return found


def _left_out(model: str, x: Array, best: Array, labels: Sequence[str], seed: int) -> Array:
    """Forecast of each run from runs of other clusters; a forest leaves them out in at most 10
    folds.
    """
    found, place, names = np.empty(len(best)), np.array(labels), sorted(set(labels))
    order = numpy_rng(seed, "folds of runs").permutation(len(names))
    for part in np.array_split(order, len(names) if model == "linear" else min(10, len(names))):
        held = np.isin(place, [names[i] for i in part])
        found[held] = _fitted(
            model, x[~held], x[held], best[~held, None], place[~held].tolist(), seed
        )[:, 0]
    return found


def _fitted(
    model: str, train: Array, test: Array, targets: Array, labels: Sequence[str], seed: int
) -> Array:
    train_x, test_x = standardise(train, test)
    return (
        _linear(train_x, test_x, targets, np.array(labels))
        if model == "linear"
        else _forest(train_x, test_x, targets, seed)
    )


def _row(
    by: str,
    values: Sequence[Array],
    best: Array,
    rival: Array | None,
    labels: Sequence[str],
    halves: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> dict[str, Any]:
    """Regret, gain over the rival, and Spearman inside the halves, each with a jackknife interval
    over clusters of candidates.
    """
    place, names = np.array(labels), sorted(set(labels))
    own, other = (
        _lost(values, best, halves),
        (None if rival is None else _lost([rival[test] for _, test in halves], best, halves)),
    )
    row: dict[str, Any] = {"by": by, "regret": own, "regret_low": np.nan, "regret_high": np.nan}
    row["null"] = float(np.mean([best[test].max() - best[test].mean() for _, test in halves]))
    row |= {
        "gain": np.nan if other is None else other - own,
        "gain_low": np.nan,
        "gain_high": np.nan,
        "p": np.nan,
        "splits": len(halves),
    }
    row |= {
        "spearman": _ordered(values, best, halves),
        "spearman_low": np.nan,
        "spearman_high": np.nan,
    }
    without = np.full((len(names), 3), np.nan)
    for i, name in enumerate(names):
        kept = [place[test] != name for _, test in halves]
        fewer = [(fit, test[k]) for (fit, test), k in zip(halves, kept, strict=True)]
        less = [v[k] for v, k in zip(values, kept, strict=True)]
        without[i, [0, 2]] = _lost(less, best, fewer), _ordered(less, best, fewer)
        if rival is not None:
            without[i, 1] = _lost([rival[test] for _, test in fewer], best, fewer) - without[i, 0]
    limits = {"regret": (0.0, np.inf), "gain": (-np.inf, np.inf), "spearman": (-1.0, 1.0)}
    for column, (name, (least, most)) in enumerate(limits.items()):
        value = row[name]
        if np.isfinite(value):
            spread = float(
                np.sqrt(
                    (len(names) - 1)
                    / len(names)
                    * ((without[:, column] - without[:, column].mean()) ** 2).sum()
                )
            )
            reach = float(scipy_stats.t.ppf(0.975, len(names) - 1)) * spread
            row |= {
                f"{name}_low": max(least, value - reach),
                f"{name}_high": min(most, value + reach),
            }
    return row


def _lost(
    values: Sequence[Array],
    best: Array,
    halves: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> float:
    """Mean over splits: the best candidate minus the one with the highest value."""
    return float(
        np.mean(
            [
                best[test].max() - best[test[v.argmax()]]
                for (_, test), v in zip(halves, values, strict=True)
                if len(test)
            ]
        )
    )


def _ordered(
    values: Sequence[Array],
    best: Array,
    halves: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> float:
    """Mean over splits: Spearman of values and scores inside the half to choose among; 0 where
    either is one number.
    """
    found = []
    for (_, test), v in zip(halves, values, strict=True):
        told = len(test) > 1 and np.ptp(v) > 0 and np.ptp(best[test]) > 0
        found.append(
            np.corrcoef(scipy_stats.rankdata(v), scipy_stats.rankdata(best[test]))[0, 1]
            if told
            else 0.0
        )
    return float(np.mean(found))


def _rank(values: Array, best: Array) -> dict[str, float]:
    found = (
        spearman(values, best)
        if np.ptp(values) > 0
        else Estimate.undefined("every run has the same forecast", len(values))
    )
    return {"spearman": found.value, "spearman_low": found.low, "spearman_high": found.high}


def _linear(train: Array, test: Array, targets: Array, labels: NDArray[np.str_]) -> Array:
    """Ridge; each target's penalty by leaving clusters of the training runs out, in at most 10
    folds.
    """
    names = sorted(set(labels))
    errors = np.zeros((len(ALPHAS), targets.shape[1]))
    for part in np.array_split(np.array(names), min(10, len(names))):
        held = np.isin(labels, part)
        inner_train, inner_test = standardise(train[~held], train[held])
        errors += ((ridge_path(inner_train, inner_test, targets[~held]) - targets[held]) ** 2).sum(
            1
        )
    best = errors.argmin(0)
    return np.asarray(ridge_path(train, test, targets)[best, :, np.arange(targets.shape[1])].T)


def _forest(train: Array, test: Array, targets: Array, seed: int) -> Array:
    from sklearn.ensemble import RandomForestRegressor

    columns = []
    # a forest of its own each: with several targets, trees would share their splits
    for target in targets.T:
        fitted = RandomForestRegressor(
            n_estimators=TREES, min_samples_leaf=2, random_state=seed, n_jobs=1
        ).fit(train, target)
        columns.append(fitted.predict(test))
    return np.column_stack(columns)
