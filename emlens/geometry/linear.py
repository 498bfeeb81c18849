"""Linear algebra that the geometry modules share: dtype rules, rows, numerical rank, orthonormal
bases, Gaussian factors.

Everything is computed in float64. Results come back in float64 if any input was float64, else in
float32. Leading axes (layers, positions) are a batch everywhere but in `gaussian_factor`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.shapes import as_float64, require_ndim, require_same_width

EPS64 = torch.finfo(torch.float64).eps
EPS32 = torch.finfo(torch.float32).eps


def result_dtype(*inputs: Tensor) -> torch.dtype:
    return torch.float64 if any(value.dtype == torch.float64 for value in inputs) else torch.float32


def input_eps(dtype: torch.dtype) -> float:
    """Relative rounding of stored values; for 16-bit types that of float32, since their values are
    taken as exact.
    """
    return EPS64 if dtype == torch.float64 else EPS32


def rank_tolerance(frobenius: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Singular values at or below this cannot be told from rounding.

    Rounding entries to `dtype` perturbs a matrix by at most eps·‖X‖_F / 2 in norm, and a float64
    SVD by about max(rows, columns)·eps64·‖X‖.
    """
    return frobenius * max(input_eps(dtype), max(shape[-2:]) * EPS64)


def sign_fixed(columns: Float[Tensor, "*batch d k"]) -> Float[Tensor, "*batch d k"]:
    """The same columns with the entry of largest magnitude positive, so that a basis is
    reproducible.
    """
    largest = columns.abs().argmax(dim=-2, keepdim=True)
    signs = torch.sign(columns.gather(-2, largest))
    return columns * torch.where(signs == 0, torch.ones_like(signs), signs)


def rows_of(
    vectors: Float[Tensor, "*batch row d"], name: str, width: Tensor | None = None, other: str = ""
) -> Float[Tensor, "*batch row d"]:
    """float64 rows, as wide as `width`.

    Raises:
        InputError: fewer than two axes, no row or no coordinate, another width, values that are not
            finite.
    """
    require_ndim(vectors, 2, name, "rows of vectors, shape (row, d)")
    if width is not None:
        require_same_width(vectors, width, name, other)
    if 0 in vectors.shape[-2:]:
        raise InputError(
            f"{name} has shape {tuple(vectors.shape)}; pass at least one vector with one coordinate"
        )
    return as_float64(vectors, name)


def row_lengths(rows: Float[Tensor, "*batch d"], name: str, what: str) -> Float[Tensor, "*batch"]:
    """Lengths of float64 rows, all above 0; `what` says what a row without length is.

    Raises:
        InputError: a row without length; the message names the first.
    """
    norms = torch.linalg.vector_norm(rows, dim=-1)
    if bool((norms == 0).any()):
        index = tuple(int(i) for i in (norms == 0).nonzero()[0])
        raise InputError(
            f"{name} row {index[0] if len(index) == 1 else index} {what}; leave it out"
        )
    return norms


def _powers_of_two(sizes: Tensor) -> Tensor:
    """2**−e for sizes in [2**(e−1), 2**e): scaling by it rounds nothing."""
    exponents = torch.frexp(sizes).exponent.clamp(-1000, 1000)
    return torch.pow(2.0, -exponents.to(torch.float64))


def orthonormal_basis(
    columns: Float[Tensor, "*batch d k"], name: str
) -> Float[Tensor, "*batch d k"]:
    """Orthonormal float64 basis of the span of full-rank columns; the lengths of columns do not
    matter.

    Householder QR after scaling each column by a power of two, which rounds nothing: the span is
    that of the columns to about 1e-15 times their condition number (once they have one length).

    Raises:
        InputError: fewer than two axes, no column, values that are not finite, or columns that are
            linearly dependent.
    """
    require_ndim(columns, 2, name, "a matrix of shape (d, k) whose columns span the subspace")
    wide = as_float64(columns, name)
    d, k = wide.shape[-2:]
    if k == 0:
        raise InputError(
            f"{name} has shape {tuple(columns.shape)} and so no column; pass at least one"
        )
    unit = wide * _powers_of_two(wide.abs().amax(dim=-2, keepdim=True))
    unit = unit * _powers_of_two(torch.linalg.vector_norm(unit, dim=-2, keepdim=True))
    basis, triangle = torch.linalg.qr(unit)
    singular = torch.linalg.svdvals(triangle)
    tolerance = rank_tolerance(
        torch.linalg.vector_norm(singular, dim=-1), unit.shape, columns.dtype
    )
    rank = (singular > tolerance[..., None]).sum(dim=-1)
    if int(rank.min()) < k:
        where = (
            ""
            if wide.ndim == 2
            else f" at batch index {tuple(int(i) for i in (rank < k).nonzero()[0])}"
        )
        raise InputError(
            f"{name} has {k} columns in {d} dimensions and rank {int(rank.min())}{where};"
            " pass independent columns"
        )
    return basis


def gaussian_factor(
    covariance_or_vectors: Float[Tensor, "row d_model"], name: str
) -> Float[Tensor, "rank d_model"]:
    """A float64 factor F with F'F the covariance, one row a principal axis, longest first.

    A square symmetric matrix is read as a covariance, anything else as rows of vectors, whose
    sample covariance (centred, n − 1) is used.

    Raises:
        InputError: a symmetric matrix with negative eigenvalues, fewer than two vectors, or no
            variance at all.
    """
    wide = as_float64(covariance_or_vectors, name)
    if wide.ndim != 2:
        raise InputError(
            f"{name} has shape {tuple(wide.shape)}; pass a covariance (d, d) or vectors (row, d)"
        )
    rows, d = wide.shape
    scale = wide.abs().max() if wide.numel() else wide.new_zeros(())
    eps = input_eps(covariance_or_vectors.dtype)
    if rows == d and bool((wide - wide.T).abs().max() <= 4 * eps * scale):
        values, axes = torch.linalg.eigh((wide + wide.T) / 2)
        values, axes = values.flip(0), axes.flip(1)
        tolerance = d * eps * values.abs().max()
        if float(values[-1]) < -float(tolerance):
            raise InputError(
                f"{name} is symmetric with eigenvalue {float(values[-1]):.3g};"
                " a covariance has none below 0"
            )
        kept = values > tolerance
        factor = values[kept].sqrt()[:, None] * axes[:, kept].T
    else:
        if rows < 2:
            raise InputError(
                f"{name} has {rows} rows; pass at least 2 vectors to take a covariance from"
            )
        centred = wide - wide.mean(dim=0)
        _, singular, axes = torch.linalg.svd(centred, full_matrices=False)
        kept = singular > rank_tolerance(
            torch.linalg.vector_norm(wide), wide.shape, covariance_or_vectors.dtype
        )
        factor = singular[kept, None] * axes[kept] / (rows - 1) ** 0.5
    if not len(factor):
        raise InputError(
            f"{name} of shape {tuple(wide.shape)} has no variance;"
            " pass vectors that differ, or a covariance"
        )
    return factor
