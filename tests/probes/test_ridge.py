import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from emlens.probes.features import MatrixFeatures
from emlens.probes.ridge import ALPHAS, RidgePath, ridge_path, ridge_weights, standardise


@pytest.mark.parametrize(("n", "d"), [(60, 7), (20, 50), (30, 30)])
@pytest.mark.parametrize("targets", [1, 4])
def test_predictions_equal_scikit_learn_for_every_penalty_and_target(
    n: int, d: int, targets: int
) -> None:
    rng = np.random.default_rng(n)
    train, test = rng.standard_normal((n, d)) + 3, rng.standard_normal((9, d)) + 3
    y = rng.standard_normal((n, targets)) + 10
    for alphas in (ALPHAS, (1.0,)):  # many columns go through the operators, few through the duals
        found = ridge_path(train, test, y, alphas)
        assert found.shape == (len(alphas), 9, targets)
        for a, alpha in enumerate(alphas):
            np.testing.assert_allclose(
                found[a], Ridge(alpha=alpha).fit(train, y).predict(test).reshape(9, -1), atol=1e-8
            )
            reference = Ridge(alpha=alpha).fit(train, y[:, 0])
            weights, intercept = ridge_weights(train, y[:, 0], alpha)
            np.testing.assert_allclose(weights, reference.coef_, atol=1e-8)
            assert intercept == pytest.approx(reference.intercept_, abs=1e-8)


@pytest.mark.parametrize("shape", [(1, 3), (2, 5), (5, 1), (2, 1), (3, 3)])
def test_the_smallest_problems_are_solved_too(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    train, test, y = (
        rng.standard_normal(shape),
        rng.standard_normal((4, shape[1])),
        rng.standard_normal((shape[0], 1)),
    )
    for alphas in (ALPHAS, (0.5, 2.0)):
        expected = [Ridge(alpha=a).fit(train, y).predict(test).reshape(4, 1) for a in alphas]
        np.testing.assert_allclose(ridge_path(train, test, y, alphas), expected, atol=1e-10)


@pytest.mark.parametrize("near_centre", [False, True])
@pytest.mark.parametrize("d", [4, 60])
@pytest.mark.parametrize("targets", [1, 30])
def test_weights_and_columns_off_their_centre_are_scikit_learns(
    near_centre: bool, d: int, targets: int
) -> None:
    rng = np.random.default_rng(1)
    train, test, y = (
        rng.standard_normal((25, d)) + 0.3,
        rng.standard_normal((6, d)),
        rng.standard_normal((25, targets)) + 5,
    )
    weights = rng.uniform(0.2, 4, 25)
    for w in (None, weights):
        path = RidgePath(train, test, w, near_centre=near_centre)
        for a, alpha in enumerate((0.3, 30.0)):
            expected = (
                Ridge(alpha=alpha).fit(train, y, sample_weight=w).predict(test).reshape(6, -1)
            )
            np.testing.assert_allclose(path.predict(y, (0.3, 30.0))[a], expected, atol=1e-9)
            np.testing.assert_allclose(path.operators((0.3, 30.0))[a] @ y, expected, atol=1e-9)


def test_a_penalty_below_rounding_is_raised_to_it_and_nothing_breaks() -> None:
    rng = np.random.default_rng(0)
    train = np.repeat(rng.standard_normal((10, 4)), 2, axis=0) * 1e6  # of rank 4 in 20 rows
    y = rng.standard_normal((20, 1))
    found = RidgePath(np.hstack([train] * 6), np.hstack([train[:3]] * 6)).predict(y, (1e-300,))
    reference = np.linalg.lstsq(np.c_[np.ones(20), train], y, rcond=None)[0]
    # what rounding of 1e14 leaves
    np.testing.assert_allclose(found[0], np.c_[np.ones(3), train[:3]] @ reference, atol=0.05)


def test_each_target_is_predicted_with_its_own_penalty() -> None:
    rng = np.random.default_rng(0)
    path = RidgePath(rng.standard_normal((20, 5)), rng.standard_normal((6, 5)))
    y, chosen = rng.standard_normal((20, 7)), np.array([0, 2, 2, 1, 0, 2, 1])
    every = path.predict(y, (0.1, 1.0, 10.0))
    found = path.predict_chosen(y, (0.1, 1.0, 10.0), chosen)
    np.testing.assert_allclose(found, every[chosen, :, np.arange(7)].T, atol=1e-12)


def test_targets_do_not_see_each_other() -> None:
    rng = np.random.default_rng(0)
    train, test, targets = (
        rng.standard_normal((20, 5)),
        rng.standard_normal((6, 5)),
        rng.standard_normal((20, 3)),
    )
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


def test_scaling_all_folds_at_once_is_scaling_each() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((30, 40)) * 10.0 ** rng.integers(-3, 4, 40) + 10.0 ** rng.integers(
        -3, 4, 40
    )
    values[:, 0] = 7.0  # constant everywhere
    values[:, 1] = 0.0
    values[4, 1] = 5.0  # constant in the folds without row 4
    values[5, 2] = 1e9  # one row rules the spread of all
    features = MatrixFeatures("x", values)
    order = rng.permutation(30)
    folds = [
        (order[8:], order[:8]),
        (np.r_[order[:3], order[10:]], order[3:10]),
        (np.sort(order[5:]), np.sort(order[:5])),
    ]
    orders = [order, order, np.arange(30)]
    count = 0
    for (train, test), (a, b) in zip(folds, features.pairs(folds, orders), strict=True):
        expected = features.split(train, test)
        for found, wanted in zip((a - a.mean(0), b - a.mean(0)), expected, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-8, rtol=1e-8)
        # near enough to the centre to be eliminated in the solve
        assert np.abs(a.mean(0)).max() < 1
        count += 1
    assert count == 3
