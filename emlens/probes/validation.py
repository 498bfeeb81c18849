"""Folds and nested selection: nothing is fitted, scaled or chosen on a row that it is then tested on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emlens.foundation.errors import InputError
from emlens.foundation.seeds import numpy_rng
from emlens.probes.features import Features, Rows
from emlens.probes.ridge import ALPHAS, Array, ridge_path


def grouped_folds(labels: Sequence[object], n_folds: int, seed: int, name: str) -> list[Rows]:
    """Test rows of each fold; rows with one label stay together, fold sizes as even as that allows.

    Raises:
        InputError: fewer labels than folds, or fewer than 2 folds.
    """
    unique = sorted({str(label) for label in labels})
    if n_folds < 2 or len(unique) < n_folds:
        raise InputError(f"folds={n_folds} needs at least 2 and at most as many as there are groups to hold out, {len(unique)}")
    rows: dict[str, list[int]] = {label: [] for label in unique}
    for i, label in enumerate(labels):
        rows[str(label)].append(i)
    order = [unique[i] for i in numpy_rng(seed, "folds", name).permutation(len(unique))]
    order.sort(key=lambda label: -len(rows[label]))
    folds: list[list[int]] = [[] for _ in range(n_folds)]
    for label in order:
        min(folds, key=len).extend(rows[label])
    return [np.array(sorted(fold), dtype=np.int64) for fold in folds]


@dataclass(frozen=True)
class OuterFold:
    """Test rows of one outer fold, and which repeat it belongs to."""

    repeat: int
    test: Rows
    train: Rows


def outer_folds(labels: Sequence[object], n_folds: int, repeats: int, seed: int) -> list[OuterFold]:
    everything = np.arange(len(labels))
    return [
        OuterFold(repeat, test, np.setdiff1d(everything, test))
        for repeat in range(repeats)
        for test in grouped_folds(labels, n_folds, seed, f"outer {repeat}")
    ]


@dataclass(frozen=True)
class NestedPredictions:
    """Out-of-fold predictions of one candidate list under nested selection.

    Args:
        nested: (repeat, row, target), candidate and penalty chosen on inner folds of the training rows.
        by_candidate: (repeat, candidate, row, target), only the penalty chosen so.
        chosen: name of the chosen candidate for each outer fold, for target 0.
    """

    nested: Array
    by_candidate: Array
    chosen: tuple[str, ...]


def nested_ridge(
    candidates: Sequence[Features],
    targets: Array,
    labels: Sequence[object],
    folds: Sequence[OuterFold],
    *,
    inner_folds: int,
    seed: int,
    alphas: Sequence[float] = ALPHAS,
) -> NestedPredictions:
    """Ridge over several feature sets, for (row, target) many targets at once; target columns never see each other."""
    n, n_targets = targets.shape
    repeats = 1 + max(fold.repeat for fold in folds)
    nested = np.full((repeats, n, n_targets), np.nan)
    single = np.full((repeats, len(candidates), n, n_targets), np.nan)
    chosen = []
    columns = np.arange(n_targets)
    for number, fold in enumerate(folds):
        own = [labels[i] for i in fold.train]
        inner = grouped_folds(own, min(inner_folds, len(set(map(str, own)))), seed, f"inner {number}")
        errors = np.empty((len(candidates), len(alphas), n_targets))
        outer = np.empty((len(candidates), len(alphas), len(fold.test), n_targets))
        for c, features in enumerate(candidates):
            squared = np.zeros((len(alphas), n_targets))
            for held in inner:
                fit = np.setdiff1d(np.arange(len(fold.train)), held)
                train, test = features.split(fold.train[fit], fold.train[held])
                predicted = ridge_path(train, test, targets[fold.train[fit]], alphas)
                squared += ((predicted - targets[fold.train[held]]) ** 2).sum(1)
            errors[c] = squared
            train, test = features.split(fold.train, fold.test)
            outer[c] = ridge_path(train, test, targets[fold.train], alphas)
            best = squared.argmin(0)
            single[fold.repeat, c][fold.test] = outer[c][best, :, columns].T
        flat = errors.reshape(-1, n_targets).argmin(0)
        cell, alpha = np.unravel_index(flat, errors.shape[:2])
        nested[fold.repeat][fold.test] = outer[cell, alpha, :, columns].T
        chosen.append(candidates[int(cell[0])].name)
    return NestedPredictions(nested, single, tuple(chosen))


def training_means(targets: Array, folds: Sequence[OuterFold]) -> Array:
    """(repeat, row, target): the mean of the training rows, the forecast that knows nothing."""
    repeats = 1 + max(fold.repeat for fold in folds)
    means = np.full((repeats, *targets.shape), np.nan)
    for fold in folds:
        means[fold.repeat][fold.test] = targets[fold.train].mean(0)
    return means


def generic_nested(
    candidates: Sequence[Features],
    target: Array,
    labels: Sequence[object],
    folds: Sequence[OuterFold],
    *,
    estimator: str,
    inner_folds: int,
    seed: int,
) -> NestedPredictions:
    """The same for one target and an estimator of scikit-learn; slower, since each candidate is refitted in every inner fold."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.linear_model import LassoCV

    def fitted(train: Array, y: NDArray[np.float64]) -> object:
        if estimator == "forest":
            return RandomForestRegressor(n_estimators=200, min_samples_leaf=3, random_state=seed, n_jobs=1).fit(train, y)
        return LassoCV(cv=5, random_state=seed, max_iter=20_000).fit(train, y)

    n = len(target)
    repeats = 1 + max(fold.repeat for fold in folds)
    nested = np.full((repeats, n, 1), np.nan)
    single = np.full((repeats, len(candidates), n, 1), np.nan)
    chosen = []
    for number, fold in enumerate(folds):
        own = [labels[i] for i in fold.train]
        inner = grouped_folds(own, min(inner_folds, len(set(map(str, own)))), seed, f"inner {number}")
        errors = np.zeros(len(candidates))
        for c, features in enumerate(candidates):
            for held in inner:
                fit = np.setdiff1d(np.arange(len(fold.train)), held)
                train, test = features.split(fold.train[fit], fold.train[held])
                predicted = fitted(train, target[fold.train[fit], 0]).predict(test)  # type: ignore[attr-defined]
                errors[c] += float(((predicted - target[fold.train[held], 0]) ** 2).sum())
            train, test = features.split(fold.train, fold.test)
            single[fold.repeat, c][fold.test, 0] = fitted(train, target[fold.train, 0]).predict(test)  # type: ignore[attr-defined]
        best = int(errors.argmin())
        nested[fold.repeat][fold.test] = single[fold.repeat, best][fold.test]
        chosen.append(candidates[best].name)
    return NestedPredictions(nested, single, tuple(chosen))
