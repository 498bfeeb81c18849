"""Planted leaks: on data that hold nothing, a leaky route scores clearly above zero, and ours stays
at zero.

Every route forecasts noise. What differs is one mistake: something was fitted on, or copied across,
the fold's border.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.feature_selection import f_regression
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import KFold

from emlens.foundation.errors import InputError
from emlens.probes import Baselines, Design, cross_validate_forecast
from emlens.probes.features import Features, MatrixFeatures
from emlens.probes.projections import FoldProjections
from emlens.probes.ridge import Array, standardise
from emlens.probes.validation import NestedFolds, nested_ridge, outer_folds, training_means

ROUTES = 8
QUICK = Design(folds=5, inner_folds=3, repeats=1, permutations=0)


def r2_of(features: Features, y: Array, alphas: tuple[float, ...] = (1.0, 100.0)) -> float:
    labels = [f"q{i}" for i in range(len(y))]
    outer = outer_folds(labels, 5, 1, 0)
    found = nested_ridge([features], y[:, None], NestedFolds(labels, outer, 3, 0), alphas=alphas)
    means = training_means(y[:, None], outer)
    return 1 - float(((found.nested[0, :, 0] - y) ** 2).sum() / ((means[0, :, 0] - y) ** 2).sum())


class OutlierScaled(MatrixFeatures):
    """The leak: columns scaled by all rows' agreement with the scores, test rows among them (a
    supervised scaler).
    """

    def __init__(self, name: str, values: Array, y: Array):
        strength = np.sqrt(f_regression(values, y)[0])
        super().__init__(name, values)
        self._whole = standardise(values, values)[0] * strength

    def split(self, train: Any, test: Any) -> tuple[Array, Array]:
        return self._whole[train], self._whole[test]

    def pairs(self, folds: Any, orders: Any) -> Any:
        return Features.pairs(self, folds, orders)


def test_a_scaler_fitted_outside_the_folds() -> None:
    leaky, ours = [], []
    for run in range(ROUTES):
        rng = np.random.default_rng(run)
        x, y = rng.standard_normal((60, 200)), rng.standard_normal(60)
        leaky.append(r2_of(OutlierScaled("x", x, y), y))
        ours.append(r2_of(MatrixFeatures("x", x), y))
    assert np.mean(leaky) > 0.1 and np.mean(ours) < 0.02, (np.mean(leaky), np.mean(ours))


def test_components_fitted_outside_the_folds() -> None:
    """Components of features and scores together, taken over all rows, against those of each fold's
    training rows.
    """
    leaky, ours = [], []
    for run in range(ROUTES):
        rng = np.random.default_rng(run)
        x, y = rng.standard_normal((60, 40)), rng.standard_normal(60)
        both = PCA(40).fit(np.c_[x, 6 * y])
        # the first component points along the scores
        inside = np.c_[x, np.zeros(60)] @ both.components_[:5].T
        whole = LinearRegression()
        predicted = np.empty(60)
        for train, test in KFold(5).split(x):
            predicted[test] = whole.fit(inside[train], y[train]).predict(inside[test])
        leaky.append(1 - ((predicted - y) ** 2).sum() / ((y - y.mean()) ** 2).sum())
        ours.append(r2_of(FoldProjections("x", x, 5, "signed"), y))
    assert np.mean(leaky) > 0.05 and np.mean(ours) < 0.02, (np.mean(leaky), np.mean(ours))


def twins(make: Any, run: int, d: int = 150) -> tuple[Any, dict[str, float], dict[str, str]]:
    """Thirty questions under two ids each, with noise for scores."""
    rng = np.random.default_rng(run)
    x, y = np.repeat(rng.standard_normal((30, d)), 2, axis=0), np.repeat(rng.uniform(0, 100, 30), 2)
    acts = make(x, ids=[f"{'ab'[i % 2]}{i // 2}" for i in range(60)])
    return (
        acts,
        dict(zip(acts.ids, y.tolist(), strict=True)),
        {q: f"Question  number {q[1:]}?" for q in acts.ids},
    )


def test_a_question_that_stands_twice(make: Any) -> None:
    leaky, ours = [], []
    for run in range(2):
        acts, scores, texts = twins(make, run)
        allowed = replace(QUICK, duplicates="allow")
        leaky.append(cross_validate_forecast(acts, scores, design=allowed).r2.value)
        for given in (None, texts):
            grouped = cross_validate_forecast(
                acts,
                scores,
                design=replace(QUICK, duplicates="group"),
                baselines=Baselines(texts=given),
            )
            ours.append(grouped.r2.value)
            assert grouped.r2.n == 30
    assert np.mean(leaky) > 0.5 and np.mean(ours) < 0.1, (leaky, ours)


def test_a_question_that_stands_twice_is_refused_by_text_or_by_activations(make: Any) -> None:
    acts, scores, texts = twins(make, 0)
    with pytest.raises(
        InputError,
        match=(
            "rows 'a0' and 'b0' have the same activations, so one would be forecast from the other;"
            " drop one, or pass"
        ),
    ):
        cross_validate_forecast(acts, scores, design=QUICK)
    noisy = make(
        acts["resid_post.0"].numpy() + 1e-9 * np.random.default_rng(0).standard_normal((60, 150)),
        ids=acts.ids,
    )
    assert (
        cross_validate_forecast(noisy, scores, design=QUICK).r2.value > 0.5
    )  # unseen without the texts
    shouted = {q: text.upper() if q[0] == "b" else text for q, text in texts.items()}
    with pytest.raises(InputError, match="rows 'a0' and 'b0' have the same text"):
        cross_validate_forecast(noisy, scores, design=QUICK, baselines=Baselines(texts=shouted))
    held_together = [q[1:] for q in acts.ids]
    # one label: nothing parts them
    grouped = cross_validate_forecast(acts, scores, design=replace(QUICK, groups=held_together))
    assert grouped.r2.value < 0.1


def test_tokens_of_one_text_on_both_sides(make: Any) -> None:
    """Rows are tokens: split by row they share their text's offset, split by text they do not."""
    leaky, ours = [], []
    for run in range(2):
        rng = np.random.default_rng(run)
        offset, y = (
            np.repeat(rng.standard_normal((40, 60)), 3, axis=0),
            np.repeat(rng.uniform(0, 100, 40), 3),
        )
        acts = make(
            offset + 0.3 * rng.standard_normal((120, 60)), ids=[f"t{i}" for i in range(120)]
        )
        scores = dict(zip(acts.ids, y.tolist(), strict=True))
        leaky.append(cross_validate_forecast(acts, scores, design=QUICK).r2.value)
        ours.append(
            cross_validate_forecast(
                acts, scores, design=replace(QUICK, groups=[f"text {i // 3}" for i in range(120)])
            ).r2.value
        )
    assert np.mean(leaky) > 0.5 and np.mean(ours) < 0.1, (leaky, ours)
