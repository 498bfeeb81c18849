import math

import numpy as np
import pytest
from scipy.special import gammaln, hyp1f1
from sklearn.linear_model import LogisticRegression

from emlens.foundation import InputError
from emlens.geometry.recovery import (
    expected_component_cosine,
    expected_logistic_cosine,
    expected_mean_cosine,
    expected_whitened_cosine,
    gaussian_cosine,
)


def power_law(d: int) -> np.ndarray:
    return 1 / np.arange(1, d + 1) ** 0.5


def shift_of(d: int, length: float, seed: int = 0) -> np.ndarray:
    u = np.random.default_rng(seed).standard_normal(d)
    return length * u / np.linalg.norm(u)


@pytest.mark.parametrize("d", [2, 64, 1000])
def test_isotropic_means_agree_with_the_projected_normal(d):
    kappa = 2 / math.sqrt(0.1)
    exact = (
        math.exp(gammaln((d + 1) / 2) - gammaln(d / 2 + 1))
        * kappa
        / math.sqrt(2)
        * hyp1f1(0.5, d / 2 + 1, -(kappa**2) / 2)
    )
    assert expected_mean_cosine(shift_of(d, 2.0), np.ones(d), 10) == pytest.approx(exact, abs=1e-8)


def test_limits_of_the_mean():
    shift, tau = shift_of(30, 1.0), power_law(30)
    assert expected_mean_cosine(shift, tau, 1e12, 1e12) == pytest.approx(1, abs=1e-9)
    assert expected_mean_cosine(1e-9 * shift, tau, 1) == pytest.approx(0, abs=1e-7)
    two, one = expected_mean_cosine(shift, tau, 40, 40), expected_mean_cosine(shift, tau, 20)
    assert two == pytest.approx(one) and expected_mean_cosine(
        7 * shift, 49 * tau, 20
    ) == pytest.approx(one)
    assert gaussian_cosine([1, 0], [1, 1], [1e-9, 1e-9]) == pytest.approx(math.sqrt(0.5), abs=1e-6)


def test_components_agree_with_the_spiked_model():
    for theta in (0.5, 1.5, 2.0, 4.0):
        d, n = 500, 300
        gamma = d / n
        expected = math.sqrt(max(0.0, (1 - gamma / theta**4) / (1 + gamma / theta**2)))
        assert expected_component_cosine(shift_of(d, theta), np.ones(d), n) == pytest.approx(
            expected, abs=1e-6
        )
    tau, shift = power_law(40), shift_of(40, 1.0)
    _, vectors = np.linalg.eigh(np.diag(tau) + np.outer(shift, shift))
    assert expected_component_cosine(shift, tau, 10**9) == pytest.approx(
        abs(vectors[:, -1] @ shift), abs=1e-4
    )
    assert expected_component_cosine(0.1 * shift, tau, 10) == 0.0


def test_every_extractor_against_simulation():
    d, n, draws = 80, 60, 40
    tau, shift = power_law(d), shift_of(d, 2.0)
    unit = shift / 2.0
    rng = np.random.default_rng(1)
    result: dict[str, list[float]] = {"mean": [], "component": [], "whitened": [], "logistic": []}

    def cosine(v: np.ndarray) -> float:
        return float(v @ unit / np.linalg.norm(v))

    for _ in range(draws):
        up, down = (rng.standard_normal((n // 2, d)) * np.sqrt(tau) + m for m in (shift, 0 * shift))
        deltas = rng.standard_normal((n, d)) * np.sqrt(tau) + shift
        difference = up.mean(0) - down.mean(0)
        centred = np.concatenate([up - up.mean(0), down - down.mean(0)])
        result["mean"].append(cosine(difference))
        result["component"].append(abs(cosine(np.linalg.svd(deltas, full_matrices=False)[2][0])))
        result["whitened"].append(
            cosine(np.linalg.solve(centred.T @ centred / (n - 2) + 0.1 * np.eye(d), difference))
        )
        fit = LogisticRegression(C=1.0, tol=1e-8, max_iter=2000).fit(
            np.concatenate([up, down]), np.repeat([1, -1], n // 2)
        )
        result["logistic"].append(cosine(fit.coef_[0]))
    theory = {
        "mean": expected_mean_cosine(shift, tau, n / 2, n / 2),
        "component": expected_component_cosine(shift, tau, n),
        "whitened": expected_whitened_cosine(shift, tau, n // 2, n // 2, ridge=0.1),
        "logistic": expected_logistic_cosine(shift, tau, n, 1.0),
    }
    for name, expected in theory.items():
        error = np.std(result[name]) / math.sqrt(draws)
        assert np.mean(result[name]) == pytest.approx(expected, abs=3 * error + 0.01 * expected), (
            name
        )
    # the four theories differ, so one cannot pass for another
    assert len({round(x, 3) for x in theory.values()}) == 4


def test_whitening_in_many_dimensions_leaves_little_to_chance():
    """Large enough for one percent to be seen: squares of the resolvent follow from its slope, and
    a wrong slope shows.
    """
    d, n, ridge = 400, 400, 0.05
    tau, shift = power_law(d), shift_of(d, 2.0)
    rng = np.random.default_rng(1)
    values = []
    for _ in range(8):
        up, down = (rng.standard_normal((n // 2, d)) * np.sqrt(tau) + m for m in (shift, 0 * shift))
        centred = np.concatenate([up - up.mean(0), down - down.mean(0)])
        v = np.linalg.solve(
            centred.T @ centred / (n - 2) + ridge * np.eye(d), up.mean(0) - down.mean(0)
        )
        values.append(v @ shift / 2.0 / np.linalg.norm(v))
    assert np.mean(values) == pytest.approx(
        expected_whitened_cosine(shift, tau, n // 2, n // 2, ridge=ridge), abs=0.01
    )


def test_the_limits_of_strong_penalties_are_the_mean():
    shift, tau = shift_of(50, 1.5), power_law(50)
    mean = expected_mean_cosine(shift, tau, 40, 40)
    assert expected_whitened_cosine(shift, tau, 40, 40, ridge=1e7) == pytest.approx(mean, rel=5e-3)
    assert expected_whitened_cosine(shift, tau, 40, 40, ridge=math.inf) == mean
    assert expected_logistic_cosine(shift, tau, 80, 1e7) == pytest.approx(mean, rel=5e-3)
    assert expected_logistic_cosine(shift, tau, 80, 1e-1) < mean - 0.05


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: expected_mean_cosine([0.0], [1.0], 3),
            "shift must not be zero, and variances must be 0 or more",
        ),
        (
            lambda: expected_mean_cosine([1.0], [-1.0], 3),
            "shift must not be zero, and variances must be 0 or more",
        ),
        (
            lambda: expected_mean_cosine([1.0], [1.0], 0),
            "n_positive=0 and n_negative=inf must be 1 or more",
        ),
        (
            lambda: expected_mean_cosine([1.0, 2.0], [1.0], 3),
            "shift has 2 values and variances has 1",
        ),
        (lambda: expected_whitened_cosine([1.0], [1.0], 3, 3, ridge=0), "ridge=0 must be positive"),
        (
            lambda: expected_logistic_cosine([1.0], [1.0], 9, 0),
            "penalty=0 must be positive and n=9 at least 2",
        ),
    ],
)
def test_refusals(unchecked, call, message):
    with pytest.raises(InputError, match=message):
        call()
