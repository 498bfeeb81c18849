"""Folds and nested selection: nothing is fitted, scaled or chosen on a row that it is then tested
on.

Inner folds keep together what outer folds keep together. Feature set and setting are chosen by the
squared error summed over inner folds; each target column chooses for itself, so permuted targets
repeat the whole procedure. Cost of ridge: one Gram matrix and one tridiagonalisation a feature set
and fold, whatever the number of penalties, and 2 · penalties · test rows · training rows operations
a target.
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
from emlens.probes.features import Features, Fold, Rows
from emlens.probes.ridge import ALPHAS, Array, RidgePath

Count = int | Literal["all"]


def grouped_folds(labels: Sequence[object], n_folds: int, seed: int, name: str) -> list[Rows]:
    """Test rows of each fold; rows with one label stay together, fold sizes as even as that allows.

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


def outer_folds(
    labels: Sequence[object], n_folds: Count, repeats: int, seed: int
) -> list[OuterFold]:
    """Repeated folds that keep labels together; `"all"` holds each label out alone, once."""
    everything, units = np.arange(len(labels)), len({str(label) for label in labels})
    repeats, n_folds = (1, units) if n_folds == "all" else (repeats, n_folds)
    return [
        OuterFold(repeat, test, np.setdiff1d(everything, test))
        for repeat in range(repeats)
        for test in grouped_folds(labels, n_folds, seed, f"outer {repeat}")
    ]


def inner_pairs(
    labels: Sequence[object], fold: OuterFold, number: int, n_folds: int, seed: int
) -> list[Fold]:
    """(fit, held-out) rows inside the training rows of an outer fold; labels stay together here
    too.

    Rows to fit come in the order of the other held-out sets, so that those sets laid one after the
    other hold them in two runs.
    """
    own = [labels[i] for i in fold.train]
    count = min(n_folds, len(set(map(str, own))))
    held = [fold.train[rows] for rows in grouped_folds(own, count, seed, f"inner {number}")]
    return [(np.concatenate([*held[:k], *held[k + 1 :]]), held[k]) for k in range(count)]


@dataclass(frozen=True)
class NestedPredictions:
    """Out-of-fold predictions of one candidate list under nested selection.

    Args:
        nested: (repeat, row, target), candidate and setting chosen on inner folds of the training
            rows; NaN where a row is in no test fold.
        by_candidate: (repeat, candidate, row, target), only the setting chosen so; of the first
            `kept` targets.
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
        return self.names(0)


class _Best:
    """Predictions of the best candidate so far, of each outer fold and target."""

    def __init__(
        self,
        candidates: Sequence[Features],
        targets: Array,
        folds: Sequence[OuterFold],
        kept: int | None,
    ):
        n, t = targets.shape
        repeats = 1 + max(fold.repeat for fold in folds)
        self._targets, self._folds, self._names = (
            targets,
            folds,
            tuple(features.name for features in candidates),
        )
        self._kept = t if kept is None else min(kept, t)
        self._least = np.full((len(folds), t), np.inf)
        self._choices = np.zeros((len(folds), t, 2), dtype=np.int64)
        self._nested = np.full((repeats, n, t), np.nan)
        self._single = np.full((repeats, len(candidates), n, self._kept), np.nan)
        self._squared = np.zeros((len(candidates), t))

    def offer(
        self, number: int, candidate: int, error: Array, setting: NDArray[np.intp], predicted: Array
    ) -> None:
        """One candidate in one outer fold: inner error and chosen setting (target), predictions
        (test row, target).
        """
        fold = self._folds[number]
        gap = predicted - self._targets[fold.test]
        self._squared[candidate] += np.einsum("rt,rt->t", gap, gap)
        self._single[fold.repeat, candidate, fold.test] = predicted[:, : self._kept]
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
    labels: Sequence[object],
    folds: Sequence[OuterFold],
    *,
    inner_folds: int,
    seed: int,
    alphas: Sequence[float] = ALPHAS,
    weights: Array | None = None,
    kept: int | None = None,
) -> NestedPredictions:
    """Ridge over several feature sets, for (row, target) many targets at once; target columns never
    see each other.

    Args:
        weights: one a row, for fitting and for choosing.
        kept: targets whose predictions by candidate are kept; all where None.
    """
    # matrices of a fold are small: threads would cost more than they give
    with threadpool_limits(1, user_api="blas"):
        inner = _inner(labels, folds, inner_folds, seed, len(alphas) * len(candidates))
        best = _Best(candidates, targets, folds, kept)
        whole = [
            np.concatenate([held for _, held in own]) if own else fold.train
            for fold, own in zip(folds, inner, strict=True)
        ]
        pairs, orders = [], []
        for fold, own, train in zip(folds, inner, whole, strict=True):
            pairs += [*own, (train, fold.test)]
            orders += [np.concatenate([train, fold.test])] * (len(own) + 1)
        for c, features in enumerate(candidates):
            matrices = features.pairs(pairs, orders)
            for number, (own, train) in enumerate(zip(inner, whole, strict=True)):
                error = np.zeros((len(alphas), targets.shape[1]))
                for fit, held in own:
                    path = _path(features, matrices, weights, fit)
                    gap = path.predict(targets[fit], alphas)
                    gap -= targets[held]
                    error += (
                        np.einsum("art,art->at", gap, gap)
                        if weights is None
                        else np.einsum("art,art,r->at", gap, gap, weights[held])
                    )
                setting = error.argmin(0)
                predicted = _path(features, matrices, weights, train).predict_chosen(
                    targets[train], alphas, setting
                )
                best.offer(number, c, error.min(0), setting, predicted)
        return best.result()


def generic_nested(
    candidates: Sequence[Features],
    targets: Array,
    labels: Sequence[object],
    folds: Sequence[OuterFold],
    *,
    estimator: Estimator | str,
    inner_folds: int,
    seed: int,
    weights: Array | None = None,
    kept: int | None = None,
) -> NestedPredictions:
    """The same for any estimator of scikit-learn; slower, since each setting and target is fitted
    in every inner fold.
    """
    chosen = ESTIMATORS[estimator] if isinstance(estimator, str) else estimator
    inner = _inner(labels, folds, inner_folds, seed, len(chosen.settings) * len(candidates))
    best = _Best(candidates, targets, folds, kept)
    n_targets = targets.shape[1]

    def predictions(features: Features, train: Rows, test: Rows) -> Array:
        """(setting, test row, target)."""
        a, b = features.split(train, test)
        w = None if weights is None else weights[train]
        return np.stack(
            [path_predictions(chosen, a, targets[train, t], b, seed, w) for t in range(n_targets)],
            axis=2,
        )

    for c, features in enumerate(candidates):
        for number, (fold, own) in enumerate(zip(folds, inner, strict=True)):
            error = np.zeros((len(chosen.settings), n_targets))
            for fit, held in own:
                gap = predictions(features, fit, held) - targets[held]
                error += np.einsum(
                    "srt,srt,r->st",
                    gap,
                    gap,
                    np.ones(len(held)) if weights is None else weights[held],
                )
            setting = error.argmin(0)
            every = predictions(features, fold.train, fold.test)
            best.offer(number, c, error.min(0), setting, every[setting, :, np.arange(n_targets)].T)
    return best.result()


def _inner(
    labels: Sequence[object], folds: Sequence[OuterFold], n_folds: int, seed: int, choices: int
) -> list[list[Fold]]:
    """Inner folds of each outer one; none where there is nothing to choose."""
    return [
        inner_pairs(labels, fold, number, n_folds, seed) if choices > 1 else []
        for number, fold in enumerate(folds)
    ]


def _path(
    features: Features, matrices: Iterator[tuple[Array, Array]], weights: Array | None, train: Rows
) -> RidgePath:
    a, b = next(matrices)
    return RidgePath(
        a, b, None if weights is None else weights[train], near_centre=features.near_centre
    )


def training_means(
    targets: Array, folds: Sequence[OuterFold], weights: Array | None = None
) -> Array:
    """(repeat, row, target): the mean of the training rows, the forecast that knows nothing."""
    repeats = 1 + max(fold.repeat for fold in folds)
    means = np.full((repeats, *targets.shape), np.nan)
    for fold in folds:
        means[fold.repeat][fold.test] = np.average(
            targets[fold.train], axis=0, weights=None if weights is None else weights[fold.train]
        )
    return means
