import math

import numpy as np
import pytest
import scipy.linalg
import torch

from emlens import EmlensError
from emlens.geometry import linear_cka, mean_shift_cosine, procrustes_distance
from emlens.geometry.similarity import mean_pairwise_cosine

TIGHT = 1e-12


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, Y = rows(15, 6) + 1, 0.5 * rows(15, 6) + rows(15, 6, seed=1)


def hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Song et al. (2012), equation 5, term by term."""
    n = len(k)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    one = np.ones(n)
    total = (
        np.trace(k @ m)
        + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (one @ k @ m @ one)
    )
    return float(total / (n * (n - 3)))


def test_cosines_agree_with_loops():
    a, b = X.mean(0), Y.mean(0)
    assert float(mean_shift_cosine(X, Y[:7])) == pytest.approx(
        float(torch.nn.functional.cosine_similarity(a, Y[:7].mean(0), dim=0))
    )
    assert float(mean_shift_cosine(X, Y)) == pytest.approx(float(a @ b / a.norm() / b.norm()))
    pairs = [float(torch.nn.functional.cosine_similarity(x, y, dim=0)) for x in X for y in Y[:7]]
    assert float(mean_pairwise_cosine(X, Y[:7])) == pytest.approx(sum(pairs) / len(pairs))
    own = [
        float(torch.nn.functional.cosine_similarity(X[i], X[j], dim=0))
        for i in range(15)
        for j in range(15)
        if i != j
    ]
    assert float(mean_pairwise_cosine(X)) == pytest.approx(sum(own) / len(own))


def test_cosines_at_their_ends():
    assert float(mean_shift_cosine(X, -3 * X)) == pytest.approx(-1)
    assert float(mean_pairwise_cosine(X[:1].expand(5, 6))) == pytest.approx(1)
    assert float(mean_pairwise_cosine(torch.tensor([[1.0, 0], [-1, 0]]))) == pytest.approx(-1)
    simplex = torch.eye(4, dtype=torch.float64) - 0.25
    assert float(mean_pairwise_cosine(simplex)) == pytest.approx(-1 / 3)
    assert (
        abs(float(mean_pairwise_cosine(rows(400, 300), rows(400, 300, seed=5))))
        < 5 / math.sqrt(300) / 400**0.5
    )
    long = torch.cat([X, 1e6 * X[:1]])  # one long shift takes the mean and counts as one pair
    assert float(mean_shift_cosine(long, X[:1])) == pytest.approx(1, abs=1e-4)
    assert float(mean_pairwise_cosine(long, X[:1])) < 0.9


def test_alignment_agrees_with_its_definition():
    for other in (Y, Y[:, :2]):
        k, m = (X @ X.T).numpy(), (other @ other.T).numpy()
        assert float(linear_cka(X, other)) == pytest.approx(
            hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m)), abs=TIGHT
        )
    x, y = X - X.mean(0), Y - Y.mean(0)
    plain = (
        torch.linalg.matrix_norm(y.T @ x) ** 2
        / torch.linalg.matrix_norm(x.T @ x)
        / torch.linalg.matrix_norm(y.T @ y)
    )
    assert float(linear_cka(X, Y, debiased=False)) == pytest.approx(float(plain), abs=TIGHT)
    assert float(linear_cka(X, X @ rows(6, 6, seed=3))) < 1 - 1e-3
    assert float(linear_cka(X, X)) == pytest.approx(1) and float(
        linear_cka(X, X, debiased=False)
    ) == pytest.approx(1)


def test_debiased_alignment_of_unrelated_sets_is_zero_and_the_plain_one_is_not():
    debiased, plain = [], []
    for seed in range(40):
        a, b = rows(20, 200, seed=2 * seed), rows(20, 200, seed=2 * seed + 1)
        debiased.append(float(linear_cka(a, b)))
        plain.append(float(linear_cka(a, b, debiased=False)))
    assert abs(np.mean(debiased)) < 4 * np.std(debiased) / math.sqrt(40)
    assert min(plain) > 0.8


def test_procrustes_agrees_with_scipy_and_finds_a_rotation():
    for center in (True, False):
        x, y = (side - side.mean(0) if center else side for side in (X, Y))
        x, y = x / x.norm(), y / y.norm()
        turn, similarity = scipy.linalg.orthogonal_procrustes(x.numpy(), y.numpy())
        expected = float(np.linalg.norm(x.numpy() @ turn - y.numpy()))
        assert float(procrustes_distance(X, Y, center=center)) == pytest.approx(expected, abs=TIGHT)
        assert float(procrustes_distance(X, Y, center=center)) == pytest.approx(
            math.sqrt(2 - 2 * similarity), abs=TIGHT
        )
    few, wide = rows(5, 40), rows(5, 40, seed=3)
    turn, _ = scipy.linalg.orthogonal_procrustes(
        (few / few.norm()).numpy(), (wide / wide.norm()).numpy()
    )
    expected = float(
        np.linalg.norm((few / few.norm()).numpy() @ turn - (wide / wide.norm()).numpy())
    )
    assert float(procrustes_distance(few, wide, center=False)) == pytest.approx(expected, abs=TIGHT)


def test_procrustes_resolves_small_distances_and_is_a_metric():
    turn = torch.linalg.qr(rows(6, 6, seed=4)).Q
    assert float(procrustes_distance(X, 7 * X @ turn, center=False)) < 1e-14
    for size in (1e-4, 1e-9, 1e-12):
        near = X + size * Y
        result = float(procrustes_distance(X, near @ turn, center=False))
        assert 0.05 * size < result / float(Y.norm() / X.norm()) < 1.1 * size
    z = rows(15, 6, seed=9)
    for a, b, c in ((X, Y, z), (Y, z, X), (z, X, Y)):
        direct = procrustes_distance(a, c, center=True)
        assert (
            float(direct)
            <= float(
                procrustes_distance(a, b, center=True) + procrustes_distance(b, c, center=True)
            )
            + TIGHT
        )
    assert float(
        procrustes_distance(
            torch.tensor([[1.0, 0], [0, 0]]), torch.tensor([[0.0, 0], [1, 0]]), center=False
        )
    ) == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize(
    "measure",
    [
        mean_shift_cosine,
        mean_pairwise_cosine,
        linear_cka,
        lambda a, b: linear_cka(a, b, debiased=False),
        lambda a, b: procrustes_distance(a, b, center=True),
    ],
)
def test_batches_broadcast_and_dtypes_follow(measure):
    a, b = rows(2, 3, 8, 5) + 1, rows(3, 8, 5, seed=1) + 1
    values = measure(a, b)
    assert values.shape == (2, 3) and values.dtype == torch.float64
    torch.testing.assert_close(values[1, 2], measure(a[1, 2], b[2]))
    assert measure(a.float(), b.float()).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_shift_cosine(X, Y[:, :4]), "b has 4 coordinates and a has 6"),
        (
            lambda: mean_shift_cosine(torch.cat([X, -X]), Y),
            "a has a mean of zero, which has no direction; shifts that cancel share none",
        ),
        (lambda: mean_shift_cosine(X, torch.zeros(3, 6)), "b has a mean of zero"),
        (
            lambda: mean_pairwise_cosine(X[:1]),
            "a has 1 row and so no pair; pass at least 2, or a second set",
        ),
        (lambda: mean_pairwise_cosine(torch.zeros(3, 6)), "a row 0 is zero; leave it out"),
        (lambda: mean_pairwise_cosine(X, torch.zeros(3, 6)), "b row 0 is zero; leave it out"),
        (
            lambda: linear_cka(X, Y[:7]),
            "a has 15 rows and b 7; pass the same prompts in the same order",
        ),
        (
            lambda: linear_cka(X[:3], Y[:3]),
            "3 rows are too few for an alignment; pass at least 4 prompts",
        ),
        (
            lambda: linear_cka(X, torch.ones(15, 6)),
            "b has rows that are all alike or all equally far apart",
        ),
        (
            lambda: linear_cka(torch.eye(15), Y),
            "a has rows that are all alike or all equally far apart, so there is nothing to align",
        ),
        (
            lambda: procrustes_distance(X, Y[:7], center=True),
            "a has 15 rows and b 7; pass the same prompts",
        ),
        (lambda: procrustes_distance(X, Y[:, :4], center=True), "a has 6 coordinates and b has 4"),
        (
            lambda: procrustes_distance(X, torch.ones(15, 6), center=True),
            "b has rows without any length about their mean; there is no shape",
        ),
        (
            lambda: procrustes_distance(torch.zeros(15, 6), Y, center=False),
            "a has rows without any length; there is no shape to compare",
        ),
    ],
)
def test_refusals(unchecked, call, message):
    with pytest.raises(EmlensError, match=message):
        call()
