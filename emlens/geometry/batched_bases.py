"""Top-k bases of many small samples at once: what every null made of drawn or re-divided rows is
built from.

Vectors are first replaced by their coordinates in the space that they span (`row_coordinates`),
which keeps every inner product: after that nothing costs the width of the residual stream. Then a
basis comes from the smaller of the two Gram matrices. Gram matrices hold squares, so a component
below 1e-6 of the strongest goes through the SVD instead. Computed in float64 on the CPU. Memory:
stacks are cut so that one holds about 32 MB.
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
    """One set of vectors in float64, nothing taken out.

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
    """The rows in an orthonormal basis of their own span, strongest axis first; r is their rank as
    values of `dtype`.

    Inner products of rows, and so angles between subspaces that rows span, stay as they are. Cost:
    one SVD.
    """
    left, singular, _ = torch.linalg.svd(rows, full_matrices=False)
    kept = singular > rank_tolerance(torch.linalg.vector_norm(singular), rows.shape, dtype)
    kept[0] = True  # so that vectors without any length have a coordinate, which is 0
    return left[:, kept] * singular[kept]


def stacks(draws: int, numbers: int) -> Iterator[int]:
    """Sizes of the stacks that `draws` are cut into, each draw holding so many float64 numbers."""
    step = max(1, STACK // max(1, numbers))
    for start in range(0, draws, step):
        yield min(step, draws - start)


def top_bases(
    rows: Float[Tensor, "*batch n r"], k: int, center: bool, name: str
) -> Float[Tensor, "*batch r k"]:
    """Orthonormal bases of the k directions that hold most of each sample's squared norm (about its
    mean: `center`).

    Raises:
        InputError: a sample of rank below k.
    """
    if center:
        rows = rows - rows.mean(dim=-2, keepdim=True)
    n, r = rows.shape[-2:]
    if k <= min(n, r):
        values, vectors = torch.linalg.eigh(rows @ rows.mT if n < r else rows.mT @ rows)
        if bool((values[..., -k] > SQUARED_FLOOR * values[..., -1]).all()):
            return torch.linalg.qr(rows.mT @ vectors[..., -k:]).Q if n < r else vectors[..., -k:]
        _, singular, axes = torch.linalg.svd(rows, full_matrices=False)
        if bool(
            (
                singular[..., k - 1]
                > max(n, r) * EPS64 * torch.linalg.vector_norm(singular, dim=-1)
            ).all()
        ):
            return axes[..., :k, :].mT
    raise InputError(
        f"{name}: a sample of {n} vectors has rank below k={k} with center={center};"
        " pass a smaller k, or vectors that differ more"
    )


def cosines_between(
    a: Float[Tensor, "*#batch r p"], b: Float[Tensor, "*#batch r q"]
) -> Float[Tensor, "... m"]:
    """Cosines of the principal angles of orthonormal bases, descending. Angles below 1e-8 are seen
    as 0.
    """
    return torch.linalg.svdvals(a.mT @ b).clamp(max=1.0)
