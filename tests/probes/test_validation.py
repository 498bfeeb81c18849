import numpy as np
import pytest
from sklearn.linear_model import LassoCV, Ridge
from sklearn.preprocessing import StandardScaler

from emlens.foundation.errors import InputError
from emlens.probes.features import MatrixFeatures
from emlens.probes.ridge import ALPHAS
from emlens.probes.validation import generic_nested, grouped_folds, nested_ridge, outer_folds, training_means


def test_folds_partition_the_rows_and_never_part_a_group() -> None:
    labels = [f"g{i}" for i in np.random.default_rng(0).integers(0, 17, 101)]
    folds = grouped_folds(labels, 5, 0, "x")
    assert sorted(np.concatenate(folds)) == list(range(101))
    for i, fold in enumerate(folds):
        rest = {labels[r] for j, other in enumerate(folds) if j != i for r in other}
        assert not rest & {labels[r] for r in fold}
    assert max(map(len, folds)) - min(map(len, folds)) <= max(labels.count(g) for g in set(labels))
    assert any(not np.array_equal(a, b) for a, b in zip(folds, grouped_folds(labels, 5, 1, "x"), strict=True))


@pytest.mark.parametrize(("labels", "folds"), [(["a", "b"], 3), (["a", "b"], 1), (["a"] * 5, 2)])
def test_folds_that_cannot_be_made_are_refused(labels: list[str], folds: int) -> None:
    with pytest.raises(
        InputError,
        match=f"folds={folds} needs at least 2 and at most as many as there are groups to hold out, {len(set(labels))}",
    ):
        grouped_folds(labels, folds, 0, "x")


def test_nested_selection_equals_a_loop() -> None:
    rng = np.random.default_rng(1)
    labels = [f"g{i // 2}" for i in range(24)]
    cells = [MatrixFeatures(f"c{i}", rng.standard_normal((24, 6)) * (i + 1) + 5) for i in range(2)]
    y = cells[1].values[:, 0] + 0.3 * rng.standard_normal(24)
    targets = np.column_stack([y, rng.permutation(y)])
    outer = outer_folds(labels, 2, 2, 0)
    found = nested_ridge(cells, targets, labels, outer, inner_folds=2, seed=0)
    assert (
        found.nested.shape == (2, 24, 2) and np.isfinite(found.nested).all() and np.isfinite(found.by_candidate).all()
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
                        model = Ridge(alpha=alpha).fit(scaler.transform(cell.values[fit]), targets[fit, t])
                        loss += float(
                            ((model.predict(scaler.transform(cell.values[test])) - targets[test, t]) ** 2).sum()
                        )
                    losses[c, alpha] = loss
            c, alpha = min(losses, key=lambda key: losses[key])
            scaler = StandardScaler().fit(cells[c].values[fold.train])
            model = Ridge(alpha=alpha).fit(scaler.transform(cells[c].values[fold.train]), targets[fold.train, t])
            np.testing.assert_allclose(
                found.nested[fold.repeat][fold.test, t],
                model.predict(scaler.transform(cells[c].values[fold.test])),
                atol=1e-8,
            )
            if t == 0:
                assert found.chosen[number] == f"c{c}"
    np.testing.assert_allclose(
        training_means(targets, outer)[outer[0].repeat][outer[0].test[0]], targets[outer[0].train].mean(0)
    )


@pytest.mark.parametrize("estimator", ["lasso", "forest"])
def test_other_estimators_run_through_the_same_folds(estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn import ensemble

    few = ensemble.RandomForestRegressor
    monkeypatch.setattr(ensemble, "RandomForestRegressor", lambda **named: few(**{**named, "n_estimators": 10}))
    rng = np.random.default_rng(2)
    signal, noise = (
        MatrixFeatures("signal", rng.standard_normal((40, 3))),
        MatrixFeatures("noise", rng.standard_normal((40, 3))),
    )
    y = 3 * signal.values[:, :1]
    labels = [f"q{i}" for i in range(40)]
    outer = outer_folds(labels, 2, 1, 0)
    found = generic_nested([noise, signal], y, labels, outer, estimator=estimator, inner_folds=2, seed=0)
    assert set(found.chosen) == {"signal"}
    np.testing.assert_array_equal(found.nested, found.by_candidate[:, 1])
    assert np.corrcoef(found.nested[0, :, 0], y[:, 0])[0, 1] > 0.7
    if estimator == "lasso":
        fold = outer[0]
        train, test = signal.split(fold.train, fold.test)
        reference = LassoCV(cv=5, random_state=0, max_iter=20_000).fit(train, y[fold.train, 0]).predict(test)
        np.testing.assert_allclose(found.nested[0][fold.test, 0], reference)
