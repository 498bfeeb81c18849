"""A covariance shrunk towards a multiple of the identity, and its inverse times a vector.

Few rows make a sample covariance singular or wildly conditioned; (1 − ρ) S + ρ τ I, τ the mean
variance, has an inverse for every ρ > 0. Nothing of size (d, d) is made where there are fewer rows
than coordinates. float64.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError

Shrinkage = float | Literal["oas"]


def oas_shrinkage(trace: float, trace_of_square: float, d: int, freedom: int) -> float:
    """ρ in (0, 1] of the oracle approximating shrinkage estimator.

    ρ = (tr S² + tr² S) / ((freedom + 1)(tr S² − tr² S / d)), at most 1 (Chen, Wiesel, Eldar & Hero
    2010). Terms of order 2/d are left out, as in scikit-learn.

    Args:
        trace, trace_of_square: tr S and tr S² of the sample covariance.
        d: width of the rows.
        freedom: degrees of freedom of the covariance.
    """
    spread = (freedom + 1) * (trace_of_square - trace**2 / d)
    # tr S² = tr² S / d: S is a multiple of the identity already
    if spread <= 0:
        return 1.0
    return min(1.0, (trace_of_square + trace**2) / spread)


def resolve_shrinkage(
    shrinkage: Shrinkage, trace: float, trace_of_square: float, d: int, freedom: int
) -> float:
    """The ρ that `shrinkage` stands for.

    Raises:
        InputError: no variance, a shrinkage outside [0, 1], or 0 where the covariance has no
            inverse.
    """
    if trace <= 0:
        raise InputError(
            "rows do not vary within their class, so there is no covariance to whiten with;"
            " pass rows that differ"
        )
    if shrinkage == "oas":
        return oas_shrinkage(trace, trace_of_square, d, freedom)
    if isinstance(shrinkage, bool | str) or not 0 <= shrinkage <= 1:
        raise InputError(
            f"shrinkage={shrinkage!r} must be 'oas' or a number from 0 (none) to 1 (the identity)"
        )
    if shrinkage == 0 and freedom < d:
        raise InputError(
            f"shrinkage=0 with {freedom} degrees of freedom in {d} dimensions has no inverse;"
            " pass 'oas' or more rows"
        )
    return float(shrinkage)


def whiten_by_rows(
    centred: Float[Tensor, "row d"], vector: Float[Tensor, " d"], freedom: int, shrinkage: Shrinkage
) -> tuple[Float[Tensor, " d"], float]:
    """((1 − ρ) S + ρ τ I)⁻¹ v with S = XᵀX / freedom of centred rows X, and the ρ used.

    Cost: min(row, d)³ operations, by the Woodbury identity where rows are fewer.

    Raises:
        InputError: rows without variance, a shrinkage outside [0, 1], or 0 with fewer rows than
            coordinates.
    """
    n, d = centred.shape
    if n >= d:
        return whiten_by_covariance(centred.T @ centred / freedom, vector, freedom, shrinkage)
    # the Gram matrix has the nonzero eigenvalues of S, so tr S and tr S² can be read from it
    gram = centred @ centred.T / freedom
    trace = float(gram.trace())
    rho = resolve_shrinkage(shrinkage, trace, float((gram**2).sum()), d, freedom)
    ridge = rho * trace / d
    if rho == 1:
        return vector / ridge, rho
    # Woodbury: (rI + cXᵀX)⁻¹ v = (v − Xᵀ(XXᵀ + (r/c) I)⁻¹ X v) / r, with c = (1 − ρ) / freedom
    inner = gram + (ridge / (1 - rho)) * torch.eye(n, dtype=torch.float64)
    inside = centred.T @ torch.linalg.solve(inner, centred @ vector) / freedom
    return (vector - inside) / ridge, rho


def whiten_by_covariance(
    covariance: Float[Tensor, "d d"],
    vector: Float[Tensor, " d"],
    freedom: int,
    shrinkage: Shrinkage,
) -> tuple[Float[Tensor, " d"], float]:
    """The same from a covariance that was summed elsewhere.

    Raises:
        InputError: as `whiten_by_rows`.
    """
    d = len(covariance)
    trace = float(covariance.trace())
    rho = resolve_shrinkage(shrinkage, trace, float((covariance**2).sum()), d, freedom)
    shrunk = (1 - rho) * covariance + rho * trace / d * torch.eye(d, dtype=torch.float64)
    return torch.linalg.solve(shrunk, vector), rho
