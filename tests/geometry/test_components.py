import numpy as np
import pytest
import torch

from emlens import EmlensError
from emlens.geometry import top_k_subspace
from emlens.geometry.components import elbow


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_gaps(values: np.ndarray) -> int:
    """Onatski's steps, term by term, with a line that NumPy fits."""
    eigenvalues = (values / values.max()) ** 2
    last = min(len(values) // 2, len(values) - 7)
    count = last
    for _ in range(4):
        before = count
        index = np.arange(count, count + 7)
        slope = np.polyfit(index ** (2 / 3), eigenvalues[index], 1)[0]
        gaps = eigenvalues[:last] - eigenvalues[1 : last + 1]
        larger = np.flatnonzero(gaps > 4 * abs(slope))
        count = larger.max() + 1 if len(larger) else 0
        if count == before:
            break
    return int(count)


def planted(strengths: list[float], n: int = 48, d: int = 200, seed: int = 0) -> torch.Tensor:
    """Rows with directions of given strengths above isotropic noise of strength 1."""
    axes = torch.linalg.qr(rows(d, len(strengths), seed=seed)).Q
    signal = rows(n, len(strengths), seed=seed + 1) * torch.tensor(strengths, dtype=torch.float64)
    return signal @ axes.T + rows(n, d, seed=seed + 2) + 5


@pytest.mark.parametrize("seed", range(5))
def test_the_elbow_is_the_last_gap_beyond_the_slope_of_the_tail(seed):
    values = torch.linalg.svdvals(rows(20, 30, seed=seed) * torch.linspace(4, 0.2, 30))
    assert elbow(values) == by_gaps(values.numpy())


@pytest.mark.parametrize("strengths", [[20.0], [60.0, 8, 8], [40.0, 20, 10, 8, 8, 7, 7]])
def test_the_elbow_is_where_a_planted_spectrum_reaches_its_noise(strengths):
    """Also where one direction is far stronger than the others."""
    x = planted(strengths)
    space = top_k_subspace(x, "elbow", center=True)
    assert space.k == len(strengths)
    assert top_k_subspace(1e6 * x, "elbow", center=True).k == len(strengths)
    shuffled = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    assert top_k_subspace(shuffled, "elbow", center=True).k == len(strengths)


def test_the_elbow_of_rows_without_noise_is_their_rank():
    x = planted([5.0, 4, 3], seed=3) - planted([5.0, 4, 3], seed=3).mean(0)
    basis = torch.linalg.svd(x, full_matrices=False)
    exact = basis.U[:, :3] * basis.S[:3] @ basis.Vh[:3]
    assert top_k_subspace(exact, "elbow", center=False).k == 3


def test_noise_and_a_smooth_spectrum_have_no_elbow():
    answers = []
    for seed in range(10):
        answers.append(elbow(torch.linalg.svdvals(rows(48, 200, seed=seed))))
    assert answers.count(0) >= 8
    smooth = torch.arange(60, 0, -1, dtype=torch.float64)
    assert elbow(smooth) == 0
    x = torch.linalg.qr(rows(80, 60)).Q * smooth @ torch.linalg.qr(rows(60, 60)).Q
    with pytest.raises(EmlensError, match="of the 80 vectors fall without an elbow; pass a count"):
        top_k_subspace(x, "elbow", center=False)


def test_refusals(unchecked):
    with pytest.raises(
        EmlensError,
        match=(
            "k='elbow' has 2 singular values to choose among, and needs 9; pass a count, or more"
            " vectors"
        ),
    ):
        top_k_subspace(rows(3, 9), "elbow", center=True)
    with pytest.raises(
        EmlensError,
        match=(
            "k='elbow' asks for the elbow, which differs over a batch; pass a count, or one matrix"
        ),
    ):
        top_k_subspace(rows(2, 5, 9), "elbow", center=True)
    with pytest.raises(EmlensError, match="k='elbow' has nothing to choose from"):
        top_k_subspace(torch.ones(5, 9), "elbow", center=True)
    with pytest.raises(
        EmlensError,
        match=r"k='knee' is unknown; pass a count, a share of variance such as .95, or 'elbow'",
    ):
        top_k_subspace(rows(5, 9), "knee", center=True)
