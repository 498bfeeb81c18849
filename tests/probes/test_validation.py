import numpy as np
import pytest
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import Ridge
from sklearn.metrics import make_scorer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from emlens.foundation.errors import InputError
from emlens.probes.estimators import ESTIMATORS, Estimator
from emlens.probes.features import MatrixFeatures
from emlens.probes.ridge import ALPHAS
from emlens.probes.validation import (
    NestedFolds,
    generic_nested,
    grouped_folds,
    inner_pairs,
    nested_ridge,
    outer_folds,
    training_means,
)


def test_folds_partition_the_rows_and_never_part_a_group() -> None:
    labels = [f"g{i}" for i in np.random.default_rng(0).integers(0, 17, 101)]
    folds = grouped_folds(labels, 5, 0, "x")
    assert sorted(np.concatenate(folds)) == list(range(101))
    for i, fold in enumerate(folds):
        rest = {labels[r] for j, other in enumerate(folds) if j != i for r in other}
        assert not rest & {labels[r] for r in fold}
    assert max(map(len, folds)) - min(map(len, folds)) <= max(labels.count(g) for g in set(labels))
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(folds, grouped_folds(labels, 5, 1, "x"), strict=True)
    )


@pytest.mark.parametrize(("labels", "folds"), [(["a", "b"], 3), (["a", "b"], 1), (["a"] * 5, 2)])
def test_folds_that_cannot_be_made_are_refused(labels: list[str], folds: int) -> None:
    with pytest.raises(
        InputError,
        match=(
            f"folds={folds} needs at least 2 and at most as many as there are groups to hold out,"
            f" {len(set(labels))}"
        ),
    ):
        grouped_folds(labels, folds, 0, "x")


def test_nested_selection_equals_a_loop() -> None:
    rng = np.random.default_rng(1)
    labels = [f"g{i // 2}" for i in range(24)]
    cells = [MatrixFeatures(f"c{i}", rng.standard_normal((24, 6)) * (i + 1) + 5) for i in range(2)]
    y = cells[1].values[:, 0] + 0.3 * rng.standard_normal(24)
    targets = np.column_stack([y, rng.permutation(y)])
    outer = outer_folds(labels, 2, 2, 0)
    found = nested_ridge(cells, targets, NestedFolds(labels, outer, 2, seed=0))
    assert (
        found.nested.shape == (2, 24, 2)
        and np.isfinite(found.nested).all()
        and np.isfinite(found.by_candidate).all()
    )
    for number, fold in enumerate(outer):
        assert not {labels[i] for i in fold.train} & {labels[i] for i in fold.test}
        inner = grouped_folds([labels[i] for i in fold.train], 2, 0, f"inner {number}")
        for t in range(2):
            losses = {}
            for c, cell in enumerate(cells):
                for alpha in ALPHAS:
                    loss = 0.0
                    for held in inner:
                        fit, test = np.delete(fold.train, held), fold.train[held]
                        scaler = StandardScaler().fit(cell.values[fit])
                        model = Ridge(alpha=alpha).fit(
                            scaler.transform(cell.values[fit]), targets[fit, t]
                        )
                        loss += float(
                            (
                                (
                                    model.predict(scaler.transform(cell.values[test]))
                                    - targets[test, t]
                                )
                                ** 2
                            ).sum()
                        )
                    losses[c, alpha] = loss
            c, alpha = min(losses, key=lambda key: losses[key])
            scaler = StandardScaler().fit(cells[c].values[fold.train])
            model = Ridge(alpha=alpha).fit(
                scaler.transform(cells[c].values[fold.train]), targets[fold.train, t]
            )
            np.testing.assert_allclose(
                found.nested[fold.repeat][fold.test, t],
                model.predict(scaler.transform(cells[c].values[fold.test])),
                atol=1e-8,
            )
            if t == 0:
                assert found.chosen[number] == f"c{c}"
    np.testing.assert_allclose(
        training_means(targets, outer)[outer[0].repeat][outer[0].test[0]],
        targets[outer[0].train].mean(0),
    )


@pytest.mark.parametrize("estimator", ["lasso", "tree"])
def test_other_estimators_run_through_the_same_folds(estimator: str) -> None:
    rng = np.random.default_rng(2)
    signal, noise = (
        MatrixFeatures(name, rng.standard_normal((40, 3))) for name in ("signal", "noise")
    )
    y = 3 * signal.values[:, :1]
    labels = [f"q{i // 2}" for i in range(40)]
    outer = outer_folds(labels, 2, 1, 0)
    folds = NestedFolds(labels, outer, 2, seed=0)
    found = generic_nested([noise, signal], y, folds, estimator=estimator)
    assert set(found.chosen) == {"signal"}
    np.testing.assert_array_equal(found.nested, found.by_candidate[:, 1])
    assert np.corrcoef(found.nested[0, :, 0], y[:, 0])[0, 1] > 0.7


@pytest.mark.parametrize("estimator", ["lasso", "tree"])
def test_settings_are_those_of_a_grid_search_with_the_same_grouped_folds(estimator: str) -> None:
    rng = np.random.default_rng(3)
    cell = MatrixFeatures("x", rng.standard_normal((60, 8)))
    y = cell.values[:, :2].sum(1) + rng.standard_normal(60)
    labels = [f"q{i // 3}" for i in range(60)]
    outer = outer_folds(labels, 3, 1, 0)
    known = ESTIMATORS[estimator]
    folds = NestedFolds(labels, outer, 3, seed=0)
    found = generic_nested([cell], y[:, None], folds, estimator=known)
    squared = make_scorer(
        lambda truth, guess: ((truth - guess) ** 2).sum(), greater_is_better=False
    )
    for number, fold in enumerate(outer):
        inner = inner_pairs(labels, fold, number, 3, 0)
        for fit, held in inner:
            # the inner folds are grouped too
            assert not {labels[i] for i in fit} & {labels[i] for i in held}
        own = [
            (np.searchsorted(fold.train, fit), np.searchsorted(fold.train, held))
            for fit, held in inner
        ]
        grid = [
            {f"{type(known.make(0)).__name__.lower()}__{k}": [v] for k, v in setting.items()}
            for setting in known.settings
        ]
        model = TransformedTargetRegressor(
            make_pipeline(StandardScaler(), known.make(0)), transformer=StandardScaler()
        )
        search = GridSearchCV(
            model,
            [{f"regressor__{k}": v for k, v in one.items()} for one in grid],
            cv=own,
            scoring=squared,
        )
        search.fit(cell.values[fold.train], y[fold.train])
        assert search.best_index_ == found.choices[number, 0, 1]
        np.testing.assert_allclose(
            found.nested[0, fold.test, 0], search.predict(cell.values[fold.test]), atol=2e-4
        )


def test_the_exact_route_and_the_generic_one_agree_with_weights() -> None:
    rng = np.random.default_rng(4)
    cells = [MatrixFeatures(f"c{i}", rng.standard_normal((30, d))) for i, d in enumerate((4, 50))]
    y = (cells[0].values[:, 0] + rng.standard_normal(30))[:, None]
    weights = rng.uniform(0.1, 3, 30)
    labels = [f"q{i}" for i in range(30)]
    outer = outer_folds(labels, 3, 1, 0)
    alphas = (0.5, 5.0, 50.0)
    folds = NestedFolds(labels, outer, 3, seed=0)
    exact = nested_ridge(cells, y, folds, alphas=alphas, weights=weights)
    ridge = Estimator("ridge", lambda seed: Ridge(), tuple({"alpha": a} for a in alphas))
    slow = generic_nested(cells, y, folds, estimator=ridge, weights=weights)
    np.testing.assert_allclose(exact.nested, slow.nested, atol=1e-9)
    np.testing.assert_allclose(exact.by_candidate, slow.by_candidate, atol=1e-9)
    np.testing.assert_allclose(exact.squared, slow.squared, rtol=1e-9)
    np.testing.assert_array_equal(exact.choices, slow.choices)
    even = nested_ridge(cells, y, folds, alphas=alphas)
    assert np.abs(even.nested - exact.nested).max() > 1e-3  # positive control: weights matter
    fold = outer[0]
    expected = np.average(y[fold.train, 0], weights=weights[fold.train])
    assert training_means(y, outer, weights)[0, fold.test[0], 0] == pytest.approx(expected)


def test_one_fixed_setting_needs_no_inner_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    cell = MatrixFeatures("x", rng.standard_normal((20, 30)))
    y, labels = rng.standard_normal((20, 1)), [f"q{i}" for i in range(20)]
    outer = outer_folds(labels, 4, 1, 0)
    monkeypatch.setattr("emlens.probes.validation.inner_pairs", None)
    found = nested_ridge([cell], y, NestedFolds(labels, outer, 3, seed=0), alphas=(1.0,))
    for fold in outer:
        reference = make_pipeline(StandardScaler(), Ridge(alpha=1.0)).fit(
            cell.values[fold.train], y[fold.train, 0]
        )
        np.testing.assert_allclose(
            found.nested[0, fold.test, 0], reference.predict(cell.values[fold.test]), atol=1e-10
        )


def test_only_the_targets_asked_for_keep_predictions_by_candidate_and_all_keep_their_errors() -> (
    None
):
    rng = np.random.default_rng(4)
    cells = [MatrixFeatures(f"c{i}", rng.standard_normal((24, 3))) for i in range(2)]
    targets = rng.standard_normal((24, 5))
    labels = [f"q{i}" for i in range(24)]
    outer = outer_folds(labels, 3, 2, 0)
    every, few = (
        nested_ridge(cells, targets, NestedFolds(labels, outer, 2, seed=0), keep=keep)
        for keep in (None, 2)
    )
    assert few.by_candidate.shape == (2, 2, 24, 2)
    np.testing.assert_array_equal(few.by_candidate, every.by_candidate[..., :2])
    np.testing.assert_allclose(
        few.squared, ((every.by_candidate - targets) ** 2).sum((0, 2)), rtol=1e-12
    )
    for number, fold in enumerate(outer):
        for t in range(5):
            chosen = every.by_candidate[fold.repeat, every.choices[number, t, 0], fold.test, t]
            np.testing.assert_array_equal(every.nested[fold.repeat, fold.test, t], chosen)
