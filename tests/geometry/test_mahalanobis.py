import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import OAS, ShrunkCovariance

from emlens import EmlensError
from emlens.geometry import mahalanobis_distance


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


KNOWN, FEW, NEW = (
    rows(40, 6) * torch.arange(1, 7) + 3,
    rows(8, 30) * torch.linspace(1, 5, 30),
    rows(5, 6, seed=1) + 3,
)


def test_without_shrinkage_it_is_the_classical_distance():
    mean, inverse = KNOWN.mean(0).numpy(), np.linalg.inv(np.cov(KNOWN.numpy().T))
    expected = [mahalanobis(row, mean, inverse) for row in NEW.numpy()]
    np.testing.assert_allclose(mahalanobis_distance(NEW, KNOWN, shrinkage=0.0), expected)
    own = mahalanobis_distance(KNOWN, KNOWN, shrinkage=0.0)
    assert float((own**2).mean()) == pytest.approx(6 * 39 / 40)


@pytest.mark.parametrize("reference", [KNOWN, FEW])
def test_shrunk_it_agrees_with_scikit_learn(reference):
    x, n = rows(4, reference.shape[1], seed=2), len(reference)
    for shrinkage in (0.1, 0.7, 1.0):
        fitted = ShrunkCovariance(shrinkage=shrinkage).fit(reference.numpy())
        distances = mahalanobis_distance(x, reference, shrinkage=shrinkage)
        # n there, n − 1 here
        np.testing.assert_allclose(distances**2, fitted.mahalanobis(x.numpy()) * (n - 1) / n)
    covariance = np.cov(reference.numpy().T)
    square, trace, d = float((covariance**2).sum()), float(covariance.trace()), len(covariance)
    # Chen et al. (2010), without terms of order 2/d
    rho = min(1.0, (square + trace**2) / (n * (square - trace**2 / d)))
    torch.testing.assert_close(
        mahalanobis_distance(x, reference), mahalanobis_distance(x, reference, shrinkage=rho)
    )
    # its degrees of freedom are one more
    assert rho == pytest.approx(float(OAS().fit(reference.numpy()).shrinkage_), rel=0.2)


def test_with_all_shrinkage_it_is_euclidean():
    scale = KNOWN.var(dim=0).mean().sqrt()
    torch.testing.assert_close(
        mahalanobis_distance(NEW, KNOWN, shrinkage=1.0), (NEW - KNOWN.mean(0)).norm(dim=1) / scale
    )


def test_it_sees_directions_where_the_reference_does_not_vary():
    flat = KNOWN.clone()
    flat[:, 0] = 3 + 1e-3 * rows(40)
    along, across = flat.mean(0) + torch.eye(6)[5], flat.mean(0) + torch.eye(6)[0]
    near, far = mahalanobis_distance(torch.stack([along, across]), flat, shrinkage=0.0)
    assert float(far) > 300 * float(near)
    equal = mahalanobis_distance(torch.stack([along, across]), flat, shrinkage=1.0)
    assert float(equal[0]) == pytest.approx(float(equal[1]))


def test_known_gaussian_rows_have_chi_squared_distances():
    result = mahalanobis_distance(rows(4000, 6, seed=7), rows(20000, 6, seed=8), shrinkage=0.0) ** 2
    assert float(result.mean()) == pytest.approx(6, rel=0.03)
    assert float(result.var()) == pytest.approx(12, rel=0.12)


def test_batches_and_dtypes():
    x, known = rows(2, 3, 4, 9), rows(2, 3, 7, 9, seed=1) * torch.linspace(1, 4, 9)
    distances = mahalanobis_distance(x, known)
    assert distances.shape == (2, 3, 4)
    torch.testing.assert_close(distances[1, 2], mahalanobis_distance(x[1, 2], known[1, 2]))
    assert mahalanobis_distance(x.float(), known.float()).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mahalanobis_distance(NEW, FEW), "reference has 30 coordinates and x has 6"),
        (
            lambda: mahalanobis_distance(NEW[None], KNOWN),
            r"x has batch axes \(1,\) and reference \(\); pass equal ones",
        ),
        (lambda: mahalanobis_distance(NEW, KNOWN[:1]), "reference has 1 row; pass at least 2"),
        (
            lambda: mahalanobis_distance(NEW, torch.ones(5, 6)),
            "reference has rows that are all alike, so nothing says how far is far",
        ),
        (
            lambda: mahalanobis_distance(NEW, KNOWN, shrinkage=1.5),
            "shrinkage=1.5 must be 'oas' or a number from 0",
        ),
        (
            lambda: mahalanobis_distance(rows(2, 30), FEW, shrinkage=0),
            "shrinkage=0 with 7 degrees of freedom in 30 dimensions has no inverse",
        ),
        (
            lambda: mahalanobis_distance(
                NEW, KNOWN * torch.tensor([1.0, 1, 0, 1, 1, 1]), shrinkage=0
            ),
            "reference does not vary in some direction of its 6",
        ),
        (
            lambda: mahalanobis_distance(NEW, KNOWN * float("nan")),
            "reference holds 240 values that are NaN",
        ),
    ],
)
def test_refusals(unchecked, call, message):
    with pytest.raises(EmlensError, match=message):
        call()
