"""Principal angles between subspaces, to 1e-13 rad over the whole range from 0 to π/2.

The arc cosine cannot resolve angles below about 1e-8, the arc sine none within 1e-8 of π/2. Each is
used where it is accurate, and they change over at π/4, where both lose a factor of √2 (Björck &
Golub 1973; Knyazev & Argentati 2002). Inputs are subspaces or full-rank matrices whose *columns*
span them. Computed in float64. The error is about 1e-15 rad times the condition number of the
columns (scaled to one length): what rounding the input itself would do. Results are float64 for
any input: they are exact for the columns that came in, whose float32 rounding may have moved the
subspace by some 1e-7 rad before. Cost: QR of both, and two SVDs of (k_a, k_b) and (d, k)
matrices.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.geometry.linear import orthonormal_basis
from emlens.geometry.subspaces import Subspace


def basis_of(space: Subspace | Tensor, name: str) -> Tensor:
    """The matrix whose columns span `space`, unchanged.

    Raises:
        InputError: neither a `Subspace` nor a tensor.
    """
    if isinstance(space, Subspace):
        return space.basis
    if isinstance(space, Tensor):
        return space
    raise InputError(
        f"{name} is a {type(space).__name__};"
        " pass a Subspace or a matrix of shape (d, k) whose columns span one"
    )


def orthonormal_pair(a: Subspace | Tensor, b: Subspace | Tensor) -> tuple[Tensor, Tensor]:
    """float64 orthonormal bases of both, the larger subspace first.

    Raises:
        InputError: dependent columns (the message says the rank), different widths, values that are
            not finite.
    """
    first = orthonormal_basis(basis_of(a, "a"), "a")
    second = orthonormal_basis(basis_of(b, "b"), "b")
    if first.shape[-2] != second.shape[-2]:
        raise InputError(
            f"a lies in {first.shape[-2]} dimensions and b in {second.shape[-2]};"
            " pass subspaces of one stream, bases as columns"
        )
    if first.shape[-1] < second.shape[-1]:
        return second, first
    return first, second


def angles_between_orthonormal(
    larger: Float[Tensor, "*#batch d p"], smaller: Float[Tensor, "*#batch d q"]
) -> Float[Tensor, "... q"]:
    """Principal angles of orthonormal float64 bases with p >= q, ascending; batch axes broadcast.

    Cosines are the singular values of LᵀS, sines those of (I − LLᵀ)S; both are backward stable, so
    each errs by a few eps, and an angle by that over the derivative of the branch, at most √2.
    """
    inner = larger.mT @ smaller
    # singular values descend: cosines descend as angles ascend, sines have to be flipped
    cosines = torch.linalg.svdvals(inner).clamp(max=1.0)
    sines = torch.linalg.svdvals(smaller - larger @ inner).clamp(max=1.0).flip(-1)
    # d acos(c)/dc is infinite at c = 1: below π/4 the sine is accurate, above it the cosine
    angles = torch.where(cosines**2 < 0.5, torch.acos(cosines), torch.asin(sines))
    return torch.sort(angles, dim=-1).values.clamp(0.0, math.pi / 2)


def principal_angles(a: Subspace | Tensor, b: Subspace | Tensor) -> Float[Tensor, "... m"]:
    """Principal (canonical) angles between two subspaces, ascending, in radians.

    (..., m), m = min(k_a, k_b). Range [0, π/2]. Symmetric in a and b; invariant to the choice of
    basis, to the length of columns and to a common rotation. k_a and k_b may differ; where k_a +
    k_b > d at least k_a + k_b − d angles are 0. Batch axes broadcast.

    Args:
        a, b: `Subspace`, or (..., d, k) with linearly independent columns (rows of vectors must be
            transposed).

    Raises:
        InputError: dependent columns (the message says the rank), different widths, values that are
            not finite.
    """
    larger, smaller = orthonormal_pair(a, b)
    return angles_between_orthonormal(larger, smaller)
