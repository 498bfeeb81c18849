"""One number for how much two subspaces share, from their principal angles.

The angles are θ_1 … θ_m, m = min(k_a, k_b); A and B are orthonormal bases.

| measure | definition | identical | orthogonal | reference |
|---|---|---|---|---|
| `mean_cos2` | mean of cos²θ = ‖AᵀB‖²_F / m | 1 | 0 | Krzanowski 1979 |
| `mean_cos` | mean of cos θ = ‖AᵀB‖_* / m | 1 | 0 | Björck & Golub 1973 |
| `min_cos` | cosine of the largest angle | 1 | 0 | gap between subspaces: Kato 1966 |
| `chordal` | √(mean of sin²θ) = √(1 − mean_cos2) | 0 | 1 | Conway, Hardin & Sloane 1996 |

`chordal` is a *distance*, the others are similarities. All lie in [0, 1], are symmetric, and are
invariant to the bases of either subspace, to the lengths of columns and to a common rotation; an
unequal scaling of coordinates changes them. Normalised by m, so a subspace inside the other counts
as identical; `chordal` is a metric for equal dimensions only. `mean_cos2` of random subspaces is
max(k_a, k_b)/d on average; that is a landmark and not chance for activations, whose covariance is
far from isotropic (`covariance_overlap_null`). How much variance is shared needs data:
`variance_captured`.
"""

from typing import Final, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.geometry.angles import angles_between_orthonormal, orthonormal_pair
from emlens.geometry.subspaces import Subspace

Measure = Literal["mean_cos2", "mean_cos", "min_cos", "chordal"]
MEASURES: Final[tuple[str, ...]] = get_args(Measure)


def require_measure(measure: str) -> None:
    """Raises:
    InputError: not one of the four measures.
    """
    if measure not in MEASURES:
        raise InputError(
            f"measure={measure!r} is unknown; pass one of {', '.join(MEASURES)}",
            name=measure,
            known=MEASURES,
        )


def measure_from_cosines(
    cosines: Float[Tensor, "*batch k"], measure: str
) -> Float[Tensor, "*batch"]:
    """The measure from cosines of principal angles.

    `chordal` loses accuracy below distances of 1e-8, where 1 − cos² cancels.
    """
    require_measure(measure)
    if measure == "mean_cos2":
        return (cosines**2).mean(dim=-1)
    if measure == "mean_cos":
        return cosines.mean(dim=-1)
    if measure == "min_cos":
        return cosines.min(dim=-1).values
    return (1 - cosines**2).clamp(min=0.0).mean(dim=-1).sqrt()


def subspace_overlap(
    a: Subspace | Tensor, b: Subspace | Tensor, measure: Measure = "mean_cos2"
) -> Float[Tensor, "..."]:
    """How much two subspaces share, in [0, 1].

    Normalised by min(k_a, k_b), so that containment counts as full overlap. Symmetric; invariant to
    the bases and to a common rotation. Batch axes broadcast; float64 for any input. See the table
    of this module.

    Args:
        a, b: `Subspace`, or (..., d, k) with linearly independent columns.
        measure: "mean_cos2", "mean_cos", "min_cos", or "chordal", which is a distance.

    Raises:
        InputError: an unknown measure, dependent columns, different widths, values that are not
            finite.
    """
    require_measure(measure)
    # angles need p ≥ q: the basis with more columns comes first
    larger, smaller = orthonormal_pair(a, b)
    angles = angles_between_orthonormal(larger, smaller)
    if measure == "chordal":
        # from sines, which keep distances far below 1e-8
        value = (torch.sin(angles) ** 2).mean(dim=-1).sqrt()
    else:
        value = measure_from_cosines(torch.cos(angles), measure)
    return value.clamp(0.0, 1.0)
