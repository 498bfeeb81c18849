import numpy as np
import pytest

from emlens import EmlensError
from emlens.stats import cosine_of_means

D = 30


def sides(rng, n, cosine, strength):
    means = np.zeros((2, D))
    means[:, 0], means[1, 0], means[1, 1] = 1.0, cosine, np.sqrt(1 - cosine**2)
    return [rng.normal(size=(n, D)) + strength * mean for mean in means]


def corrected(x, y):
    lengths = [
        rows.mean(0) @ rows.mean(0) - rows.var(0, ddof=1).sum() / len(rows) for rows in (x, y)
    ]
    return x.mean(0) @ y.mean(0) / np.sqrt(lengths[0] * lengths[1])


def test_value_and_jackknife_by_a_loop():
    x, y = sides(np.random.default_rng(0), 20, 0.6, 3.0)
    y = y[:15]
    estimate = cosine_of_means(x, y)
    assert estimate.value == pytest.approx(corrected(x, y)) and estimate.n == 15
    variance = 0.0
    for deleted in (
        [corrected(np.delete(x, i, 0), y) for i in range(20)],
        [corrected(x, np.delete(y, i, 0)) for i in range(15)],
    ):
        variance += (len(deleted) - 1) * np.var(deleted)
    assert estimate.high - estimate.low == pytest.approx(2 * 2.1448 * np.sqrt(variance), rel=1e-4)


def test_noise_is_taken_out_where_the_plain_cosine_leans_to_0():
    rng = np.random.default_rng(1)
    values, plain, held = [], [], 0
    for _ in range(150):
        x, y = sides(rng, 50, 0.8, 2.0)
        estimate = cosine_of_means(x, y)
        values.append(estimate.value)
        held += estimate.low <= 0.8 <= estimate.high
        a, b = x.mean(0), y.mean(0)
        plain.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert np.mean(values) == pytest.approx(0.8, abs=0.02) and np.mean(plain) < 0.72
    assert held >= 136


def test_invariances():
    rng = np.random.default_rng(2)
    x, y = sides(rng, 12, 0.5, 4.0)
    turned = np.linalg.qr(rng.normal(size=(D, D)))[0]
    estimate, other = cosine_of_means(x, y), cosine_of_means(3 * x @ turned, 0.1 * y @ turned)
    assert (other.value, other.low) == (pytest.approx(estimate.value), pytest.approx(estimate.low))
    assert cosine_of_means(y, x).high == pytest.approx(estimate.high)


def test_where_a_mean_is_no_more_than_noise():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(10, D))
    x = x - 0.9 * x.mean(0)
    y = rng.normal(size=(10, D)) + 5
    assert cosine_of_means(x, y).method == "undefined: a mean is no longer than its sampling noise"
    one = np.array([[1.2, 0.0], [3.7, 3.1], [1.8, -3.9], [0.6, 1.9]])
    far = cosine_of_means(one, rng.normal(size=(5, 2)) * 0.01 + 1)
    assert (far.low, far.high) == (
        -1,
        1,
    ) and "without some row a mean is no longer than its noise" in far.method


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: cosine_of_means(np.ones((2, 3)), np.ones((5, 3))),
            r"x has shape \(2, 3\); pass \(row, d\) with at least 3 rows",
        ),
        (
            lambda: cosine_of_means(np.ones((4, 3)), np.ones((5, 2))),
            "x has rows of width 3 and y of width 2; pass vectors of one space",
        ),
        (
            lambda: cosine_of_means(np.ones((4, 3)) * np.nan, np.ones((5, 3))),
            "x holds values that are NaN or infinite",
        ),
        (
            lambda: cosine_of_means(np.ones((4, 3)), np.ones((5, 3)), level=95),
            "level=95 must lie strictly between",
        ),
    ],
)
def test_refusals(unchecked, call, message):
    with pytest.raises(EmlensError, match=message):
        call()
