import math

import numpy as np
import pytest
import torch
from scipy import stats

from emlens import EmlensError
from emlens.geometry import random_directions, random_directions_like
from emlens.geometry.random_directions import covariance_cosine_null, isotropic_cosine_null


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_random_directions_are_isotropic():
    units = random_directions(10, 4000)
    torch.testing.assert_close(units.norm(dim=1), torch.ones(4000, dtype=torch.float64))
    torch.testing.assert_close(
        units.T @ units / 4000, torch.eye(10, dtype=torch.float64) / 10, atol=0.01, rtol=0
    )
    assert (random_directions(10, 3) == random_directions(10, 3)).all()
    assert (random_directions(10, 3) != random_directions(10, 3, seed=1)).any()


def test_random_directions_like_carry_the_variance_that_isotropic_ones_do_not():
    covariance = torch.diag(1 / torch.arange(1, 65, dtype=torch.float64) ** 2)

    def carried(units):
        return float(((units @ covariance) * units).sum(1).mean())

    like, isotropic = random_directions_like(covariance, 500), random_directions(64, 500)
    assert carried(isotropic) == pytest.approx(float(covariance.trace()) / 64, rel=0.1)
    assert carried(like) > 10 * carried(isotropic)
    x = rows(20, 64) @ covariance.sqrt() + 7
    from_rows = random_directions_like(x.float(), 50)
    assert from_rows.dtype == torch.float32 and from_rows.shape == (50, 64)
    span = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:19]
    assert float((from_rows.double() @ span.T).norm(dim=1).min()) == pytest.approx(1, abs=1e-5)


def test_the_isotropic_null_is_the_exact_distribution_of_cosines():
    null = isotropic_cosine_null(16, draws=4000, seed=3)
    assert (null.mean, null.sd) == (0.0, 0.25)
    cosines = (
        (random_directions(16, 4000, seed=1) * random_directions(16, 4000, seed=2)).sum(1).numpy()
    )
    assert stats.ks_2samp(cosines, null.draws).pvalue > 0.01
    # it can tell another width
    assert stats.ks_2samp(cosines, isotropic_cosine_null(8, draws=4000).draws).pvalue < 1e-6
    assert (isotropic_cosine_null(16, 50).draws == isotropic_cosine_null(16, 50).draws).all()


def test_cosines_of_unrelated_directions_are_large_where_the_stream_is_anisotropic():
    covariance = torch.diag(1 / torch.arange(1, 129, dtype=torch.float64))
    null = covariance_cosine_null(covariance, draws=4000)
    assert null.sd > 2 * isotropic_cosine_null(128).sd and abs(null.mean) < 4 * null.sd / 4000**0.5
    a, b = (random_directions_like(covariance, 4000, seed=s) for s in (1, 2))
    assert stats.ks_2samp((a * b).sum(1).numpy(), null.draws).pvalue > 0.01  # an independent route
    q = torch.linalg.qr(rows(128, 128)).Q
    turned = covariance_cosine_null(q @ covariance @ q.T, draws=4000)
    assert np.allclose(turned.draws, null.draws, atol=1e-6)
    flat = covariance_cosine_null(torch.eye(128, dtype=torch.float64), draws=4000)
    assert flat.sd == pytest.approx(1 / math.sqrt(128), rel=0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random_directions(4, 0), "count=0 must be an integer of 1 or more"),
        (lambda: random_directions(0, 4), "d_model=0 must be an integer of 1 or more"),
        (
            lambda: random_directions_like(torch.zeros(4, 4), 2),
            r"of shape \(4, 4\) has no variance",
        ),
        (lambda: isotropic_cosine_null(1), "d_model=1 must be an integer of 2 or more"),
        (
            lambda: covariance_cosine_null(rows(4, 4), draws=0),
            "draws=0 must be an integer of 1 or more",
        ),
    ],
)
def test_refusals(unchecked, call, message):
    with pytest.raises(EmlensError, match=message):
        call()
