"""Which training configuration to choose, from what is known of each run without evaluating it: the last stage of the paper's workflow.

Rows are runs; features are numbers known before the alignment evaluation: final loss, learning rate, baseline activations, delta overlap. A
model of the other runs predicts each run's alignment (leave-run-out). A choice is judged by regret: how much worse than the best
run the chosen one is. Beside it, the regret of taking the lowest loss, of taking any run, and of the same procedure on shuffled scores. One
sweep holds one best run, so intervals come from resampling runs, and with few runs they are wide. Cost: ridge: one
factorisation a run for all shuffles; forest: ten forests a shuffle, some seconds each hundred.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.files import one_line
from emlens.foundation.seeds import numpy_rng
from emlens.probes.ridge import ALPHAS, Array, ridge_path, standardise
from emlens.stats import NullDistribution, spearman

Model = Literal["linear", "forest"]
MODELS: Final[tuple[Model, ...]] = ("linear", "forest")
LEAST_RUNS: Final = 8
TREES: Final = 40


@dataclass(frozen=True)
class Ranking:
    """What was chosen, and what choosing so costs.

    Args:
        table: one row a run and way to choose, best first: run, by, forecast (from other runs), advantage (over the mean of the runs it was learnt
            from, which is what ranks: the mean of the others falls as a run's own score rises), observed, rank.
        choices: one row a way to choose: by, run (chosen among all), observed, regret (best run minus the chosen), and `batch_regret` with interval:
            the mean regret of choosing within random halves of the runs, beside `null` (any run of the half) and `lowest`, the regret of the
            lowest loss there, and `gain` = lowest − batch_regret with interval; p against shuffled scores.
        null: by model, batch regret on shuffled scores.
        spearman: by way to choose, rank correlation of forecast and observed over runs.
    """

    table: pd.DataFrame
    choices: pd.DataFrame
    null: Mapping[str, NullDistribution]
    spearman: Mapping[str, Estimate]

    def chosen(self, by: Model = "linear") -> str:
        """The run with the best forecast from the other runs."""
        return str(self.choices.set_index("by").loc[by, "run"])


def rank_configurations(
    runs: pd.DataFrame,
    *,
    target: str,
    features: Sequence[str],
    loss: str | None = None,
    clusters: str | None = None,
    higher_is_better: bool = True,
    models: Sequence[Model] = MODELS,
    resamples: int = 999,
    permutations: int = 99,
    seed: int = 0,
) -> Ranking:
    """Rank training configurations by forecast alignment, each forecast from the other runs, and say what the choice costs.

    Args:
        runs: one row a run; the index names them.
        target: column to be high (alignment). features: numeric columns known before it is measured.
        loss: column whose lowest value is the rival choice; None: no such rival.
        clusters: column that names what is left out together (a schedule, a data set); None: each run alone.
        models: `"linear"` (ridge, penalty chosen on inner folds) and `"forest"`.
        resamples: random halves of the runs; regret is averaged over them, and its interval comes from resampling clusters of runs.
        permutations: shuffles of the target for the null of the whole procedure.

    Raises:
        InputError: too few runs or clusters, a column that lacks, is no number, or is missing somewhere; the target among the features; a target
            that is constant.
    """
    x, y, labels = _read(runs, target, features, loss, clusters)
    best = y if higher_is_better else -y
    names = [str(name) for name in runs.index]
    learnt = {model: _left_out(model, x, best[:, None], labels, seed) for model in models}
    rival = None if loss is None else -runs[loss].to_numpy(dtype=float)
    shown = {model: advantage[:, 0] for model, (advantage, _) in learnt.items()} | ({} if rival is None else {"lowest loss": rival})
    halves = _halves(len(best), resamples, seed)
    lost = {by: _regrets(values, best, halves) for by, values in shown.items()}
    anyone = np.array([best[half].max() - best[half].mean() for half in halves])
    sign = 1.0 if higher_is_better else -1.0
    table, choices, nulls, ranks = [], [], {}, {}
    for by, values in shown.items():
        order = np.argsort(-values, kind="stable")
        level = learnt[by][1][order, 0] if by in learnt else np.full(len(order), np.nan)
        table.append(
            pd.DataFrame(
                {
                    "run": [names[i] for i in order],
                    "by": by,
                    "forecast": sign * (values[order] + level),
                    "advantage": values[order],
                    "observed": y[order],
                    "rank": np.arange(1, len(order) + 1),
                }
            )
        )
        ranks[by] = spearman(values, best) if np.ptp(values) > 0 else Estimate.undefined("every run has the same forecast", len(values))
        ends = _intervals(values, best, rival, labels, seed, resamples)
        row: dict[str, Any] = {
            "by": by,
            "run": names[int(order[0])],
            "observed": float(y[order[0]]),
            "regret": float(best.max() - best[order[0]]),
            "any_run": float(best.max() - best.mean()),
            "batch_regret": float(lost[by].mean()),
            "batch_regret_low": ends["regret"][0],
            "batch_regret_high": ends["regret"][1],
            "null": float(anyone.mean()),
            "spearman": ranks[by].value,
            "spearman_low": ranks[by].low,
            "spearman_high": ranks[by].high,
            "p": np.nan,
        }
        if rival is not None and by != "lowest loss":
            row |= {"gain_over_lowest_loss": float((lost["lowest loss"] - lost[by]).mean())}
            row |= {"gain_low": ends["gain"][0], "gain_high": ends["gain"][1]}
        if by != "lowest loss" and permutations:
            nulls[by] = _null(by, x, best, labels, halves, permutations, seed)
            row["p"] = nulls[by].p_value(row["batch_regret"], side="less")
        choices.append(row)
    return Ranking(pd.concat(table, ignore_index=True), pd.DataFrame(choices), nulls, ranks)


def _read(
    runs: pd.DataFrame, target: str, features: Sequence[str], loss: str | None, clusters: str | None
) -> tuple[Array, Array, list[str]]:
    if isinstance(features, str) or not features:
        raise InputError(f"features={features!r} must be a list of columns, at least one")
    if target in features:
        raise InputError(f"features names the target {target!r} itself; leave it out")
    for name in (target, *features, *([] if loss is None else [loss])):
        if name not in runs.columns:
            raise InputError(f"column {one_line(str(name))!r} is not among the runs' columns {[one_line(str(c), 40) for c in runs.columns[:8]]}")
        values = pd.to_numeric(runs[name], errors="coerce")
        if not np.isfinite(values).all():
            bad = runs.index[~np.isfinite(values.to_numpy(dtype=float))][0]
            raise InputError(f"column {one_line(str(name))!r} has no finite number for run {one_line(str(bad))!r}; fill it, or leave the run out")
    if clusters is not None and clusters not in runs.columns:
        raise InputError(f"clusters={clusters!r} is not among the runs' columns")
    labels = [f"run {i}" for i in range(len(runs))] if clusters is None else [str(v) for v in runs[clusters]]
    if len(set(labels)) < LEAST_RUNS:
        raise InputError(f"{len(runs)} runs in {len(set(labels))} clusters came; ranking needs at least {LEAST_RUNS}, so that each can be left out")
    y = pd.to_numeric(runs[target]).to_numpy(dtype=float)
    if np.ptp(y) == 0:
        raise InputError(f"target {target!r} is {y[0]:g} for every run; there is nothing to rank")
    return runs[list(features)].apply(pd.to_numeric).to_numpy(dtype=float), y, labels


def _left_out(model: str, x: Array, targets: Array, labels: Sequence[str], seed: int) -> tuple[Array, Array]:
    """(advantage, mean) of each run (run, target): forecast from runs of other clusters minus their mean, and that mean.

    A forest leaves clusters out in at most 10 folds.
    """
    if model not in MODELS:
        raise InputError(f"models names {model!r}; pass some of {', '.join(MODELS)}")
    found, means = np.empty_like(targets), np.empty_like(targets)
    place, names = np.array(labels), sorted(set(labels))
    order = numpy_rng(seed, "folds of runs").permutation(len(names))
    parts = np.array_split(order, len(names) if model == "linear" else min(10, len(names)))
    for part in parts:
        held = np.isin(place, [names[i] for i in part])
        train_x, test_x = standardise(x[~held], x[held])
        means[held] = targets[~held].mean(0)
        fit = _linear if model == "linear" else _forest
        found[held] = fit(train_x, test_x, targets[~held], place[~held], seed) - means[held]
    return found, means


def _linear(train: Array, test: Array, targets: Array, labels: NDArray[np.str_], seed: int) -> Array:
    """Ridge; each target's penalty by leaving clusters of the training runs out, in at most 10 folds."""
    names = sorted(set(labels))
    errors = np.zeros((len(ALPHAS), targets.shape[1]))
    for part in np.array_split(np.array(names), min(10, len(names))):
        held = np.isin(labels, part)
        inner_train, inner_test = standardise(train[~held], train[held])
        errors += ((ridge_path(inner_train, inner_test, targets[~held]) - targets[held]) ** 2).sum(1)
    best = errors.argmin(0)
    return np.asarray(ridge_path(train, test, targets)[best, :, np.arange(targets.shape[1])].T)


def _forest(train: Array, test: Array, targets: Array, labels: NDArray[np.str_], seed: int) -> Array:
    from sklearn.ensemble import RandomForestRegressor

    columns = []
    for target in targets.T:  # a forest of its own each: with several targets, trees would share their splits
        fitted = RandomForestRegressor(n_estimators=TREES, min_samples_leaf=2, random_state=seed, n_jobs=1).fit(train, target)
        columns.append(fitted.predict(test))
    return np.column_stack(columns)


def _halves(n: int, count: int, seed: int) -> NDArray[np.int64]:
    """Random halves (half, run number) of the runs among which a choice is made."""
    rng = numpy_rng(seed, "halves of runs")
    return np.stack([rng.permutation(n)[: n // 2] for _ in range(count)])


def _regrets(values: Array, best: Array, halves: NDArray[np.int64]) -> Array:
    """In each half, the best run minus the run that the values put first; ties are broken by order, which is random."""
    picked = halves[np.arange(len(halves)), values[halves].argmax(1)]
    return np.asarray(best[halves].max(1) - best[picked])


def _intervals(
    values: Array, best: Array, rival: Array | None, labels: Sequence[str], seed: int, resamples: int
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals over resampled clusters of runs, forecasts taken as given."""
    rng = numpy_rng(seed, "clusters of runs")
    members = {label: np.flatnonzero(np.array(labels) == label) for label in sorted(set(labels))}
    groups = list(members.values())
    regrets, gains = [], []
    for draw in range(min(resamples, 400)):
        rows = np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))])
        halves = rows[_halves(len(rows), 40, seed + 1 + draw)]
        own = _regrets(values, best, halves)
        regrets.append(own.mean())
        gains.append(np.nan if rival is None else (_regrets(rival, best, halves) - own).mean())
    found = {"regret": _ends(np.array(regrets))}
    return found | {"gain": (float("nan"), float("nan")) if rival is None else _ends(np.array(gains))}


def _ends(values: Array) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _null(
    model: str, x: Array, best: Array, labels: Sequence[str], halves: NDArray[np.int64], permutations: int, seed: int
) -> NullDistribution:
    """Batch regret of the whole procedure where scores were dealt out anew among runs."""
    rng = numpy_rng(seed, "shuffled runs")
    shuffled = np.column_stack([rng.permutation(best) for _ in range(permutations)])
    forecasts, _ = _left_out(model, x, shuffled, labels, seed)
    draws = [float(_regrets(forecasts[:, j], shuffled[:, j], halves).mean()) for j in range(permutations)]
    return NullDistribution(np.array(draws), f"regret of {model} on shuffled scores", seed)
