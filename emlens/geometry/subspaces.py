"""The subspace that a set of vectors spans most strongly, by exact SVD.

Whether the mean is taken out is always the caller's word (`center` has no default): centring removes the common shift
that fine-tuning makes, and not centring lets it dominate; studies report both. Asking for more components than the
vectors' numerical rank is an error, never a basis padded with noise. Computed in float64; results are float64 for
float64 input and float32 otherwise. Cost: one SVD of (row, d), about 2·row·d·min(row, d) operations a batch entry.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.shapes import as_float64, require_ndim, require_same_width
from emlens.geometry.linear import rank_tolerance, result_dtype, sign_fixed

Center = bool | Literal["mean"] | Tensor
"""True or "mean": the vectors' own mean is taken out; False: nothing is; a vector: that one is."""


@dataclass(frozen=True, eq=False)
class Subspace:
    """A k-dimensional subspace fitted to vectors.

    Args:
        basis: orthonormal columns (..., d, k), strongest first, each with its largest entry positive.
        singular_values: of the (centred) vectors, all of them, descending (..., min(row, d)).
        explained_variance_ratio: share of the total squared norm about `mean` along each basis vector (..., k).
        mean: the vector taken out before fitting (..., d); zeros where `center` is "none".
        n: vectors fitted, a batch entry.
        rank: numerical rank of the (centred) vectors; the smallest over a batch.
        center: "mean", "none" or "given".
    """

    basis: Float[Tensor, "*batch d k"]
    singular_values: Float[Tensor, "*batch s"]
    explained_variance_ratio: Float[Tensor, "*batch k"]
    mean: Float[Tensor, "*batch d"]
    n: int
    rank: int
    center: str

    @property
    def d_model(self) -> int:
        return self.basis.shape[-2]

    @property
    def k(self) -> int:
        return self.basis.shape[-1]

    def coordinates(self, x: Float[Tensor, "*batch row d"]) -> Float[Tensor, "*batch row k"]:
        """Coordinates of x − mean in the basis.

        Raises:
            InputError: x has another width, or is not finite.
        """
        require_ndim(x, 2, "x", "rows of vectors, shape (row, d)")
        require_same_width(x, self.mean, "x", "the subspace")
        moved = as_float64(x, "x") - self.mean.to(torch.float64)[..., None, :]
        return (moved @ self.basis.to(torch.float64)).to(result_dtype(x, self.basis))

    def project(self, x: Float[Tensor, "*batch row d"]) -> Float[Tensor, "*batch row d"]:
        """The part of x − mean that lies in the subspace (the mean is not added back).

        Raises:
            InputError: x has another width, or is not finite.
        """
        inside = self.coordinates(x.to(torch.float64)) @ self.basis.to(torch.float64).mT
        return inside.to(result_dtype(x, self.basis))


def centred_rows(
    vectors: Float[Tensor, "*batch row d"], center: Center, name: str = "vectors"
) -> tuple[Float[Tensor, "*batch row d"], Float[Tensor, "*batch d"], str]:
    """float64 rows with the chosen mean taken out, that mean, and which it was ("mean", "none", "given").

    Raises:
        InputError: no row, values that are not finite, or an unusable `center`.
    """
    require_ndim(vectors, 2, name, "rows of vectors, shape (row, d)")
    wide = as_float64(vectors, name)
    if wide.shape[-2] == 0 or wide.shape[-1] == 0:
        raise InputError(f"{name} has shape {tuple(vectors.shape)}; pass at least one vector with one coordinate")
    if isinstance(center, Tensor):
        require_ndim(center, 1, "center", "a vector of shape (d,)")
        require_same_width(vectors, center, name, "center")
        mean, kind = as_float64(center, "center").expand(*wide.shape[:-2], wide.shape[-1]), "given"
    elif center is True or (isinstance(center, str) and center == "mean"):
        mean, kind = wide.mean(dim=-2), "mean"
    elif center is False:
        return wide, wide.new_zeros(*wide.shape[:-2], wide.shape[-1]), "none"
    else:
        raise InputError(f"center={center!r} is unknown; pass True or 'mean', False, or the vector to take out")
    return wide - mean[..., None, :], mean, kind


def _component_count(k: int | float, squares: Tensor, rank: int, n: int, kind: str) -> int:
    if isinstance(k, float) and 0 < k < 1:
        if squares.ndim > 1:
            raise InputError(
                f"k={k} asks for a share of variance, which differs over a batch; pass a count, or one matrix"
            )
        if rank == 0:
            raise InputError(f"the {n} vectors have rank 0 with center={kind!r}, so no share of variance exists")
        share = torch.cumsum(squares, 0) / squares.sum()
        return min(int((share < k * (1 - 1e-12)).sum()) + 1, rank)
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InputError(f"k={k!r} must be a count of 1 or more, or a share of variance between 0 and 1 such as .95")
    if k > rank:
        raise InputError(
            f"k={k} is above the rank: the {n} vectors have rank {rank} with center={kind!r}; pass k <= {rank}"
        )
    return k


def top_k_subspace(vectors: Float[Tensor, "*batch row d"], k: int | float, *, center: Center) -> Subspace:
    """The k directions that hold most of the vectors' squared norm about `center`.

    Args:
        vectors: rows (..., row, d); leading axes are a batch, one subspace each.
        k: how many; or a share of variance in (0, 1): the fewest components that reach it (no batch then).
        center: True or "mean", False, or a vector to take out.

    Method: exact SVD (LAPACK) of the centred rows in float64. Rank counts singular values above rounding: eps of the
    input's type times the Frobenius norm *before* centring. Invariant to the
    order of rows and to scaling; rotates with the rows.

    Raises:
        InputError: `k` above the numerical rank (the message says the rank), values that are not finite, an
            unusable `k` or `center`.
    """
    rows, mean, kind = centred_rows(vectors, center)
    _, singular, axes = torch.linalg.svd(rows, full_matrices=False)
    before = torch.linalg.vector_norm(as_float64(vectors, "vectors"), dim=(-2, -1))
    scale = torch.maximum(before, torch.linalg.vector_norm(rows, dim=(-2, -1)))
    tolerance = rank_tolerance(scale, rows.shape, vectors.dtype)
    rank = int((singular > tolerance[..., None]).sum(dim=-1).min())
    squares = singular**2
    count = _component_count(k, squares, rank, rows.shape[-2], kind)
    out = result_dtype(vectors)
    return Subspace(
        basis=sign_fixed(axes[..., :count, :].mT).to(out),
        singular_values=singular.to(out),
        explained_variance_ratio=(squares[..., :count] / squares.sum(dim=-1, keepdim=True)).to(out),
        mean=mean.to(out),
        n=rows.shape[-2],
        rank=rank,
        center=kind,
    )


def variance_captured(vectors: Float[Tensor, "*batch row d"], space: Subspace) -> Float[Tensor, "*batch"]:
    """Share of the vectors' squared norm about `space.mean` that lies in the subspace.

    Range [0, 1]: for the vectors it was fitted to, the sum of `explained_variance_ratio`; for isotropic vectors k/d.
    Invariant to scaling and common rotation about the mean.

    Raises:
        InputError: another width, values that are not finite, or vectors that all equal the mean.
    """
    require_ndim(vectors, 2, "vectors", "rows of vectors, shape (row, d)")
    require_same_width(vectors, space.mean, "vectors", "the subspace")
    moved = as_float64(vectors, "vectors") - space.mean.to(torch.float64)[..., None, :]
    total = (moved**2).sum(dim=(-2, -1))
    if bool((total == 0).any()):
        raise InputError("vectors all equal the mean of the subspace, so they have no variance to capture")
    inside = moved @ space.basis.to(torch.float64)
    return ((inside**2).sum(dim=(-2, -1)) / total).clamp(max=1.0).to(result_dtype(vectors, space.basis))
