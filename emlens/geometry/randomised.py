"""The strongest directions of a large matrix by randomised block Krylov iteration, with a bound.

For one (row, d) matrix whose exact SVD takes minutes and of which a few directions are wanted. A
Gaussian sketch of the rows' space starts the iteration (Halko, Martinsson & Tropp 2011). Every
further block is where AᵀA leads from the last, and all blocks stay in the basis (Musco & Musco
2015), so that the error falls faster than with power iterations on one block. It stops at a bound
of the error, not at a number of passes (Wedin 1972):

    sin θ_max ≤ ‖Aᵀû_i − σ̂_i v̂_i‖_F over i ≤ k, divided by σ̂_k − σ_{k+1}

(Av̂_i = σ̂_i û_i holds exactly.) Of σ_{k+1} the iteration knows σ̂_{k+1} and a residual within
which *an* exact singular value lies; σ̂_{k+1} plus that residual takes its place. So the bound is a
theorem unless that was not yet the (k+1)-th; `docs/evidence/randomised_svd.json` counts how often
it failed, at loose and at tight tolerances. A matrix without a gap at k has no top-k subspace: that
is refused and not answered by an arbitrary one.

Cost: two passes over the matrix per block of k + 8 columns, usually 5 to 10 blocks; memory (row +
2 d) × columns in the basis.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.notebooks import Brief
from emlens.foundation.seeds import torch_rng
from emlens.geometry.components import above_rank

_OVERSAMPLING = 8  # Halko, Martinsson & Tropp recommend 5 to 10
_BLOCKS = 40  # blocks after which a spectrum counts as one without a gap
_NOISE = 64 * torch.finfo(torch.float64).eps  # relative to the largest singular value


@dataclass(frozen=True, eq=False, repr=False)
class LeadingDirections(Brief):
    """The strongest right singular directions of a matrix, and how far from exact they can be.

    Args:
        axes: orthonormal columns (d, k), strongest first.
        singular_values: their singular values (k,), never above the true ones.
        bound: the sine of the largest angle to the exact subspace is at most this.
        rank: directions above rounding in the basis of the iteration, at most the true rank.
    """

    axes: Float[Tensor, "d k"]
    singular_values: Float[Tensor, " k"]
    bound: float
    rank: int


class _Krylov:
    """Orthonormal Q and P with AQ = PS, S small, and AᵀP: block Golub–Kahan bidiagonalisation.

    Each side is orthogonal to all of itself. Going forth and back through orthonormal bases, and
    not through powers of AᵀA, resolves singular values down to 1e-13 of the largest instead of
    1e-7: powers would square the spectrum.
    """

    def __init__(self, matrix: Tensor) -> None:
        n, d = matrix.shape
        self.matrix = matrix
        self.right = matrix.new_zeros(d, 0)  # Q
        self.left = matrix.new_zeros(n, 0)  # P
        self.core = matrix.new_zeros(0, 0)  # S
        self.back = matrix.new_zeros(d, 0)  # AᵀP

    def new_directions(self, candidates: Tensor, floor: float) -> Tensor:
        """Orthonormal directions of the candidates outside Q.

        No column where all that remains outside is at or below `floor`.
        """
        outside, _ = _outside(candidates, self.right)
        axes, sizes, _ = torch.linalg.svd(outside, full_matrices=False)
        room = min(self.matrix.shape) - self.right.shape[1]
        axes = axes[:, sizes > floor][:, :room]
        # projecting once leaves a rounding error along Q that would grow; twice is enough
        return torch.linalg.qr(_outside(axes, self.right)[0]).Q

    def extend(self, block: Tensor) -> Tensor:
        """Add a block of right directions; returns AᵀP of the left directions that it adds."""
        image, coordinates = _outside(self.matrix @ block, self.left)
        left, triangle = torch.linalg.qr(image)
        back = self.matrix.T @ left
        # S grows by a block column: A·block in the old P above, its new part (R of the QR) below
        zeros = self.core.new_zeros(block.shape[1], self.core.shape[1])
        above = torch.cat([self.core, coordinates], dim=1)
        below = torch.cat([zeros, triangle], dim=1)
        self.core = torch.cat([above, below], dim=0)
        self.right = torch.cat([self.right, block], dim=1)
        self.left = torch.cat([self.left, left], dim=1)
        self.back = torch.cat([self.back, back], dim=1)
        return back

    def triplets(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """All singular values of AQ; of the first `count` the axes and the residual lengths.

        The residual of a triplet is Aᵀû − σ̂v̂.
        """
        left, singular, right = torch.linalg.svd(self.core)
        axes = self.right @ right[:count].T
        residuals = self.back @ left[:, :count] - axes * singular[:count]
        return singular, axes, torch.linalg.vector_norm(residuals, dim=0)


def _outside(columns: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Columns less their part in an orthonormal basis, and the coordinates of that part."""
    coordinates = basis.T @ columns
    return columns - basis @ coordinates, coordinates


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
    rng = torch_rng(seed, "randomised subspace", n, d, k)
    start = torch.randn(n, size, dtype=torch.float64, generator=rng)
    krylov = _Krylov(matrix)
    rank, bound = 0, float("inf")
    singular = axes = residuals = matrix.new_zeros(0)
    block = krylov.new_directions(matrix.T @ start.to(matrix.device), floor * size**0.5)
    for _ in range(_BLOCKS):
        # Nothing new to add: the basis holds every direction of the rows, up to k + 8 directions
        # that share one singular value.
        is_complete = block.shape[1] == 0
        if not is_complete:
            back = krylov.extend(block)
            singular, axes, residuals = krylov.triplets(k + 1)
            rank = int((singular > floor).sum())
            is_complete = krylov.right.shape[1] == min(n, d)
        if rank >= k and (is_complete or len(singular) > k):
            bound = _angle_bound(singular, residuals, k, floor)
            if bound <= tolerance:
                return LeadingDirections(axes[:, :k], singular[:k], bound, rank)
        if is_complete:
            break
        block = krylov.new_directions(back, _NOISE * float(singular[0]))
    if rank < k:
        raise above_rank(k, n, rank, kind)
    next_singular = float(singular[k]) if len(singular) > k else 0.0
    raise InputError(
        f"the top {k} directions are known to a sine of {bound:.2g} only and not to"
        f" tolerance={tolerance:g}: singular values {k} and {k + 1} are"
        f" {float(singular[k - 1]):.6g} and {next_singular:.6g};"
        " pass a k with a gap after it, a larger tolerance, or method='exact'"
    )


def _angle_bound(singular: Tensor, residuals: Tensor, k: int, floor: float) -> float:
    """Wedin's bound on the sine of the largest angle, rounding included; infinite without a gap."""
    upper = 0.0  # of σ_{k+1}
    if len(singular) > k:
        upper = float(singular[k] + residuals[k])
    gap = float(singular[k - 1]) - upper
    if gap <= floor:
        return float("inf")
    residual = float(torch.linalg.vector_norm(residuals[:k]))
    return min(1.0, (residual + _NOISE * float(singular[0])) / gap)
