import numpy as np
import pytest
import torch
from scipy.stats import norm

from emlens import EmlensError
from emlens.geometry import top_k_subspace
from emlens.geometry.components import elbow


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_likelihood(values: np.ndarray) -> int:
    """Zhu & Ghodsi's profile log-likelihood, term by term."""
    best = []
    for q in range(1, len(values)):
        first, second = values[:q], values[q:]
        variance = (((first - first.mean()) ** 2).sum() + ((second - second.mean()) ** 2).sum()) / (
            len(values) - 2
        )
        best.append(
            norm.logpdf(first, first.mean(), variance**0.5).sum()
            + norm.logpdf(second, second.mean(), variance**0.5).sum()
        )
    return int(np.argmax(best)) + 1


@pytest.mark.parametrize("seed", range(5))
def test_elbow_is_the_split_of_largest_profile_likelihood(seed):
    values = torch.linalg.svdvals(rows(20, 9, seed=seed) * torch.linspace(4, 0.2, 9))
    assert elbow(values) == by_likelihood(values.numpy())


@pytest.mark.parametrize("k", [1, 3, 7])
def test_elbow_is_where_a_planted_spectrum_falls(k):
    signal = rows(200, k) @ torch.linalg.qr(rows(40, k, seed=1)).Q.T * 30
    x = signal + rows(200, 40, seed=2) + 5
    assert top_k_subspace(x, "elbow", center=True).k == k
    exact = signal - signal.mean(0)
    # nothing but rounding lies behind k, and no k above the rank
    assert top_k_subspace(exact, "elbow", center=False).k <= k
    assert (
        top_k_subspace(x, "elbow", center=True).k == top_k_subspace(1e6 * x, "elbow", center=True).k
    )


def test_refusals(unchecked):
    with pytest.raises(
        EmlensError,
        match="k='elbow' has 2 singular values to choose among; pass a count, or more vectors",
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
