"""Linear algebra of this package: dtypes, rows, numerical rank, orthonormal bases, covariances.

Everything is computed in float64: residual streams have coordinates a thousand times larger than
the rest, and float32 sums lose the small ones. Results come back in float64 if any input was
float64, else in float32; angles and overlaps of subspaces are always float64. Leading axes (layers,
positions) are a batch everywhere but in `gaussian_factor` and
`gaussian_scales`.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.shapes import as_float64, require_ndim, require_same_width

EPS64 = torch.finfo(torch.float64).eps
EPS32 = torch.finfo(torch.float32).eps


def result_dtype(*inputs: Tensor) -> torch.dtype:
    """float64 if any input has it, else float32."""
    has_float64 = any(value.dtype == torch.float64 for value in inputs)
    return torch.float64 if has_float64 else torch.float32


def input_eps(dtype: torch.dtype) -> float:
    """Relative rounding of stored values.

    For 16-bit types that of float32: their values are taken as exact, since a tolerance of 2⁻⁸
    would remove real components.
    """
    return EPS64 if dtype == torch.float64 else EPS32


def rank_tolerance(frobenius: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Singular values at or below this cannot be distinguished from rounding.

    Rounding entries to `dtype` perturbs a matrix by at most eps·‖X‖_F / 2 in norm, and a float64
    SVD by about max(rows, columns)·eps64·‖X‖.
    """
    return frobenius * max(input_eps(dtype), max(shape[-2:]) * EPS64)


def sign_fixed(columns: Float[Tensor, "*batch d k"]) -> Float[Tensor, "*batch d k"]:
    """The same columns with the entry of largest magnitude positive.

    An SVD leaves the sign of each column open; LAPACK's choice differs between builds.
    """
    largest = columns.abs().argmax(dim=-2, keepdim=True)
    signs = torch.sign(columns.gather(-2, largest))
    # a column of zeros stays what it is
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
        index = first_index(norms == 0)
        row = index[0] if len(index) == 1 else index
        raise InputError(f"{name} row {row} {what}; leave it out")
    return norms


def first_index(mask: Tensor) -> tuple[int, ...]:
    """Index of the first True entry, for messages."""
    return tuple(mask.nonzero()[0].tolist())


def in_batch(mask: Tensor) -> str:
    """ " at batch index (…)" of the first True entry; "" without batch axes, for messages."""
    return f" at batch index {first_index(mask)}" if mask.ndim else ""


def _powers_of_two(sizes: Tensor) -> Tensor:
    """2**−e for sizes in [2**(e−1), 2**e): scaling by it rounds nothing."""
    exponents = torch.frexp(sizes).exponent.clamp(-1000, 1000)
    return torch.pow(2.0, -exponents.to(torch.float64))


def orthonormal_basis(
    columns: Float[Tensor, "*batch d k"], name: str
) -> Float[Tensor, "*batch d k"]:
    """Orthonormal float64 basis of the span of full-rank columns, whatever their lengths.

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
    # by the largest entry first, so that the squares in the norm cannot overflow
    unit = wide * _powers_of_two(wide.abs().amax(dim=-2, keepdim=True))
    unit = unit * _powers_of_two(torch.linalg.vector_norm(unit, dim=-2, keepdim=True))
    basis, triangle = torch.linalg.qr(unit)
    # R has the singular values of the columns, and is only (k, k)
    singular = torch.linalg.svdvals(triangle)
    tolerance = rank_tolerance(
        torch.linalg.vector_norm(singular, dim=-1), unit.shape, columns.dtype
    )
    rank = (singular > tolerance[..., None]).sum(dim=-1)
    if int(rank.min()) < k:
        raise InputError(
            f"{name} has {k} columns in {d} dimensions and rank {int(rank.min())}"
            f"{in_batch(rank < k)}; pass independent columns"
        )
    return basis


def gaussian_factor(
    covariance_or_vectors: Float[Tensor, "row d_model"], name: str
) -> Float[Tensor, "rank d_model"]:
    """A float64 factor F with FᵀF the covariance, one row per principal axis, longest first.

    A square symmetric matrix is read as a covariance, anything else as rows of vectors, whose
    sample covariance (centred, n − 1) is used.

    Raises:
        InputError: a symmetric matrix with negative eigenvalues, fewer than two vectors, or no
            variance at all.
    """
    wide = _one_matrix(covariance_or_vectors, name)
    eps = input_eps(covariance_or_vectors.dtype)
    if _is_symmetric(wide, eps):
        factor = _factor_of_covariance(wide, eps, name)
    else:
        factor = _factor_of_vectors(wide, covariance_or_vectors.dtype, name)
    _require_variance(factor, wide, name)
    return factor


def gaussian_scales(
    covariance_or_vectors: Float[Tensor, "row d_model"],
    name: str,
    *,
    about: Literal["mean", "zero"] = "mean",
) -> Float[Tensor, " rank"]:
    """Standard deviations along the principal axes, largest first: lengths of the rows of
    `gaussian_factor`, without the axes.

    Vectors (row, d) cost row² · d, and no (d, d) matrix is formed.

    Args:
        about: of vectors, "mean" reads their covariance (n − 1), "zero" their second moment (n).

    Raises:
        InputError: as `gaussian_factor`.
    """
    wide = _one_matrix(covariance_or_vectors, name)
    eps = input_eps(covariance_or_vectors.dtype)
    if _is_symmetric(wide, eps):
        scales = _variances(torch.linalg.eigvalsh((wide + wide.T) / 2).flip(0), eps, name).sqrt()
    elif about == "zero":
        singular = torch.linalg.svdvals(wide)
        tolerance = _tolerance_of_vectors(wide, covariance_or_vectors.dtype)
        scales = singular[singular > tolerance] / len(wide) ** 0.5
    else:
        centred = _centred(wide, name)
        singular = torch.linalg.svdvals(centred)
        tolerance = _tolerance_of_vectors(wide, covariance_or_vectors.dtype)
        scales = singular[singular > tolerance] / (len(wide) - 1) ** 0.5
    _require_variance(scales, wide, name)
    return scales


def _one_matrix(covariance_or_vectors: Tensor, name: str) -> Tensor:
    """In float64.

    Raises:
        InputError: another number of axes.
    """
    wide = as_float64(covariance_or_vectors, name)
    if wide.ndim != 2:
        raise InputError(
            f"{name} has shape {tuple(wide.shape)}; pass a covariance (d, d) or vectors (row, d)"
        )
    return wide


def _is_symmetric(wide: Tensor, eps: float) -> bool:
    rows, d = wide.shape
    if rows != d:
        return False
    scale = wide.abs().max() if wide.numel() else wide.new_zeros(())
    return bool((wide - wide.T).abs().max() <= 4 * eps * scale)


def _require_variance(found: Tensor, wide: Tensor, name: str) -> None:
    """Raises:
    InputError: nothing was found above rounding.
    """
    if not len(found):
        raise InputError(
            f"{name} of shape {tuple(wide.shape)} has no variance;"
            " pass vectors that differ, or a covariance"
        )


def _factor_of_covariance(covariance: Tensor, eps: float, name: str) -> Tensor:
    """√λ · axisᵀ of the eigenvalues above rounding."""
    # eigh reads one triangle only, so the two are averaged first; it sorts ascending
    values, axes = torch.linalg.eigh((covariance + covariance.T) / 2)
    variances = _variances(values.flip(0), eps, name)
    return variances.sqrt()[:, None] * axes.flip(1)[:, : len(variances)].T


def _variances(eigenvalues: Tensor, eps: float, name: str) -> Tensor:
    """Those above rounding of descending eigenvalues of a (d, d) covariance.

    Raises:
        InputError: one below 0.
    """
    tolerance = len(eigenvalues) * eps * eigenvalues.abs().max()
    if float(eigenvalues[-1]) < -float(tolerance):
        raise InputError(
            f"{name} is symmetric with eigenvalue {float(eigenvalues[-1]):.3g};"
            " a covariance has none below 0"
        )
    return eigenvalues[eigenvalues > tolerance]


def _factor_of_vectors(vectors: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """S Vᵀ / √(n − 1) of the centred rows: their covariance is VS²Vᵀ / (n − 1), never formed."""
    centred = _centred(vectors, name)
    _, singular, axes = torch.linalg.svd(centred, full_matrices=False)
    above_rounding = singular > _tolerance_of_vectors(vectors, dtype)
    return singular[above_rounding, None] * axes[above_rounding] / (len(vectors) - 1) ** 0.5


def _centred(vectors: Tensor, name: str) -> Tensor:
    """Raises:
    InputError: fewer than two vectors.
    """
    rows = len(vectors)
    if rows < 2:
        raise InputError(
            f"{name} has {rows} rows; pass at least 2 vectors to take a covariance from"
        )
    return vectors - vectors.mean(dim=0)


def _tolerance_of_vectors(vectors: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounding happened to the vectors as given, so their norm sets it, before centring."""
    return rank_tolerance(torch.linalg.vector_norm(vectors), vectors.shape, dtype)
