import pytest
import torch

from emlens.foundation.errors import InputError
from emlens.geometry import subspace_overlap, top_k_subspace
from emlens.geometry.covariance_overlap import variance_weighted_overlap

EXACT = 1e-12  # float64 sums of some hundred terms


def rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("center", [True, False])
def test_it_is_the_cosine_of_two_covariance_matrices(center: bool) -> None:
    a, b = rows(30, 9) + 2, rows(50, 9, seed=1) * torch.arange(1.0, 10)
    matrices = []
    for x in (a, b):
        x = x - x.mean(dim=0) if center else x
        matrices.append((x.T @ x).flatten())
    expected = float(matrices[0] @ matrices[1] / (matrices[0].norm() * matrices[1].norm()))
    overlap = variance_weighted_overlap(a, b, center=center)
    assert float(overlap) == pytest.approx(expected, rel=EXACT)
    assert float(variance_weighted_overlap(b, 3 * a, center=center)) == pytest.approx(
        expected, rel=EXACT
    )
    rotation = torch.linalg.qr(rows(9, 9, seed=2))[0]
    turned = variance_weighted_overlap(a @ rotation, b @ rotation, center=center)
    assert float(turned) == pytest.approx(expected, rel=1e-10)


def test_ends_of_the_range_and_batches() -> None:
    a = rows(40, 12)
    assert float(variance_weighted_overlap(a, 2 * a, center=True)) == pytest.approx(1, abs=EXACT)
    left, right = torch.zeros(2, 40, 12, dtype=torch.float64)
    left[:, :6], right[:, 6:] = rows(40, 6), rows(40, 6, seed=1)
    assert float(variance_weighted_overlap(left, right, center=True)) == pytest.approx(0, abs=EXACT)
    pairs = torch.stack([a, left]), torch.stack([right, right])
    batch = variance_weighted_overlap(*pairs, center=True)
    assert batch.shape == (2,) and float(batch[1]) == pytest.approx(0, abs=EXACT)
    assert variance_weighted_overlap(a.float(), a.float(), center=True).dtype == torch.float64


def test_a_strong_shared_direction_counts_by_its_variance() -> None:
    """Both sets share their strongest direction and nothing else: the top 8 share 1 of 8."""
    left, right = torch.zeros(2, 200, 15, dtype=torch.float64)
    left[:, 0], right[:, 0] = 10 * rows(200, 1)[:, 0], 10 * rows(200, 1, seed=1)[:, 0]
    left[:, 1:8], right[:, 8:] = rows(200, 7, seed=2), rows(200, 7, seed=3)
    assert float(variance_weighted_overlap(left, right, center=True)) > 0.99
    spaces = [top_k_subspace(x, 8, center=True) for x in (left, right)]
    assert float(subspace_overlap(spaces[0], spaces[1])) == pytest.approx(1 / 8, abs=0.02)


def test_nothing_moved(unchecked: None) -> None:
    with pytest.raises(InputError, match="rows that all equal their mean, so it has no covariance"):
        variance_weighted_overlap(torch.ones(4, 3), rows(4, 3), center=True)
