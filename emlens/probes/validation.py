"""Folds and nested selection: nothing is fitted, scaled or chosen on a row that it is tested on.

Inner folds keep together what outer folds keep together. Feature set and setting are chosen by the
squared error summed over inner folds. Each target column chooses for itself, so permuted targets
repeat the whole procedure. Cost of ridge: one Gram matrix and one tridiagonalisation per feature
set and fold, whatever the number of penalties, and 2 · penalties · test rows · training rows
operations per target.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from emlens.foundation.errors import InputError
from emlens.foundation.seeds import numpy_rng
from emlens.probes.estimators import ESTIMATORS, Estimator, path_predictions
from emlens.probes.features import Features, Fold, Rows, at_rows
from emlens.probes.ridge import ALPHAS, Array, RidgePath

Count = int | Literal["all"]


def grouped_folds(labels: Sequence[object], n_folds: int, seed: int, name: str) -> list[Rows]:
    """Test rows of each fold; rows with one label share a fold, and fold sizes are nearly even.

    Raises:
        InputError: fewer labels than folds, or fewer than 2 folds.
    """
    unique = sorted({str(label) for label in labels})
    if n_folds < 2 or len(unique) < n_folds:
        raise InputError(
            f"folds={n_folds} needs at least 2 and at most as many as there are groups to hold out,"
            f" {len(unique)}"
        )
    rows: dict[str, list[int]] = {label: [] for label in unique}
    for i, label in enumerate(labels):
        rows[str(label)].append(i)
    # largest group first, each into the smallest fold so far; ties are broken by the shuffle
    order = at_rows(unique, numpy_rng(seed, "folds", name).permutation(len(unique)))
    order.sort(key=lambda label: -len(rows[label]))
    folds: list[list[int]] = [[] for _ in range(n_folds)]
    for label in order:
        min(folds, key=len).extend(rows[label])
    return [np.array(sorted(fold), dtype=np.int64) for fold in folds]


@dataclass(frozen=True)
class OuterFold:
    """Test rows of one outer fold, its training rows, and which repeat it belongs to."""

    repeat: int
    test: Rows
    train: Rows


def outer_folds(
    labels: Sequence[object], n_folds: Count, repeats: int, seed: int
) -> list[OuterFold]:
    """Repeated folds that keep labels together; `"all"` holds each label out alone, once."""
    rows = np.arange(len(labels))
    if n_folds == "all":
        n_folds, repeats = len({str(label) for label in labels}), 1
    folds = []
    for repeat in range(repeats):
        for test in grouped_folds(labels, n_folds, seed, f"outer {repeat}"):
            folds.append(OuterFold(repeat, test, np.setdiff1d(rows, test)))
    return folds


def inner_pairs(
    labels: Sequence[object], fold: OuterFold, number: int, n_folds: int, seed: int
) -> list[Fold]:
    """(rows to fit, held-out rows) inside the training rows of an outer fold.

    Labels stay together here too. Rows to fit come in the order of the other held-out sets, so that
    those sets laid one after the other hold them in two runs.
    """
    training_labels = at_rows(labels, fold.train)
    count = min(n_folds, len(set(map(str, training_labels))))
    parts = grouped_folds(training_labels, count, seed, f"inner {number}")
    held_out = [fold.train[rows] for rows in parts]
    pairs = []
    for k in range(count):
        fit = np.concatenate([*held_out[:k], *held_out[k + 1 :]])
        pairs.append((fit, held_out[k]))
    return pairs


@dataclass(frozen=True)
class NestedFolds:
    """Outer folds, and how the training rows of each are cut again, to choose on.

    Args:
        labels: one per row; rows with one label share every fold.
        outer: the folds whose test rows are predicted.
        inner_folds: most inner folds; fewer where the training rows have fewer labels.
        seed: of the inner cuts and of estimators that draw random numbers.
    """

    labels: Sequence[object]
    outer: Sequence[OuterFold]
    inner_folds: int
    seed: int

    def inner(self, choices: int) -> list[list[Fold]]:
        """Inner folds of each outer one; none where there is nothing to choose among."""
        if choices <= 1:
            return [[] for _ in self.outer]
        cuts = []
        for number, fold in enumerate(self.outer):
            cuts.append(inner_pairs(self.labels, fold, number, self.inner_folds, self.seed))
        return cuts


@dataclass(frozen=True)
class NestedPredictions:
    """Out-of-fold predictions of one list of candidates under nested selection.

    Args:
        nested: (repeat, row, target), candidate and setting chosen on inner folds of the training
            rows; NaN where a row is in no test fold.
        by_candidate: (repeat, candidate, row, target), only the setting chosen so; of the first
            `keep` targets.
        squared: (candidate, target): squared errors of those, over all targets, rows and repeats.
        candidates: names, in the given order.
        choices: (fold, target, 2): number of the chosen candidate, and of its setting.
    """

    nested: Array
    by_candidate: Array
    squared: Array
    candidates: tuple[str, ...]
    choices: NDArray[np.int64]

    def names(self, target: int = 0) -> tuple[str, ...]:
        """Name of the candidate that one target chose in each outer fold."""
        return tuple(self.candidates[number] for number in self.choices[:, target, 0])

    @property
    def chosen(self) -> tuple[str, ...]:
        """Name of the candidate that the first target chose in each outer fold."""
        return self.names(0)


class _BestSoFar:
    """Predictions of the best candidate so far, of each outer fold and target."""

    def __init__(
        self,
        candidates: Sequence[Features],
        targets: Array,
        folds: Sequence[OuterFold],
        keep: int | None,
    ):
        n, n_targets = targets.shape
        repeats = 1 + max(fold.repeat for fold in folds)
        self._targets, self._folds = targets, folds
        self._names = tuple(features.name for features in candidates)
        self._keep = n_targets if keep is None else min(keep, n_targets)
        self._least = np.full((len(folds), n_targets), np.inf)
        self._choices = np.zeros((len(folds), n_targets, 2), dtype=np.int64)
        self._nested = np.full((repeats, n, n_targets), np.nan)
        self._single = np.full((repeats, len(candidates), n, self._keep), np.nan)
        self._squared = np.zeros((len(candidates), n_targets))

    def offer(
        self, number: int, candidate: int, error: Array, setting: NDArray[np.intp], predicted: Array
    ) -> None:
        """Take one candidate in one outer fold where it is better than those before.

        Args:
            error, setting: (target,) inner error, and the setting that has it.
            predicted: (test row, target).
        """
        fold = self._folds[number]
        gap = predicted - self._targets[fold.test]
        self._squared[candidate] += np.einsum("rt,rt->t", gap, gap)
        self._single[fold.repeat, candidate, fold.test] = predicted[:, : self._keep]
        better = np.flatnonzero(error < self._least[number])
        self._least[number, better] = error[better]
        self._nested[fold.repeat][np.ix_(fold.test, better)] = predicted[:, better]
        self._choices[number, better, 0] = candidate
        self._choices[number, better, 1] = setting[better]

    def result(self) -> NestedPredictions:
        return NestedPredictions(
            self._nested, self._single, self._squared, self._names, self._choices
        )


def nested_ridge(
    candidates: Sequence[Features],
    targets: Array,
    folds: NestedFolds,
    *,
    alphas: Sequence[float] = ALPHAS,
    weights: Array | None = None,
    keep: int | None = None,
) -> NestedPredictions:
    """Ridge over several feature sets, for (row, target) many targets at once.

    Target columns never see each other.

    Args:
        weights: one per row, for fitting and for choosing.
        keep: targets whose predictions by candidate are kept; all where None.
    """
    # matrices of a fold are small: threads would cost more than they give
    with threadpool_limits(1, user_api="blas"):
        inner = folds.inner(len(alphas) * len(candidates))
        best = _BestSoFar(candidates, targets, folds.outer, keep)
        training = _rows_in_inner_order(folds.outer, inner)
        pairs, orders = _reading_order(folds.outer, inner, training)
        for candidate, features in enumerate(candidates):
            matrices = features.pairs(pairs, orders)
            for number, train in enumerate(training):
                error = np.zeros((len(alphas), targets.shape[1]))
                for fit, held_out in inner[number]:
                    path = _next_path(matrices, features, weights, fit)
                    gap = path.predict(targets[fit], alphas)
                    gap -= targets[held_out]
                    error += _squared_sums(gap, weights, held_out)
                setting = error.argmin(0)
                path = _next_path(matrices, features, weights, train)
                predicted = path.predict_chosen(targets[train], alphas, setting)
                best.offer(number, candidate, error.min(0), setting, predicted)
        return best.result()


def _rows_in_inner_order(folds: Sequence[OuterFold], inner: Sequence[Sequence[Fold]]) -> list[Rows]:
    """Training rows of each outer fold, its inner held-out sets one after the other."""
    training = []
    for fold, cuts in zip(folds, inner, strict=True):
        if cuts:
            training.append(np.concatenate([held_out for _, held_out in cuts]))
        else:
            training.append(fold.train)
    return training


def _reading_order(
    folds: Sequence[OuterFold], inner: Sequence[Sequence[Fold]], training: Sequence[Rows]
) -> tuple[list[Fold], list[Rows]]:
    """Every (training, test) pair in the order in which it is read, and the order of its rows.

    Of each outer fold first the inner pairs, then the whole; they share one order of rows, which
    `MatrixFeatures.pairs` lays out once.
    """
    pairs: list[Fold] = []
    orders: list[Rows] = []
    for fold, cuts, train in zip(folds, inner, training, strict=True):
        pairs += [*cuts, (train, fold.test)]
        orders += [np.concatenate([train, fold.test])] * (len(cuts) + 1)
    return pairs, orders


def _next_path(
    matrices: Iterator[tuple[Array, Array]], features: Features, weights: Array | None, train: Rows
) -> RidgePath:
    """Ridge on the next pair of matrices."""
    train_x, test_x = next(matrices)
    row_weights = _weights_at(weights, train)
    return RidgePath(train_x, test_x, row_weights, near_centre=features.near_centre)


def _weights_at(weights: Array | None, rows: Rows) -> Array | None:
    return None if weights is None else weights[rows]


def _squared_sums(gap: Array, weights: Array | None, rows: Rows) -> Array:
    """(setting, target) squared errors from gaps (setting, row, target), weighted by row."""
    if weights is None:
        return np.asarray(np.einsum("art,art->at", gap, gap))
    return np.asarray(np.einsum("art,art,r->at", gap, gap, weights[rows]))


def generic_nested(
    candidates: Sequence[Features],
    targets: Array,
    folds: NestedFolds,
    *,
    estimator: Estimator | str,
    weights: Array | None = None,
    keep: int | None = None,
) -> NestedPredictions:
    """The same as `nested_ridge` for any estimator of scikit-learn.

    Slower, since each setting and target is fitted in every inner fold.
    """
    model = ESTIMATORS[estimator] if isinstance(estimator, str) else estimator
    n_targets = targets.shape[1]
    inner = folds.inner(len(model.settings) * len(candidates))
    best = _BestSoFar(candidates, targets, folds.outer, keep)
    every_weight = np.ones(len(targets)) if weights is None else weights

    def predictions(features: Features, train: Rows, test: Rows) -> Array:
        """(setting, test row, target)."""
        train_x, test_x = features.split(train, test)
        row_weights = _weights_at(weights, train)
        columns = []
        for t in range(n_targets):
            y = targets[train, t]
            columns.append(path_predictions(model, train_x, y, test_x, folds.seed, row_weights))
        return np.stack(columns, axis=2)

    for candidate, features in enumerate(candidates):
        for number, fold in enumerate(folds.outer):
            error = np.zeros((len(model.settings), n_targets))
            for fit, held_out in inner[number]:
                gap = predictions(features, fit, held_out) - targets[held_out]
                error += _squared_sums(gap, every_weight, held_out)
            setting = error.argmin(0)
            by_setting = predictions(features, fold.train, fold.test)
            predicted = by_setting[setting, :, np.arange(n_targets)].T
            best.offer(number, candidate, error.min(0), setting, predicted)
    return best.result()


def training_means(
    targets: Array, folds: Sequence[OuterFold], weights: Array | None = None
) -> Array:
    """(repeat, row, target): the mean of the training rows, the forecast that knows nothing."""
    repeats = 1 + max(fold.repeat for fold in folds)
    means = np.full((repeats, *targets.shape), np.nan)
    for fold in folds:
        row_weights = _weights_at(weights, fold.train)
        mean = np.average(targets[fold.train], axis=0, weights=row_weights)
        means[fold.repeat][fold.test] = mean
    return means
