"""What each prompt's shift shares with the training shifts: the per-prompt quantities of arXiv 2606.20814.

A delta is δ = after − before of one prompt. V and μ come from a `Subspace` fitted to *training* rows. Names are the
paper's. All return one number a row; a row without length (or that equals μ, where μ is taken out) has no such number
and is an error that names it. float64 inside; float64 out for float64 in, else float32.

The released code divides ‖P_V(δ − μ)‖ by ‖δ‖ in one of its columns ("projection fraction raw" with centring on), which
is no fraction of one vector and can exceed 1; it is not offered here.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.shapes import as_float64, require_ndim, require_same_width
from emlens.geometry.linear import result_dtype
from emlens.geometry.subspaces import Subspace


def _rows(vectors: Tensor, name: str, width: Tensor, other: str) -> Tensor:
    require_ndim(vectors, 2, name, "rows of vectors, shape (row, d)")
    require_same_width(vectors, width, name, other)
    return as_float64(vectors, name)


def _lengths(rows: Tensor, name: str, what: str) -> Tensor:
    norms = torch.linalg.vector_norm(rows, dim=-1)
    if bool((norms == 0).any()):
        index = tuple(int(i) for i in (norms == 0).nonzero()[0])
        raise InputError(f"{name} row {index[0] if len(index) == 1 else index} {what}; leave it out")
    return norms


def _fraction(moved: Tensor, space: Subspace, name: str, what: str) -> Tensor:
    inside = torch.linalg.vector_norm(moved @ space.basis.to(torch.float64), dim=-1)
    return (inside / _lengths(moved, name, what)).clamp(max=1.0)


def projection_fraction(
    deltas: Float[Tensor, "*batch row d"], space: Subspace, *, centred: bool
) -> Float[Tensor, "*batch row"]:
    """‖P_V δ‖/‖δ‖ (raw), or ‖P_V(δ − μ)‖/‖δ − μ‖ with the training mean μ = `space.mean` taken out (centred).

    Range [0, 1]; isotropic deltas give about √(k/d). Raw is invariant to scaling. Its square is the explained ℓ2
    fraction, and √(1 − square) the residual fraction.

    Raises:
        InputError: another width, values that are not finite, a delta that is zero (or equals μ where centred).
    """
    rows = _rows(deltas, "deltas", space.mean, "the subspace")
    moved = rows - space.mean.to(torch.float64)[..., None, :] if centred else rows
    what = "equals the mean of the subspace" if centred else "is zero"
    return _fraction(moved, space, "deltas", what).to(result_dtype(deltas, space.basis))


def prompt_overlap(x: Float[Tensor, "*batch row d"], space: Subspace) -> Float[Tensor, "*batch row"]:
    """‖P_V(x − μ)‖/‖x − μ‖ for activations x *before* fine-tuning, V and μ from training prompts' before activations.

    Range [0, 1]. Its control is a random subspace of the same k about the same μ. Before activations also enter every
    delta, so a correlation of this with shift quantities needs the controls of a shared part.

    Raises:
        InputError: another width, values that are not finite, a row that equals μ.
    """
    moved = _rows(x, "x", space.mean, "the subspace") - space.mean.to(torch.float64)[..., None, :]
    return _fraction(moved, space, "x", "equals the mean of the subspace").to(result_dtype(x, space.basis))


def reconstruction_cosine(deltas: Float[Tensor, "*batch row d"], space: Subspace) -> Float[Tensor, "*batch row"]:
    """Cosine between δ and its reconstruction μ + P_V(δ − μ).

    Range [-1, 1] (never negative where μ = 0). With an uncentred space it is the raw projection fraction; as k grows it
    starts from the cosine to the mean training delta.

    Raises:
        InputError: another width, values that are not finite, a delta or a reconstruction that is zero.
    """
    rows = _rows(deltas, "deltas", space.mean, "the subspace")
    basis, mean = space.basis.to(torch.float64), space.mean.to(torch.float64)[..., None, :]
    rebuilt = mean + ((rows - mean) @ basis) @ basis.mT
    scale = _lengths(rows, "deltas", "is zero") * _lengths(rebuilt, "deltas", "has a reconstruction of zero")
    return ((rows * rebuilt).sum(dim=-1) / scale).clamp(-1.0, 1.0).to(result_dtype(deltas, space.basis))


def cosine_to_mean(
    deltas: Float[Tensor, "*batch row d"], reference: Float[Tensor, "*batch d"]
) -> Float[Tensor, "*batch row"]:
    """Cosine between each delta and a reference vector, for the paper the mean *training* delta.

    Range [-1, 1]; blind to lengths.

    Raises:
        InputError: another width, values that are not finite, a zero delta or a zero reference.
    """
    require_ndim(reference, 1, "reference", "a vector of shape (d,), such as the mean training delta")
    rows = _rows(deltas, "deltas", reference, "reference")
    mean = as_float64(reference, "reference")
    if bool((torch.linalg.vector_norm(mean, dim=-1) == 0).any()):
        raise InputError("reference is zero and so has no direction; pass the mean of training deltas")
    scale = _lengths(rows, "deltas", "is zero") * torch.linalg.vector_norm(mean, dim=-1)[..., None]
    return ((rows * mean[..., None, :]).sum(dim=-1) / scale).clamp(-1.0, 1.0).to(result_dtype(deltas, reference))


def components_above_rounding(deltas: Float[Tensor, "row d"], before: Float[Tensor, "other d"]) -> int:
    """How many centred components of deltas stand above the rounding of the activations they are differences of.

    The floor is 4 ε‖before‖ (Frobenius), ε of the dtype of `before`, which must be the one the activations were kept in.
    A rank-1 adapter shifts its own block by one component; what is left beside it is rounding and must not be compared.

    Raises:
        InputError: another width, values that are not finite.
    """
    rows, held = _rows(deltas, "deltas", before, "before"), _rows(before, "before", deltas, "deltas")
    floor = 4 * torch.finfo(before.dtype).eps * float(torch.linalg.vector_norm(held))
    return int((torch.linalg.svdvals(rows - rows.mean(dim=0)) > floor).sum())


@dataclass(frozen=True, eq=False)
class DeltaSummary:
    """How far and how consistently one set of deltas moves.

    Args:
        norms: length of each delta (row,).
        cosines: cosine of each delta to the set's own mean (row,); biased upwards, since each row is part of the mean.
        mean_norm: length of the mean delta.
        rms_norm: root mean square length.
        n: number of deltas.
    """

    norms: Float[Tensor, " row"]
    cosines: Float[Tensor, " row"]
    mean_norm: float
    rms_norm: float
    n: int

    @property
    def common_share(self) -> float:
        """Share of the mean squared length that the mean delta explains, in [0, 1]; about 1/n if nothing is common."""
        return (self.mean_norm / self.rms_norm) ** 2


def delta_summary(deltas: Float[Tensor, "row d"]) -> DeltaSummary:
    """Lengths of deltas, and how well they agree with their mean.

    Raises:
        InputError: no row, values that are not finite, a zero delta, or a mean of zero.
    """
    require_ndim(deltas, 2, "deltas", "rows of vectors, shape (row, d)")
    rows = as_float64(deltas, "deltas")
    if rows.ndim != 2 or rows.shape[0] == 0:
        raise InputError(f"deltas has shape {tuple(rows.shape)}; pass one set of at least one delta, shape (row, d)")
    norms, mean = _lengths(rows, "deltas", "is zero"), rows.mean(dim=0)
    if not bool((mean != 0).any()):
        raise InputError("deltas have mean zero, so no cosine to their mean exists")
    out = result_dtype(deltas)
    return DeltaSummary(
        norms=norms.to(out),
        cosines=cosine_to_mean(rows, mean).to(out),
        mean_norm=float(torch.linalg.vector_norm(mean)),
        rms_norm=float(norms.square().mean().sqrt()),
        n=len(rows),
    )
