import pytest
import torch

from emlens import EmlensError
from emlens.geometry import principal_angles, top_k_subspace
from emlens.geometry.batched_bases import (
    STACK,
    cosines_between,
    one_set,
    row_coordinates,
    stacks,
    top_bases,
)


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n", "d"), [(6, 20), (20, 6), (9, 9)])
@pytest.mark.parametrize("center", [False, True])
def test_bases_are_those_of_the_exact_decomposition(n, d, center):
    x = rows(5, n, d) + 1
    fast, exact = top_bases(x, 3, center, "x"), top_k_subspace(x, 3, center=center)
    torch.testing.assert_close(fast.mT @ fast, torch.eye(3, dtype=torch.float64).expand(5, 3, 3))
    assert float(principal_angles(fast, exact).max()) < 1e-10
    # it can tell the other
    assert float(principal_angles(fast, top_k_subspace(x, 3, center=not center)).max()) > 0.1


@pytest.mark.parametrize(("n", "d"), [(6, 20), (20, 6)])
def test_components_that_squares_cannot_hold_come_from_the_rows(n, d):
    left, right = torch.linalg.qr(rows(n, 3)).Q, torch.linalg.qr(rows(d, 3, seed=1)).Q
    x = left * torch.tensor([1.0, 1e-5, 1e-10], dtype=torch.float64) @ right.mT
    assert float(principal_angles(top_bases(x, 3, False, "x"), right)[-1]) < 1e-5
    squared = torch.linalg.eigh(x.mT @ x).eigenvectors[:, -3:]
    # why: a Gram matrix has lost the third
    assert float(principal_angles(squared, right)[-1]) > 0.01


def test_coordinates_keep_inner_products_and_drop_what_is_rounding():
    x = rows(7, 3) @ rows(3, 40, seed=1)
    points = row_coordinates(x)
    assert points.shape == (7, 3)
    torch.testing.assert_close(points @ points.mT, x @ x.mT)
    assert row_coordinates(x + 1e-9 * rows(7, 40), torch.float32).shape == (7, 3)
    assert row_coordinates(x + 1e-9 * rows(7, 40)).shape == (7, 7)
    assert row_coordinates(torch.zeros(4, 9, dtype=torch.float64)).tolist() == [[0.0]] * 4


def test_cosines_are_those_of_scipy():
    from scipy.linalg import subspace_angles

    a, b = (torch.linalg.qr(rows(2, 9, k, seed=k)).Q for k in (2, 4))
    result = cosines_between(a, b)
    assert result.shape == (2, 2)
    for i in range(2):
        assert torch.arccos(result[i]).tolist() == pytest.approx(
            sorted(subspace_angles(a[i].numpy(), b[i].numpy()))
        )


def test_stacks_add_up_and_are_bounded():
    sizes = list(stacks(10, STACK // 3))
    assert sum(sizes) == 10 and max(sizes) == 3
    assert list(stacks(3, 10**12)) == [1, 1, 1] and list(stacks(0, 5)) == []


def test_refusals(unchecked):
    with pytest.raises(
        EmlensError,
        match="x: a sample of 4 vectors has rank below k=4 with center=True; pass a smaller k",
    ):
        top_bases(rows(4, 9), 4, True, "x")
    with pytest.raises(
        EmlensError, match="x: a sample of 4 vectors has rank below k=9 with center=False"
    ):
        top_bases(rows(4, 9), 9, False, "x")
    with pytest.raises(
        EmlensError, match=r"x has shape \(2, 4, 9\); pass one set of vectors, shape \(row, d\)"
    ):
        one_set(rows(2, 4, 9), "x")
