"""How far rows lie from a reference set, in standard deviations of the reference.

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
    """Mahalanobis distance √((x − m)ᵀ Σ⁻¹ (x − m)) of each row, with a shrunk covariance.

    Σ = (1 − ρ) S + ρ τ I, m and S (n − 1) of the reference, τ the mean variance. Range [0, ∞).
    Invariant to a common rotation, translation and scaling; without shrinkage to any invertible
    map.

    Args:
        x: rows whose distance is measured; not rows of the reference, whose own distances are
            biased downwards.
        reference: rows that say where the centre is and how far is far, such as training deltas or
            before activations.
        shrinkage: ρ from 0 (none) to 1 (Euclidean distance over √τ), or "oas": the oracle
            approximating shrinkage estimator of Chen et al. (2010), one ρ per batch entry.

    Raises:
        InputError: other widths or batch axes, values that are not finite, fewer than two reference
            rows, or none that differ; a shrinkage outside [0, 1], or too small for a reference that
            does not vary in every direction.
    """
    rows = rows_of(x, "x")
    sample = rows_of(reference, "reference", x, "x")
    n, d = sample.shape[-2:]
    if rows.shape[:-2] != sample.shape[:-2]:
        raise InputError(
            f"x has batch axes {tuple(rows.shape[:-2])} and reference {tuple(sample.shape[:-2])};"
            " pass equal ones"
        )
    if n < 2:
        raise InputError(f"reference has {n} row; pass at least 2, so that there is a covariance")
    mean = sample.mean(dim=-2, keepdim=True)
    # S = V diag(variances) Vᵀ from the SVD of the centred rows; (d, d) is never formed
    _, singular, axes = torch.linalg.svd(sample - mean, full_matrices=False)
    variances = singular**2 / (n - 1)
    trace = variances.sum(dim=-1)
    if bool((trace == 0).any()):
        raise InputError(
            "reference has rows that are all alike, so nothing says how far is far;"
            " pass rows that differ"
        )
    rho = _shrinkages(shrinkage, variances, d, n - 1)
    ridge = rho * trace / d
    scale = (1 - rho)[..., None] * variances + ridge[..., None]
    if bool((scale.amin(dim=-1) <= d * EPS64 * scale.amax(dim=-1)).any()):
        raise InputError(
            f"reference does not vary in some direction of its {d} dimensions;"
            " pass a larger shrinkage"
        )
    centred = rows - mean
    coordinates = centred @ axes.mT
    squared = (coordinates**2 / scale[..., None, :]).sum(dim=-1)
    if axes.shape[-2] < d:
        # outside the span of the reference Σ is ridge · I alone
        outside = (centred - coordinates @ axes).square().sum(dim=-1)
        squared = squared + outside / ridge[..., None]
    return squared.sqrt().to(result_dtype(x, reference))


def _shrinkages(shrinkage: Shrinkage, variances: Tensor, d: int, freedom: int) -> Tensor:
    """ρ of each batch entry, (...), from the eigenvalues of its covariance."""
    # tr S and tr S² are the sums of eigenvalues and of their squares
    traces = variances.sum(dim=-1)
    traces_of_square = variances.square().sum(dim=-1)
    rho = torch.empty_like(traces)
    pairs = zip(traces.flatten().tolist(), traces_of_square.flatten().tolist(), strict=True)
    for i, (trace, trace_of_square) in enumerate(pairs):
        rho.view(-1)[i] = resolve_shrinkage(shrinkage, trace, trace_of_square, d, freedom)
    return rho
