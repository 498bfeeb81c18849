"""What low-rank weight updates ΔW = s·BA write into, and what they read from.

BA is never formed. An adapter's update maps an input of width d_in to an output of width d_out. The
columns of ΔW span what it can write (for `down_proj` and `o_proj` that is the residual stream), its
rows what it reads. Two QR factorisations bring ΔW to its (r, r) core, whose SVD is that of ΔW:
O((d_in + d_out) r²), no (d_out, d_in) matrix. The split into B and A is a matter of gauge, BM and
M⁻¹A being the same update: nothing here depends on it, while a comparison of B matrices would.
Subspace angles between updates of emergently misaligned fine-tunes: Arturi et al. 2025 (arXiv
2511.02022).
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.notebooks import Brief
from emlens.foundation.shapes import as_float64, require_ndim
from emlens.geometry.angles import principal_angles
from emlens.geometry.linear import in_batch, rank_tolerance, result_dtype, sign_fixed

UpdateSide = Literal["output", "input"]


@dataclass(frozen=True, eq=False, repr=False)
class WeightUpdate(Brief):
    """The SVD of a low-rank update ΔW = left · diag(singular_values) · rightᵀ.

    Args:
        left: what it writes, orthonormal columns (..., d_out, r), strongest first.
        singular_values: descending (..., r).
        right: what it reads, orthonormal columns (..., d_in, r).
        rank: numerical rank, the smallest over a batch; at most r.
    """

    left: Float[Tensor, "*batch d_out r"]
    singular_values: Float[Tensor, "*batch r"]
    right: Float[Tensor, "*batch d_in r"]
    rank: int

    @property
    def norm(self) -> Float[Tensor, "*batch"]:
        """Frobenius norm ‖s·BA‖."""
        return torch.linalg.vector_norm(self.singular_values, dim=-1)

    def basis(self, side: UpdateSide, k: int | None = None) -> Float[Tensor, "*batch d k"]:
        """The k strongest directions that the update writes ("output") or reads ("input").

        All `rank` of them by default; (..., d, k), orthonormal.

        Raises:
            InputError: an unknown side, or k above the rank.
        """
        if side not in get_args(UpdateSide):
            raise InputError(
                f"side={side!r} is unknown;"
                " pass 'output' for what the update writes or 'input' for what it reads",
                name=side,
                known=("output", "input"),
            )
        count = self.rank if k is None else k
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= self.rank:
            raise InputError(
                f"k={k!r} must be an integer from 1 to the rank of the update, {self.rank}"
            )
        axes = self.left if side == "output" else self.right
        return axes[..., :count]


def weight_update(
    a: Float[Tensor, "*batch r d_in"], b: Float[Tensor, "*batch d_out r"], scale: float = 1.0
) -> WeightUpdate:
    """The update of a LoRA adapter from its factors, as PEFT stores them.

    Args:
        a: `lora_A.weight` (..., r, d_in); leading axes (layers) are a batch.
        b: `lora_B.weight` (..., d_out, r).
        scale: α/r, or α/√r with rank-stabilised LoRA. It changes norms and no angle.

    Raises:
        InputError: factors that do not fit, values that are not finite, a scale of zero, or an
            update that is zero.
    """
    require_ndim(a, 2, "a", "the factor A of shape (r, d_in)")
    require_ndim(b, 2, "b", "the factor B of shape (d_out, r)")
    if a.shape[:-2] != b.shape[:-2] or a.shape[-2] != b.shape[-1]:
        raise InputError(
            f"a has shape {tuple(a.shape)} and b {tuple(b.shape)};"
            " pass A (r, d_in) and B (d_out, r) of one adapter"
        )
    if not scale or scale != scale or abs(scale) == float("inf"):
        raise InputError(
            f"scale={scale!r} makes no update; pass alpha / r,"
            " or alpha / sqrt(r) with rank-stabilised LoRA"
        )
    read, write = as_float64(a, "a"), as_float64(b, "b")
    # A = R_inᵀ Q_inᵀ and B = Q_out R_out: the (r, r) core R_out R_inᵀ has the singular values of BA
    q_in, r_in = torch.linalg.qr(read.mT)
    q_out, r_out = torch.linalg.qr(write)
    left, singular, right = torch.linalg.svd(r_out @ r_in.mT, full_matrices=False)
    # two sources of rounding: the float64 product of the factors, and the factors as stored
    size = torch.linalg.matrix_norm(r_out) * torch.linalg.matrix_norm(r_in)
    tolerance = torch.maximum(
        rank_tolerance(size, b.shape, torch.float64),
        rank_tolerance(singular[..., 0], b.shape, result_dtype(a, b)),
    )
    rank = (singular > tolerance[..., None]).sum(dim=-1)
    if int(rank.min()) == 0:
        raise InputError(
            f"the update BA is zero{in_batch(rank == 0)},"
            " as at the start of training; it spans nothing"
        )
    out = result_dtype(a, b)
    write_axes = q_out @ left
    fixed_axes = sign_fixed(write_axes)
    # ±1 per column: left and right have to change sign together, or their product would change
    flips = torch.sign((fixed_axes * write_axes).sum(dim=-2, keepdim=True))
    # singular values are positive, so a negative scale goes into the right axes
    read_axes = (q_in @ right.mT) * flips * (1 if scale > 0 else -1)
    return WeightUpdate(
        left=fixed_axes.to(out),
        singular_values=(singular * abs(scale)).to(out),
        right=read_axes.to(out),
        rank=int(rank.min()),
    )


def weight_update_angles(
    first: WeightUpdate, second: WeightUpdate, *, side: UpdateSide, k: int | None = None
) -> Float[Tensor, "... m"]:
    """Principal angles between what two updates write (or read), ascending, in radians.

    (..., m); range [0, π/2]; invariant to the gauge of the factors and to scales. Adapters are
    low-rank whatever they learned: the null for directions without preference is
    `overlap_null(d, k_a, k_b)`, and the control is the angles of a benign fine-tune.

    Args:
        side: "output" for what they write, "input" for what they read.
        k: strongest directions of each; by default all that they have, whose ranks may differ.
        first: of one module; `second`, of the same module in another adapter.

    Raises:
        InputError: k above a rank, updates of another width, an unknown side.
    """
    return principal_angles(first.basis(side, k), second.basis(side, k))


def weight_update_cosine(first: WeightUpdate, second: WeightUpdate) -> Float[Tensor, "..."]:
    """Cosine between two updates as vectors of weights: tr(ΔW₁ᵀΔW₂)/(‖ΔW₁‖ ‖ΔW₂‖).

    Range [−1, 1]; invariant to the gauge of the factors and to positive scales.

    Raises:
        InputError: updates of other shapes.
    """
    first_shape = (first.left.shape[-2], first.right.shape[-2])
    second_shape = (second.left.shape[-2], second.right.shape[-2])
    if first_shape != second_shape:
        raise InputError(
            f"the updates have shapes {first_shape} and {second_shape};"
            " pass updates of the same module"
        )
    # tr(ΔW₁ᵀΔW₂) = Σ_ij σ_i σ_j (u_i·u_j)(v_i·v_j)
    written = first.left.to(torch.float64).mT @ second.left.to(torch.float64)
    read = first.right.to(torch.float64).mT @ second.right.to(torch.float64)
    weights = (
        first.singular_values.to(torch.float64)[..., :, None]
        * second.singular_values.to(torch.float64)[..., None, :]
    )
    scale = first.norm.to(torch.float64) * second.norm.to(torch.float64)
    cosine = (written * read * weights).sum(dim=(-2, -1)) / scale
    return cosine.clamp(-1.0, 1.0).to(result_dtype(first.left, second.left))
