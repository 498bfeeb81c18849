"""What each prompt's shift shares with the training shifts, per prompt (arXiv 2606.20814).

A delta is δ = after − before of one prompt. V and μ come from a `Subspace` fitted to *training*
rows; P = VVᵀ. All return one number per row, with leading batch axes; a row without length (or that
equals μ, where μ is taken out) has no such number and is an error that names it. float64 inside;
float64 out for float64 in, else float32.

| quantity | raw | centred | range |
|---|---|---|---|
| projection fraction | ‖Pδ‖/‖δ‖ | ‖P(δ − μ)‖/‖δ − μ‖ | [0, 1] |
| residual fraction | ‖δ − δ̂‖/‖δ‖ | ‖δ − δ̂‖/‖δ − μ‖ | [0, ∞) raw, [0, 1] centred |
| explained ℓ2 | 1 − residual fraction² | the same | (−∞, 1] raw, [0, 1] centred |
| reconstruction cosine | cos(δ, δ̂) | – | [−1, 1] |

δ̂ = μ + P(δ − μ) is the reconstruction. All are invariant to a common rotation, to a common
scaling, and to the basis of the subspace. With an uncentred subspace (μ = 0) raw and centred
coincide, and explained ℓ2 = projection fraction². The columns of the released files differ in
places: `emlens.replication`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.geometry.linear import result_dtype, row_lengths, rows_of
from emlens.geometry.subspaces import Subspace

_EQUAL = "equals the mean of the subspace"


def _centred(vectors: Tensor, space: Subspace, name: str) -> tuple[Tensor, Tensor]:
    """float64 rows, and the same rows with μ taken out."""
    rows = rows_of(vectors, name, space.mean, "the subspace")
    return rows, rows - space.mean.to(torch.float64)[..., None, :]


def _inside(centred: Tensor, space: Subspace) -> Tensor:
    """P(δ − μ)."""
    basis = space.basis.to(torch.float64)
    # V(Vᵀx) costs k·d per row; P = VVᵀ would be a (d, d) matrix
    return (centred @ basis) @ basis.mT


def _fraction(rows: Tensor, space: Subspace, name: str, what: str) -> Tensor:
    """‖Px‖/‖x‖; ‖Vᵀx‖ = ‖Px‖, since V is orthonormal."""
    inside = torch.linalg.vector_norm(rows @ space.basis.to(torch.float64), dim=-1)
    return (inside / row_lengths(rows, name, what)).clamp(max=1.0)


def projection_fraction(
    deltas: Float[Tensor, "*batch row d"], space: Subspace, *, centred: bool
) -> Float[Tensor, "*batch row"]:
    """Share of a delta's length that lies in the subspace; range [0, 1].

    ‖Pδ‖/‖δ‖ (raw), or ‖P(δ − μ)‖/‖δ − μ‖ with the training mean μ = `space.mean` taken out
    (`centred=True`). Isotropic deltas give about √(k/d). Raw is invariant to scaling of each row.

    Raises:
        InputError: another width, values that are not finite, a delta that is zero (or equals μ
            where centred).
    """
    rows, centred_rows = _centred(deltas, space, "deltas")
    if centred:
        fraction = _fraction(centred_rows, space, "deltas", _EQUAL)
    else:
        fraction = _fraction(rows, space, "deltas", "is zero")
    return fraction.to(result_dtype(deltas, space.basis))


def residual_fraction(
    deltas: Float[Tensor, "*batch row d"], space: Subspace, *, centred: bool
) -> Float[Tensor, "*batch row"]:
    """Length of what the reconstruction μ + P(δ − μ) leaves of a delta, over the delta's length.

    Over ‖δ‖ (raw) or over ‖δ − μ‖ (centred). Raw exceeds 1 where the training mean leads away from
    the delta.

    Raises:
        InputError: another width, values that are not finite, a delta that is zero (or equals μ
            where centred).
    """
    return _residual(deltas, space, centred).to(result_dtype(deltas, space.basis))


def _residual(deltas: Tensor, space: Subspace, centred: bool) -> Tensor:
    rows, centred_rows = _centred(deltas, space, "deltas")
    # δ − δ̂ = (δ − μ) − P(δ − μ): the mean cancels
    residual = centred_rows - _inside(centred_rows, space)
    if centred:
        lengths = row_lengths(centred_rows, "deltas", _EQUAL)
    else:
        lengths = row_lengths(rows, "deltas", "is zero")
    return torch.linalg.vector_norm(residual, dim=-1) / lengths


def explained_l2(
    deltas: Float[Tensor, "*batch row d"], space: Subspace, *, centred: bool
) -> Float[Tensor, "*batch row"]:
    """Share of a delta's squared length that its reconstruction explains: 1 − residual fraction².

    Range (−∞, 1] raw, [0, 1] centred.

    Raises:
        InputError: as `residual_fraction`.
    """
    return (1 - _residual(deltas, space, centred) ** 2).to(result_dtype(deltas, space.basis))


def prompt_overlap(
    x: Float[Tensor, "*batch row d"], space: Subspace
) -> Float[Tensor, "*batch row"]:
    """‖P(x − μ)‖/‖x − μ‖ of activations x *before* fine-tuning.

    V and μ come from before activations of training prompts. Range [0, 1]. Its control is a random
    subspace of the same k about the same μ. Before activations also enter every delta, so a
    correlation of this with shift quantities needs the controls of a shared part.

    Args:
        space: μ and V: `top_k_subspace` of the training prompts.

    Raises:
        InputError: another width, values that are not finite, a row that equals μ.
    """
    _, centred_rows = _centred(x, space, "x")
    return _fraction(centred_rows, space, "x", _EQUAL).to(result_dtype(x, space.basis))


def reconstruction_cosine(
    deltas: Float[Tensor, "*batch row d"], space: Subspace
) -> Float[Tensor, "*batch row"]:
    """Cosine between δ and its reconstruction μ + P(δ − μ).

    Range [-1, 1] (never negative where μ = 0). With an uncentred space it is the raw projection
    fraction; as k grows it starts from the cosine to the mean training delta.

    Raises:
        InputError: another width, values that are not finite, a delta or a reconstruction that is
            zero.
    """
    rows, centred_rows = _centred(deltas, space, "deltas")
    # rows − centred rows is μ, one per row
    rebuilt = rows - centred_rows + _inside(centred_rows, space)
    lengths = row_lengths(rows, "deltas", "is zero")
    rebuilt_lengths = row_lengths(rebuilt, "deltas", "has a reconstruction of zero")
    cosine = (rows * rebuilt).sum(dim=-1) / (lengths * rebuilt_lengths)
    return cosine.clamp(-1.0, 1.0).to(result_dtype(deltas, space.basis))


def subspace_mahalanobis(
    vectors: Float[Tensor, "*batch row d"], space: Subspace
) -> Float[Tensor, "*batch row"]:
    """Distance of each row from μ inside the subspace, in standard deviations of each direction.

    √Σ_i c_i² / v_i over the k coordinates c of x − μ, v_i the variance of the fitted rows along
    direction i (n − 1, or n where their mean was not taken out). Range [0, ∞); rows it was fitted
    to have a mean square of k (n − 1)/n. What lies outside the subspace does not
    count; in `mahalanobis_distance` it does. Invariant to any invertible map of fitted rows and
    vectors where k = d.

    Raises:
        InputError: another width, values that are not finite, or a direction without variance.
    """
    # the record's `center` is a word: "mean" (own mean taken out), "none" or "given"
    freedom = space.n - (space.center == "mean")
    variance = space.singular_values[..., : space.k].to(torch.float64).square() / max(freedom, 1)
    if bool((variance <= 0).any()):
        raise InputError("the subspace has a direction without variance; fit it with a smaller k")
    _, centred_rows = _centred(vectors, space, "vectors")
    coordinates = centred_rows @ space.basis.to(torch.float64)
    distance = (coordinates.square() / variance[..., None, :]).sum(dim=-1).sqrt()
    return distance.to(result_dtype(vectors, space.basis))
