"""How alike two covariances are, every direction weighted by the variance along it.

tr(SₐS_b) / (‖Sₐ‖‖S_b‖), the cosine of two covariance matrices. An overlap of top-k subspaces weighs
k axes alike, so one strong direction that both sets share counts as one of k, and k − 1 weak ones
that they do not share decide. Here each direction counts by its variance.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.geometry.linear import rows_of


def variance_weighted_overlap(
    a: Float[Tensor, "*batch row d"], b: Float[Tensor, "*batch other d"], *, center: bool
) -> Float[Tensor, "*batch"]:
    """Cosine of the covariances of two sets of vectors.

    Range [0, 1]: 1 where the covariances are proportional, 0 where they live in orthogonal
    subspaces. Symmetric; invariant to a common rotation and to scaling either set. float64. Never
    forms a (d, d) matrix.

    Args:
        center: True takes each set's mean out; False compares second moments about 0.

    Raises:
        InputError: values that are not finite, other widths, rows that all equal their mean.
    """
    first, second = rows_of(a, "a"), rows_of(b, "b", a, "a")
    if center:
        first = first - first.mean(dim=-2, keepdim=True)
        second = second - second.mean(dim=-2, keepdim=True)
    # tr(AᵀA BᵀB) = ‖A Bᵀ‖², and ‖AᵀA‖ = ‖A Aᵀ‖: matrices of rows, which are few
    shared = torch.linalg.matrix_norm(first @ second.mT) ** 2
    lengths = torch.linalg.matrix_norm(first @ first.mT) * torch.linalg.matrix_norm(
        second @ second.mT
    )
    if bool((lengths == 0).any()):
        raise InputError(
            "a or b has rows that all equal their mean, so it has no covariance to compare;"
            " leave out sites where nothing moved"
        )
    return (shared / lengths).clamp(max=1.0)
