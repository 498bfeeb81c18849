import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from emlens.probes.ridge import ALPHAS, ridge_path, ridge_weights, standardise


@pytest.mark.parametrize(("n", "d"), [(60, 7), (20, 50), (30, 30)])
def test_predictions_equal_scikit_learn_for_every_penalty_and_target(n: int, d: int) -> None:
    rng = np.random.default_rng(n)
    train, test, targets = (
        rng.standard_normal((n, d)) + 3,
        rng.standard_normal((9, d)) + 3,
        rng.standard_normal((n, 4)) + 10,
    )
    found = ridge_path(train, test, targets)
    assert found.shape == (len(ALPHAS), 9, 4)
    for a, alpha in enumerate(ALPHAS):
        np.testing.assert_allclose(found[a], Ridge(alpha=alpha).fit(train, targets).predict(test), atol=1e-8)
        reference = Ridge(alpha=alpha).fit(train, targets[:, 1])
        weights, intercept = ridge_weights(train, targets[:, 1], alpha)
        np.testing.assert_allclose(weights, reference.coef_, atol=1e-8)
        assert intercept == pytest.approx(reference.intercept_, abs=1e-8)


def test_targets_do_not_see_each_other() -> None:
    rng = np.random.default_rng(0)
    train, test, targets = rng.standard_normal((20, 5)), rng.standard_normal((6, 5)), rng.standard_normal((20, 3))
    alone = np.concatenate([ridge_path(train, test, targets[:, [i]]) for i in range(3)], axis=2)
    np.testing.assert_allclose(ridge_path(train, test, targets), alone, atol=1e-12)


def test_scaling_is_that_of_the_training_rows() -> None:
    rng = np.random.default_rng(0)
    train, test = rng.standard_normal((20, 4)) * [1, 5, 100, 0.01] + 7, rng.standard_normal((8, 4))
    scaler = StandardScaler().fit(train)
    a, b = standardise(train, test)
    np.testing.assert_allclose(a, scaler.transform(train), atol=1e-10)
    np.testing.assert_allclose(b, scaler.transform(test), atol=1e-8)


def test_a_constant_column_becomes_zero_also_where_the_test_rows_differ() -> None:
    a, b = standardise(np.full((5, 2), 3.0), np.array([[3.0, 4.0]]))
    assert not a.any() and not b.any()
