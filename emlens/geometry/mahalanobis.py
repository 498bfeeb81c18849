"""How far rows lie from a reference set, each direction measured in the reference's own standard
deviation.

A sample covariance of fewer rows than coordinates has no inverse, and of a few more an unusable
one, so it is shrunk (`geometry.shrinkage`). Of Gaussian rows with known covariance the squared
distance is χ² with d degrees of freedom; shrunk distances are smaller and have no such scale, so
compare them with those of held-out reference rows and not with a table. Nothing of size (d, d) is
made. Cost: one SVD of the reference.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.geometry.linear import EPS64, result_dtype, rows_of
from emlens.geometry.shrinkage import Shrinkage, resolve_shrinkage


def mahalanobis_distance(
    x: Float[Tensor, "*batch row d"],
    reference: Float[Tensor, "*batch other d"],
    *,
    shrinkage: Shrinkage = "oas",
) -> Float[Tensor, "*batch row"]:
    """√((x − m)ᵀ Σ⁻¹ (x − m)) with Σ = (1 − ρ) S + ρ τ I, m and S (n − 1) of the reference, τ the
    mean variance.

    Args:
        x: rows whose distance is asked for; not rows of the reference, whose own distances are
            biased downwards.
        reference: rows that say where the centre is and how far is far, such as training deltas or
            before activations.
        shrinkage: ρ from 0 (none) to 1 (Euclidean distance over √τ), or "oas": the oracle
            approximating shrinkage estimator of Chen et al. (2010), a batch entry its own.

    Range [0, ∞). Invariant to a common rotation, translation and scaling; without shrinkage to any
    invertible map.

    Raises:
        InputError: other widths or batch axes, values that are not finite, fewer than two reference
            rows, or none that differ; a shrinkage outside [0, 1], or too small for a reference that
            does not vary in every direction.
    """
    rows, known = rows_of(x, "x"), rows_of(reference, "reference", x, "x")
    n, d = known.shape[-2:]
    if rows.shape[:-2] != known.shape[:-2]:
        raise InputError(
            f"x has batch axes {tuple(rows.shape[:-2])} and reference {tuple(known.shape[:-2])};"
            " pass equal ones"
        )
    if n < 2:
        raise InputError(f"reference has {n} row; pass at least 2, so that there is a covariance")
    mean = known.mean(dim=-2, keepdim=True)
    _, singular, axes = torch.linalg.svd(known - mean, full_matrices=False)
    variances = singular**2 / (n - 1)
    trace, squared = variances.sum(dim=-1), variances.square().sum(dim=-1)
    if bool((trace == 0).any()):
        raise InputError(
            "reference has rows that are all alike, so nothing says how far is far;"
            " pass rows that differ"
        )
    rho = torch.tensor(
        [
            resolve_shrinkage(shrinkage, float(first), float(second), d, n - 1)
            for first, second in zip(trace.flatten(), squared.flatten(), strict=True)
        ],
        dtype=torch.float64,
        device=rows.device,
    ).reshape(trace.shape)
    ridge = rho * trace / d
    scale = (1 - rho)[..., None] * variances + ridge[..., None]
    if bool((scale.amin(dim=-1) <= d * EPS64 * scale.amax(dim=-1)).any()):
        raise InputError(
            f"reference does not vary in some direction of its {d} dimensions;"
            " pass a larger shrinkage"
        )
    moved = rows - mean
    coordinates = moved @ axes.mT
    found = (coordinates**2 / scale[..., None, :]).sum(dim=-1)
    if axes.shape[-2] < d:
        outside = (moved - coordinates @ axes).square().sum(dim=-1)
        found = found + outside / ridge[..., None]
    return found.sqrt().to(result_dtype(x, reference))
