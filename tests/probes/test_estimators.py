"""Every estimator once: it learns what it should, follows its settings, and is scikit-learn's where
scikit-learn has it.
"""

from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from emlens.foundation.errors import InputError
from emlens.probes.estimators import (
    ESTIMATORS,
    ComponentRegression,
    Estimator,
    make_estimator,
    path_predictions,
    resolve_estimator,
)


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((160, 6)) * [3, 1, 1, 1, 1, 1]
    y = 40 + 5 * x[:, 0] + rng.standard_normal(160)
    return x[:120], y[:120], x[120:], y[120:]


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_each_learns_a_strong_signal_at_some_setting_and_takes_weights(
    name: str, data: Any
) -> None:
    x, y, new, truth = data
    known = (
        ESTIMATORS[name]
        if name != "forest"
        else Estimator("forest", ESTIMATORS["forest"].make, ({"n_estimators": 20},))
    )
    found = path_predictions(known, x, y, new, seed=0)
    assert found.shape == (len(known.settings), 40)
    r2 = 1 - ((found - truth) ** 2).sum(1) / ((truth - y.mean()) ** 2).sum()
    assert r2.max() > 0.7
    half = np.where(np.arange(120) % 2, 1.0, 1e-9)
    spoilt = np.where(np.arange(120) % 2, y, 1000.0)
    weighed = path_predictions(known, x, spoilt, new, seed=0, weights=half)
    errors = ((weighed - truth) ** 2).mean(1)
    assert (
        errors.min()
        < 0.35 * truth.var()
        < ((path_predictions(known, x, spoilt, new, seed=0) - truth) ** 2).mean(1).min()
    )


def test_predictions_do_not_depend_on_the_target_s_unit(data: Any) -> None:
    x, y, new, _ = data
    for name in ("lasso", "elastic_net", "ols", "pcr"):
        one, two = (
            path_predictions(ESTIMATORS[name], x, target, new, seed=0)
            for target in (y, 1e-3 * y - 7)
        )
        np.testing.assert_allclose(1e-3 * one - 7, two, atol=1e-9)


def test_a_constant_target_is_predicted_by_itself(data: Any) -> None:
    x, _, new, _ = data
    assert (path_predictions(ESTIMATORS["tree"], x, np.full(120, 3.0), new, seed=0) == 3).all()


@pytest.mark.parametrize("d", [4, 50])
def test_component_regression_is_pca_then_least_squares(d: int) -> None:
    rng = np.random.default_rng(0)
    x, y, new = (
        rng.standard_normal((30, d)) + 2,
        rng.standard_normal(30),
        rng.standard_normal((5, d)),
    )
    reference = make_pipeline(PCA(3), LinearRegression()).fit(x, y).predict(new)
    np.testing.assert_allclose(ComponentRegression(3).fit(x, y).predict(new), reference, atol=1e-9)
    repeated = np.repeat(np.arange(30), np.arange(30) % 3 + 1)
    whole = ComponentRegression(3).fit(x[repeated], y[repeated]).predict(new)
    weights = (np.arange(30) % 3 + 1).astype(float)
    np.testing.assert_allclose(
        ComponentRegression(3).fit(x, y, weights).predict(new), whole, atol=1e-9
    )
    full = ComponentRegression(500).fit(x, y)  # no more components than the rank
    np.testing.assert_allclose(
        full.predict(new), LinearRegression().fit(x, y).predict(new), atol=1e-6
    )
    assert (
        full.get_params() == {"n_components": 500}
        and full.set_params(n_components=1).n_components == 1
    )


def test_estimators_are_those_of_scikit_learn_behind_a_scaler(data: Any) -> None:
    x, y, new, _ = data
    mine = make_estimator("ridge", alpha=5.0).fit(x, y).predict(new)
    np.testing.assert_allclose(
        mine, make_pipeline(StandardScaler(), Ridge(alpha=5.0)).fit(x, y).predict(new)
    )
    assert ESTIMATORS["ridge1"].settings == ({"alpha": 1.0},)


def test_any_regressor_is_taken_and_left_as_it_was(data: Any) -> None:
    x, y, new, _ = data
    given = Ridge(alpha=2.0)
    found = resolve_estimator(given, [{"alpha": 2.0}, {"alpha": 7.0}])
    assert found.name == "Ridge" and len(found.settings) == 2
    path_predictions(found, x, y, new, seed=0)
    assert given.alpha == 2.0 and not hasattr(given, "coef_")


@pytest.mark.parametrize(
    ("given", "settings", "message"),
    [
        (
            "svm",
            None,
            (
                "estimator 'svm' is unknown; pass one of ridge, ridge1, lasso, elastic_net, pcr,"
                " ols, forest, tree, or a regressor"
            ),
        ),
        (3, None, "estimator 'int' is not a regressor of scikit-learn"),
        (Ridge, None, "is not a regressor of scikit-learn .an instance with fit and predict"),
        ("ridge", [], "settings is empty; pass at least one mapping of parameters, or None"),
    ],
)
def test_what_is_no_estimator_is_refused(given: Any, settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_estimator(given, settings)
