"""The strongest directions of a large matrix by randomised block Krylov iteration, with a bound on
their error.

For one (row, d) matrix whose exact SVD takes minutes and of which a few directions are wanted. A
Gaussian sketch of the rows' space starts the iteration (Halko, Martinsson & Tropp 2011); every
further block is where AᵀA leads from the last, and all of them are kept (Musco & Musco 2015), so
that the error falls faster than with power iterations on one block. It stops at a bound, not at a
number of passes:

    sin θ_max ≤ ‖Aᵀû_i − σ̂_i v̂_i‖_F over i ≤ k, divided by σ̂_k − σ_{k+1}      (Wedin 1972; Av̂_i
    = σ̂_i û_i holds exactly)

Of σ_{k+1} the iteration knows σ̂_{k+1} and a residual within which *an* exact singular value lies;
σ̂_{k+1} plus that residual takes its place. So the bound is a theorem unless that was not yet the
(k+1)-th; `docs/evidence/randomised_svd.json` counts how often it failed, at loose and at tight
tolerances. A matrix without a gap at k has no top-k subspace: that is refused and not answered by
an arbitrary one.

Cost: two passes over the matrix a block of k + 8 columns, usually 5 to 10 blocks; memory (row + 2
d) × columns kept.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.seeds import torch_rng
from emlens.geometry.components import above_rank

_OVERSAMPLING = 8  # Halko, Martinsson & Tropp recommend 5 to 10
_BLOCKS = 40
_NOISE = 64 * torch.finfo(torch.float64).eps


@dataclass(frozen=True, eq=False)
class LeadingDirections:
    """What the iteration found.

    Args:
        axes: orthonormal columns (d, k), strongest first.
        singular_values: their singular values (k,), never above the true ones.
        bound: the sine of the largest angle to the exact subspace is at most this.
        found: directions above rounding that the iteration has met, at most the rank.
    """

    axes: Float[Tensor, "d k"]
    singular_values: Float[Tensor, " k"]
    bound: float
    found: int


class _Krylov:
    """Orthonormal Q and P with AQ = PS, S small, and AᵀP: block Golub–Kahan, each side orthogonal
    to all of itself.

    Going forth and back through orthonormal bases, and not through powers of AᵀA, keeps directions
    of singular values down to 1e-13 of the largest instead of 1e-7.
    """

    def __init__(self, matrix: Tensor) -> None:
        n, d = matrix.shape
        self.matrix = matrix
        self.right, self.left = matrix.new_zeros(d, 0), matrix.new_zeros(n, 0)
        self.core, self.back = matrix.new_zeros(0, 0), matrix.new_zeros(d, 0)

    def new_directions(self, candidates: Tensor, floor: float) -> Tensor:
        """Orthonormal directions of the candidates outside Q; none where all that is left is below
        `floor`.
        """
        outside, _ = _outside(candidates, self.right)
        axes, sizes, _ = torch.linalg.svd(outside, full_matrices=False)
        axes = axes[:, sizes > floor][:, : min(self.matrix.shape) - self.right.shape[1]]
        return torch.linalg.qr(_outside(axes, self.right)[0]).Q

    def extend(self, block: Tensor) -> Tensor:
        """Take a block of right directions in; returns where Aᵀ leads from what they add on the
        left.
        """
        image, known = _outside(self.matrix @ block, self.left)
        left, triangle = torch.linalg.qr(image)
        back = self.matrix.T @ left
        size = block.shape[1]
        below = torch.cat([self.core.new_zeros(size, self.core.shape[1]), triangle], dim=1)
        self.core = torch.cat([torch.cat([self.core, known], dim=1), below], dim=0)
        self.right, self.left = (
            torch.cat([self.right, block], dim=1),
            torch.cat([self.left, left], dim=1),
        )
        self.back = torch.cat([self.back, back], dim=1)
        return back

    def triplets(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """All singular values of AQ, and the axes and the residual lengths of the first `count` of
        them.
        """
        left, singular, right = torch.linalg.svd(self.core)
        axes, sizes = self.right @ right[:count].T, singular[:count]
        residuals = self.back @ left[:, :count] - axes * sizes
        return singular, axes, torch.linalg.vector_norm(residuals, dim=0)


def _outside(columns: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Columns less their part in an orthonormal basis, and the coordinates of that part."""
    inside = basis.T @ columns
    return columns - basis @ inside, inside


def leading_directions(
    matrix: Float[Tensor, "row d"], k: int, *, tolerance: float, floor: float, seed: int, kind: str
) -> LeadingDirections:
    """The k strongest right singular directions, to an angle whose sine is at most `tolerance`.

    Args:
        matrix: float64, already centred.
        floor: singular values at or below this are rounding.
        kind: how it was centred, for the message.

    Raises:
        InputError: fewer than k directions above rounding (the message says the rank), or the bound
            does not come down to `tolerance`, which a spectrum without a gap at k causes.
    """
    n, d = matrix.shape
    size = min(k + _OVERSAMPLING, n, d)
    start = torch.randn(
        n, size, dtype=torch.float64, generator=torch_rng(seed, "randomised subspace", n, d, k)
    )
    space, found, bound = _Krylov(matrix), 0, float("inf")
    singular = axes = residuals = matrix.new_zeros(0)
    block = space.new_directions(matrix.T @ start.to(matrix.device), floor * size**0.5)
    for _ in range(_BLOCKS):
        # nothing new: the space holds every direction of the rows, up to k + 8 of one singular
        # value
        whole = block.shape[1] == 0
        if not whole:
            back = space.extend(block)
            singular, axes, residuals = space.triplets(k + 1)
            found = int((singular > floor).sum())
            whole = space.right.shape[1] == min(n, d)
        if found >= k and (whole or len(singular) > k):
            bound = _angle_bound(singular, residuals, k, floor)
            if bound <= tolerance:
                return LeadingDirections(axes[:, :k], singular[:k], bound, found)
        if whole:
            break
        block = space.new_directions(back, _NOISE * float(singular[0]))
    if found < k:
        raise above_rank(k, n, found, kind)
    following = float(singular[k]) if len(singular) > k else 0.0
    raise InputError(
        f"the top {k} directions are known to a sine of {bound:.2g} only and not to"
        f" tolerance={tolerance:g}: singular values {k} and {k + 1} are"
        f" {float(singular[k - 1]):.6g} and {following:.6g};"
        " pass a k with a gap behind it, a larger tolerance, or method='exact'"
    )


def _angle_bound(singular: Tensor, residuals: Tensor, k: int, floor: float) -> float:
    """Wedin's bound on the sine of the largest angle, rounding of the residuals included; infinite
    without a gap.
    """
    following = float(singular[k] + residuals[k]) if len(singular) > k else 0.0
    gap = float(singular[k - 1]) - following
    if gap <= floor:
        return float("inf")
    return min(
        1.0, (float(torch.linalg.vector_norm(residuals[:k])) + _NOISE * float(singular[0])) / gap
    )
