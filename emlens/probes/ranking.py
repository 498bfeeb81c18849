"""Which training configuration to choose, from what is known of each run without evaluating it: the
last stage of the paper's workflow.

Rows are runs; features are numbers known before the alignment evaluation: final loss, learning
rate, baseline activations, delta overlap. A model of the other runs predicts each run's alignment
(leave-run-out). A choice is judged by regret: how much worse than the best run the chosen one is,
among runs none of which the model was fitted on: it learns from one half of them and chooses in the
other. (Forecasts that each leave one run out, or average over halves without it, may not be
compared for this: what is learnt from the others falls as a run's own score rises. So nothing is
chosen among runs that are scored already: that takes candidates.) It is shown with the regret of
taking the lowest loss, of taking any run, and of the same procedure on shuffled scores. Cost:
ridge, one factorisation per split for all shuffles; a forest comes without shuffles.
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
from emlens.foundation.notebooks import Brief
from emlens.foundation.seeds import numpy_rng
from emlens.probes.features import at_rows
from emlens.probes.ridge import ALPHAS, Array, ridge_path, standardise
from emlens.probes.shuffles import shuffled_targets
from emlens.stats import NullDistribution, spearman

Model = Literal["linear", "forest"]
MODELS: Final[tuple[Model, ...]] = ("linear", "forest")
LEAST_RUNS: Final = 8
TREES: Final = 40
FOREST_SPLITS: Final = 40

Half = tuple[NDArray[np.int64], NDArray[np.int64]]
"""(runs to learn from, runs to choose among)."""


@dataclass(frozen=True, repr=False)
class Ranking(Brief):
    """What was chosen, and what choosing so costs.

    Args:
        table: one row per run and model, in their order: run, by, forecast (from the other runs),
            observed. These forecasts are not a ranking: without information they fall as the
            observed score rises.
        choices: one row per way to choose: by; `regret` with interval: the best run minus the
            chosen one, on average over random halves of the runs; `null`: that of taking any run of
            the half; `gain`: how much less than that of the lowest loss, with interval; p of the
            regret against shuffled scores (whole clusters are shuffled); `spearman` of forecasts
            and scores inside a half that no fit used, on average over halves (of lowest loss: of
            the negative loss over all runs), with interval.
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
        runs: one row per run; the index names them.
        target: column to be high (alignment).
        features: numeric columns known before the target is measured.
        loss: column whose lowest value is the rival choice; None: no such rival.
        clusters: column that names what is left out together (a schedule, a data set); None: each
            run alone.
        candidates: configurations whose target is not known, with the feature columns, to choose
            among; None: only what choosing costs is reported.
        models: `"linear"` (ridge, penalty chosen on inner folds) and `"forest"`.
        splits: random halves over which regret is averaged; a forest takes at most 40. Intervals:
            delete-one-cluster jackknife, fits as given.
        permutations: shuffles of the target for the null of the linear model.
        higher_is_better: whether the highest target is the best.

    Raises:
        InputError: too few runs or clusters, a column that lacks, is not a number, or is missing
            somewhere; the target among the features; a target that is constant.
    """
    _require_models(models)
    x, y, labels = _read(runs, target, features, loss, clusters)
    sign = 1.0 if higher_is_better else -1.0
    data = _Data(x, sign * y, labels, seed)
    halves = _halves(labels, splits, seed)
    rival = None if loss is None else -runs[loss].to_numpy(dtype=float)
    shuffled = _shuffled_scores(data, permutations)
    tables, choices, ranked, nulls = [], [], [], {}
    for model in models:
        forecast = sign * data.forecast(model)
        tables.append(_forecast_table(runs.index.map(str), model, forecast, y))
        choice, null = _judge(model, data, rival, halves, shuffled)
        choices.append(choice)
        if null is not None:
            nulls[str(model)] = null
        if candidates is not None:
            new = numbers_of(candidates, features, "candidates")
            scores = data.predict(model, np.arange(len(y)), new, data.score[:, None])[:, 0]
            ranked.append(_candidate_table(list(candidates.index.map(str)), model, scores))
    if rival is not None:
        choices.append(_lowest_loss(data, rival, halves))
    new_table = pd.DataFrame(columns=["run", "by", "forecast", "rank"])
    if ranked:
        new_table = pd.concat(ranked, ignore_index=True)
        new_table["forecast"] = sign * new_table["forecast"]
    return Ranking(pd.concat(tables, ignore_index=True), pd.DataFrame(choices), new_table, nulls)


def _require_models(models: Sequence[str]) -> None:
    for model in models:
        if model not in MODELS:
            raise InputError(
                f"models names {model!r}; pass some of {', '.join(MODELS)}",
                name=model,
                known=MODELS,
            )


def _read(
    runs: pd.DataFrame, target: str, features: Sequence[str], loss: str | None, clusters: str | None
) -> tuple[Array, Array, list[str]]:
    """(features, target, cluster of each run) as numbers, checked."""
    if isinstance(features, str) or not features:
        raise InputError(f"features={features!r} must be a list of columns, at least one")
    if target in features:
        raise InputError(f"features names the target {target!r} itself; leave it out")
    y = numbers_of(runs, [target], "the runs")[:, 0]
    x = numbers_of(runs, features, "the runs")
    if loss is not None:
        numbers_of(runs, [loss], "the runs")
    labels = [f"run {i}" for i in range(len(runs))]
    if clusters is not None:
        if clusters not in runs.columns:
            raise InputError(
                f"clusters={clusters!r} is not among the runs' columns",
                name=clusters,
                known=runs.columns,
            )
        labels = [str(value) for value in runs[clusters]]
    if len(set(labels)) < LEAST_RUNS:
        raise InputError(
            f"{len(runs)} runs in {len(set(labels))} clusters were given;"
            f" ranking needs at least {LEAST_RUNS}, so that each can be left out"
        )
    if np.ptp(y) == 0:
        raise InputError(f"target {target!r} is {y[0]:g} for every run; there is nothing to rank")
    return x, y, labels


def numbers_of(table: pd.DataFrame, columns: Sequence[str], whose: str) -> Array:
    """(run, column) numbers of a table of runs.

    Raises:
        InputError: a column that is missing, or a run without a finite number in it.
    """
    for name in columns:
        if name not in table.columns:
            raise InputError(
                f"column {one_line(str(name))!r} is not among the columns of {whose}:"
                f" {[one_line(str(column), 40) for column in table.columns[:8]]}",
                name=name,
                known=table.columns,
            )
        values = pd.to_numeric(table[name], errors="coerce").to_numpy(dtype=float)
        bad = table.index[~np.isfinite(values)]
        if len(bad):
            raise InputError(
                f"column {one_line(str(name))!r} has no finite number for run"
                f" {one_line(str(bad[0]))!r}; fill it, or leave the run out"
            )
    return table[list(columns)].apply(pd.to_numeric).to_numpy(dtype=float)


@dataclass(frozen=True)
class _Data:
    """Runs as numbers: (run, feature), a score that is better when higher, and clusters."""

    x: Array
    score: Array
    labels: list[str]
    seed: int

    def predict(self, model: str, fit: NDArray[np.int64], new_x: Array, targets: Array) -> Array:
        """(new row, target) from the runs `fit`; targets are (run, target) of all runs."""
        labels = at_rows(self.labels, fit)
        return predict_runs(model, self.x[fit], new_x, targets[fit], labels, self.seed)

    def forecast(self, model: str) -> Array:
        """Forecast of each run from runs of other clusters.

        A forest leaves clusters out in at most 10 folds.
        """
        names = sorted(set(self.labels))
        order = numpy_rng(self.seed, "folds of runs").permutation(len(names))
        parts = len(names)
        if model == "forest":
            parts = min(10, parts)
        forecast = np.empty(len(self.score))
        for part in np.array_split(order, parts):
            is_out = np.isin(np.array(self.labels), at_rows(names, part))
            fit = np.flatnonzero(~is_out)
            predicted = self.predict(model, fit, self.x[is_out], self.score[:, None])
            forecast[is_out] = predicted[:, 0]
        return forecast


def _halves(labels: Sequence[str], count: int, seed: int) -> list[Half]:
    """Random halves of the clusters."""
    rng = numpy_rng(seed, "halves of runs")
    names = sorted(set(labels))
    halves = []
    for _ in range(count):
        second_half = at_rows(names, rng.permutation(len(names))[: len(names) // 2])
        in_second = np.isin(np.array(labels), second_half)
        halves.append((np.flatnonzero(~in_second), np.flatnonzero(in_second)))
    return halves


def _shuffled_scores(data: _Data, count: int) -> Array:
    """(run, shuffle) scores; clusters change places whole."""
    runs = [str(i) for i in range(len(data.score))]
    shuffles = shuffled_targets(data.score, runs, data.labels, "group", count, data.seed)
    return np.stack(shuffles, axis=1) if shuffles else np.empty((len(runs), 0))


def _forecast_table(names: pd.Index, model: str, forecast: Array, y: Array) -> pd.DataFrame:
    return pd.DataFrame({"run": list(names), "by": model, "forecast": forecast, "observed": y})


def _candidate_table(names: Sequence[str], model: str, scores: Array) -> pd.DataFrame:
    """Candidates, highest score first."""
    order = np.argsort(-scores, kind="stable")
    return pd.DataFrame(
        {
            "run": at_rows(names, order),
            "by": model,
            "forecast": scores[order],
            "rank": np.arange(1, len(order) + 1),
        }
    )


def _judge(
    model: str, data: _Data, rival: Array | None, halves: Sequence[Half], shuffled: Array
) -> tuple[dict[str, Any], NullDistribution | None]:
    """The row of one model among the choices, and the null of its regret; None for a forest."""
    if model == "forest":
        halves = halves[:FOREST_SPLITS]
        shuffled = shuffled[:, :0]
    targets = np.column_stack([data.score, shuffled])
    predictions = []
    for fit, test in halves:
        predictions.append(data.predict(model, fit, data.x[test], targets))
    choice = _choice_row(model, [p[:, 0] for p in predictions], data, rival, halves)
    if not shuffled.shape[1]:
        return choice, None
    draws = []
    for j in range(shuffled.shape[1]):
        draws.append(_regret([p[:, j + 1] for p in predictions], shuffled[:, j], halves))
    method = f"regret of {model} on shuffled scores"
    null = NullDistribution(np.array(draws), method, data.seed)
    choice["p"] = null.p_value(choice["regret"], side="less")
    return choice, null


def _lowest_loss(data: _Data, rival: Array, halves: Sequence[Half]) -> dict[str, Any]:
    """The row of taking the lowest loss; its Spearman is over all runs, since nothing is fitted."""
    row = _choice_row("lowest loss", [rival[test] for _, test in halves], data, None, halves)
    rank = Estimate.undefined("every run has the same forecast", len(rival))
    if np.ptp(rival) > 0:
        rank = spearman(rival, data.score)
    row |= {"spearman": rank.value, "spearman_low": rank.low, "spearman_high": rank.high}
    return row


_FIGURES: Final = {"regret": (0.0, np.inf), "gain": (-np.inf, np.inf), "spearman": (-1.0, 1.0)}
"""Figures of a way to choose, with the range of each."""


def _choice_row(
    by: str, values: Sequence[Array], data: _Data, rival: Array | None, halves: Sequence[Half]
) -> dict[str, Any]:
    """Regret, gain over the rival, and Spearman inside the halves, with their intervals.

    Intervals are a jackknife over clusters of candidates: each is left out of every half in turn,
    with the fits as they are.

    Args:
        values: for each half, (run,) what is chosen by; the highest is taken.
    """
    figures = _figures(values, data.score, rival, halves)
    names = sorted(set(data.labels))
    labels = np.array(data.labels)
    without = np.empty((len(names), len(_FIGURES)))
    for i, name in enumerate(names):
        fewer, fewer_values = [], []
        for (fit, test), v in zip(halves, values, strict=True):
            keep = labels[test] != name
            fewer.append((fit, test[keep]))
            fewer_values.append(v[keep])
        without[i] = _figures(fewer_values, data.score, rival, fewer)
    intervals = []
    for column, (least, most) in enumerate(_FIGURES.values()):
        intervals.append(_jackknife(figures[column], without[:, column], least, most))
    any_run = [data.score[test].max() - data.score[test].mean() for _, test in halves]
    regret, gain, rank = figures.tolist()
    return {
        "by": by,
        "regret": regret,
        "regret_low": intervals[0][0],
        "regret_high": intervals[0][1],
        "null": float(np.mean(any_run)),
        "gain": gain,
        "gain_low": intervals[1][0],
        "gain_high": intervals[1][1],
        "p": np.nan,
        "splits": len(halves),
        "spearman": rank,
        "spearman_low": intervals[2][0],
        "spearman_high": intervals[2][1],
    }


def _figures(
    values: Sequence[Array], score: Array, rival: Array | None, halves: Sequence[Half]
) -> Array:
    """(regret, gain over the rival, Spearman) on average over halves."""
    regret = _regret(values, score, halves)
    gain = np.nan
    if rival is not None:
        gain = _regret([rival[test] for _, test in halves], score, halves) - regret
    return np.array([regret, gain, _mean_spearman(values, score, halves)])


def _jackknife(value: float, without: Array, least: float, most: float) -> tuple[float, float]:
    """95 % interval from the values without each cluster, kept inside the range of the figure."""
    if not np.isfinite(value):
        return np.nan, np.nan
    n = len(without)
    squares = ((without - without.mean()) ** 2).sum()
    spread = float(np.sqrt((n - 1) / n * squares))
    reach = float(scipy_stats.t.ppf(0.975, n - 1)) * spread
    return max(least, float(value) - reach), min(most, float(value) + reach)


def _regret(values: Sequence[Array], score: Array, halves: Sequence[Half]) -> float:
    """Mean over halves: the best candidate minus the one with the highest value."""
    losses = []
    for (_, test), v in zip(halves, values, strict=True):
        if len(test):
            losses.append(score[test].max() - score[test[v.argmax()]])
    return float(np.mean(losses))


def _mean_spearman(values: Sequence[Array], score: Array, halves: Sequence[Half]) -> float:
    """Mean over halves: Spearman of values and scores inside the half to choose among; 0 where
    either is constant.
    """
    ranks = []
    for (_, test), v in zip(halves, values, strict=True):
        rank = 0.0
        if len(test) > 1 and np.ptp(v) > 0 and np.ptp(score[test]) > 0:
            rank = np.corrcoef(scipy_stats.rankdata(v), scipy_stats.rankdata(score[test]))[0, 1]
        ranks.append(rank)
    return float(np.mean(ranks))


def predict_runs(
    model: str,
    train: Array,
    test: Array,
    targets: Array,
    labels: Sequence[str],
    seed: int,
    *,
    trees: int = TREES,
) -> Array:
    """(test run, target) predictions; features are scaled by the training runs.

    Args:
        model: `linear` or `forest`. train, test: (run, feature). targets: (training run, target).
        labels: cluster of each training run, for the penalty of ridge. trees: of a forest.
    """
    train_x, test_x = standardise(train, test)
    if model == "linear":
        return _linear(train_x, test_x, targets, np.array(labels))
    return _forest(train_x, test_x, targets, seed, trees)


def _linear(train: Array, test: Array, targets: Array, labels: NDArray[np.str_]) -> Array:
    """Ridge; each target's penalty by leaving clusters of the training runs out, in at most 10
    folds.
    """
    names = sorted(set(labels))
    errors = np.zeros((len(ALPHAS), targets.shape[1]))
    for part in np.array_split(np.array(names), min(10, len(names))):
        is_out = np.isin(labels, part)
        inner_train, inner_test = standardise(train[~is_out], train[is_out])
        gap = ridge_path(inner_train, inner_test, targets[~is_out]) - targets[is_out]
        errors += (gap**2).sum(1)
    best = errors.argmin(0)
    return np.asarray(ridge_path(train, test, targets)[best, :, np.arange(targets.shape[1])].T)


def _forest(train: Array, test: Array, targets: Array, seed: int, trees: int) -> Array:
    from sklearn.ensemble import RandomForestRegressor

    columns = []
    # a forest for each: with several targets, trees would share their splits
    for target in targets.T:
        fitted = RandomForestRegressor(
            n_estimators=trees, min_samples_leaf=2, random_state=seed, n_jobs=1
        ).fit(train, target)
        columns.append(fitted.predict(test))
    return np.column_stack(columns)
