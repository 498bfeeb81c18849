"""Top-k bases of many small samples at once: the building block of nulls that draw or relabel rows.

Vectors are first replaced by their coordinates in the space that they span (`row_coordinates`),
which preserves every inner product: after that nothing costs the width of the residual stream. Then
a basis comes from the smaller of the two Gram matrices (the Gram trick). Gram matrices hold
squares, so a component below 1e-6 of the strongest goes through the SVD instead. Computed in
float64 on the CPU. Memory: stacks are cut so that one holds about 32 MB.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.geometry.linear import EPS64, rank_tolerance
from emlens.geometry.subspaces import centred_rows

STACK = 2**22
"""float64 numbers held at once in one stack of draws."""

SQUARED_FLOOR = 1e-12
"""Eigenvalue of a Gram matrix over its largest, below which a basis is taken from the rows instead.
"""


def require_positive(**counts: int) -> None:
    """Raises:
    InputError: a count is not an integer of 1 or more; the message names it.
    """
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
            raise InputError(f"{name}={count!r} must be an integer of 1 or more")


def one_set(vectors: Tensor, name: str) -> Float[Tensor, "row d"]:
    """One set of vectors in float64, not centred.

    Raises:
        InputError: leading batch axes, no row, values that are not finite.
    """
    rows, _, _ = centred_rows(vectors, False, name)
    if rows.ndim != 2:
        raise InputError(
            f"{name} has shape {tuple(vectors.shape)}; pass one set of vectors, shape (row, d)"
        )
    return rows


def row_coordinates(
    rows: Float[Tensor, "row d"], dtype: torch.dtype = torch.float64
) -> Float[Tensor, "row r"]:
    """The rows in an orthonormal basis of their own span, strongest axis first.

    r is their rank as values of `dtype`. Inner products of rows, and so angles between subspaces
    that rows span, stay as they are. Cost: one SVD.
    """
    left, singular, _ = torch.linalg.svd(rows, full_matrices=False)
    # X = U S Vᵀ: U S has the inner products of X, since V is orthonormal
    above_rounding = singular > rank_tolerance(
        torch.linalg.vector_norm(singular), rows.shape, dtype
    )
    above_rounding[0] = True  # so that vectors without any length have a coordinate, which is 0
    return left[:, above_rounding] * singular[above_rounding]


def stacks(draws: int, numbers: int) -> Iterator[int]:
    """Sizes of the stacks that `draws` are cut into, where each draw holds `numbers` float64s."""
    step = max(1, STACK // max(1, numbers))
    for start in range(0, draws, step):
        yield min(step, draws - start)


def top_bases(
    rows: Float[Tensor, "*batch n r"], k: int, center: bool, name: str
) -> Float[Tensor, "*batch r k"]:
    """Orthonormal bases of the k directions that hold most of each sample's squared norm.

    `center` is a bool here: whether each sample's own mean is taken out first.

    Raises:
        InputError: a sample of rank below k.
    """
    if center:
        rows = rows - rows.mean(dim=-2, keepdim=True)
    n, r = rows.shape[-2:]
    if k <= min(n, r):
        bases = _gram_bases(rows, k)
        if bases is None:
            bases = _svd_bases(rows, k)
        if bases is not None:
            return bases
    raise InputError(
        f"{name}: a sample of {n} vectors has rank below k={k} with center={center};"
        " pass a smaller k, or vectors that differ more"
    )


def _gram_bases(rows: Tensor, k: int) -> Tensor | None:
    """By eigenvectors of the smaller Gram matrix; None where squaring has lost a component."""
    n, r = rows.shape[-2:]
    is_wide = n < r
    gram = rows @ rows.mT if is_wide else rows.mT @ rows
    values, vectors = torch.linalg.eigh(gram)  # ascending: the last k are the strongest
    if not bool((values[..., -k] > SQUARED_FLOOR * values[..., -1]).all()):
        return None
    if is_wide:
        # eigenvectors u of XXᵀ: Xᵀu spans the same directions as those of XᵀX
        return torch.linalg.qr(rows.mT @ vectors[..., -k:]).Q
    return vectors[..., -k:]


def _svd_bases(rows: Tensor, k: int) -> Tensor | None:
    """By the SVD of the rows; None where a sample has rank below k."""
    _, singular, axes = torch.linalg.svd(rows, full_matrices=False)
    rounding = max(rows.shape[-2:]) * EPS64 * torch.linalg.vector_norm(singular, dim=-1)
    if not bool((singular[..., k - 1] > rounding).all()):
        return None
    return axes[..., :k, :].mT


def cosines_between(
    a: Float[Tensor, "*#batch r p"], b: Float[Tensor, "*#batch r q"]
) -> Float[Tensor, "... m"]:
    """Cosines of the principal angles of orthonormal bases, descending; in [0, 1].

    Angles below 1e-8 come out as 0 (cosine 1), which a mean over angles does not notice.
    """
    return torch.linalg.svdvals(a.mT @ b).clamp(max=1.0)
