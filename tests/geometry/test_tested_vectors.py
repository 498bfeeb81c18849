import pytest
import torch

from emlens import EmlensError
from emlens.geometry.tested_vectors import is_covariance, refuse_tested


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


A, B, OTHER = rows(30, 12), rows(20, 12, seed=1) + 1, rows(40, 12, seed=2)


@pytest.mark.parametrize(
    "reference",
    [
        A,
        -B,  # before minus after
        torch.cat([OTHER, B[:2]]),
        A.bfloat16(),
        torch.cat([A, B]).float(),
        torch.cov(A.T),
        torch.cov(A.T).float(),
        3 * B.T @ B,
        torch.cov(torch.cat([A, B]).T),
        29 * torch.cov(A.T) + 19 * torch.cov(B.T),  # pooled within the sets
    ],
    ids=[
        "rows",
        "negated",
        "a few",
        "bfloat16",
        "both",
        "covariance",
        "float32",
        "second moment",
        "of both",
        "within",
    ],
)
def test_a_reference_made_of_tested_vectors_is_refused(reference, unchecked):
    with pytest.raises(
        EmlensError,
        match="so that what is tested would be its own null; take the covariance of before",
    ):
        refuse_tested(reference, (A, B), "reference")
    refuse_tested(reference, (), "reference")  # nothing to compare with


@pytest.mark.parametrize(
    "reference",
    [
        OTHER,
        torch.cov(OTHER.T),
        torch.eye(12),
        A + 0.05 * rows(30, 12, seed=3),  # of other prompts or another run: not the same vectors
        torch.cat([OTHER, B[:1]]),
        torch.zeros(12, 12),
    ],
    ids=["rows", "covariance", "identity", "noised", "one row", "zeros"],
)
def test_a_reference_of_other_vectors_passes(reference):
    refuse_tested(reference, (A, B, torch.zeros(3, 12)), "reference")


def test_what_is_read_as_a_covariance():
    assert is_covariance(torch.cov(A.T)) and is_covariance(torch.cov(A.T.float()))
    assert not is_covariance(A) and not is_covariance(rows(12, 12)) and not is_covariance(A[0])


def test_other_widths_are_refused(unchecked):
    with pytest.raises(EmlensError, match=r"reference has 12 coordinates and tested\[1\] has 11"):
        refuse_tested(A, (B, rows(4, 11)), "reference")
    with pytest.raises(
        EmlensError, match=r"tested\[0\] has shape \(2, 4, 12\); pass one set of vectors"
    ):
        refuse_tested(A, (rows(2, 4, 12),), "reference")
    with pytest.raises(
        EmlensError, match=r"tested is a tensor of shape \(30, 12\); pass a list or tuple of sets"
    ):
        refuse_tested(B, A, "reference")
