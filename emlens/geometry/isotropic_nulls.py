"""Overlap of subspaces with no relation and no preferred direction: exact moments, and draws.

The cost of a draw does not depend on d. A landmark, not chance: the top components of two
independent sets from *one* anisotropic covariance overlap far more (`covariance_overlap_null`). It
is exact where the vectors are isotropic, whatever their number. All cells of a table with the same
(d, k_a, k_b) share one null: draw it once and pass all observed values to `p_values`. Cost: draws ×
O(m³), m = min(k_a, k_b); float64 on the CPU; stacks of about 32 MB.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import betaln
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.seeds import numpy_rng
from emlens.geometry.batched_bases import require_positive, stacks
from emlens.geometry.overlap import Measure, measure_from_cosines, require_measure
from emlens.stats import NullDistribution


def bartlett(
    draws: int, p: int, freedom: int, rng: np.random.Generator
) -> Float[Tensor, "draws p p"]:
    """Upper-triangular R with RᵀR ~ Wishart_p(freedom, I), freedom >= p (Bartlett 1933)."""
    upper = np.triu(rng.standard_normal((draws, p, p)), k=1)
    # the i-th diagonal entry is the root of a χ² with freedom − i degrees of freedom, i from 0
    freedoms = np.arange(freedom, freedom - p, -1)
    upper[:, range(p), range(p)] = np.sqrt(rng.chisquare(freedoms, size=(draws, p)))
    return torch.from_numpy(upper)


def random_cosines(
    d_model: int, k_a: int, k_b: int, draws: int, rng: np.random.Generator
) -> Float[Tensor, "draws m"]:
    """Cosines of principal angles between a fixed and a uniformly random subspace, descending.

    (draws, m), m = min(k_a, k_b). Their squares are the eigenvalues of a matrix-variate beta(q/2,
    (d − q)/2) in m dimensions, q = max(k_a, k_b) (Muirhead 1982, §3.3; Absil, Edelman & Koev 2006),
    drawn through Bartlett factors of two Wisharts. Where k_a + k_b > d, the k_a + k_b − d angles
    that must be 0 are, and the others are those of the complements.
    """
    m, q = min(k_a, k_b), max(k_a, k_b)
    # Subspaces that are too large to be disjoint share k_a + k_b − d dimensions for certain, and
    # the other angles are those of their orthogonal complements.
    shared = max(0, m + q - d_model)
    if shared:
        m, q = d_model - q, d_model - m
    ones = torch.ones(draws, shared, dtype=torch.float64)
    if m == 0:
        return ones
    cosines = []
    for size in stacks(draws, 2 * m * m):
        # A Gaussian (d, m) matrix spans a Haar-random subspace. Its first q and last d − q rows
        # enter through their Wishart factors R₁, R₂ alone; QR of [R₁; R₂] makes it orthonormal, and
        # the cosines to the first q coordinate axes are the singular values of the upper block. The
        # signs that QR leaves open change no singular value.
        upper = bartlett(size, m, q, rng)
        lower = bartlett(size, m, d_model - q, rng)
        basis = torch.linalg.qr(torch.cat([upper, lower], dim=1)).Q
        cosines.append(torch.linalg.svdvals(basis[:, :m]).clamp(max=1.0))
    return torch.cat([ones, torch.cat(cosines)], dim=1)


def overlap_moments(
    d_model: int, k_a: int, k_b: int, measure: Measure = "mean_cos2"
) -> tuple[float, float] | None:
    """Exact mean and standard deviation of an overlap of uniformly random subspaces.

    None where no closed form is known.

    `mean_cos2`, any ranks: max(k_a, k_b)/d, and Var tr(P_a P_b) = 2 k_a k_b (d − k_a)(d − k_b) /
    (d² (d − 1)(d + 2)). `mean_cos` and `min_cos` where m = min(k_a, k_b) = 1: moments of the root
    of a beta(q/2, (d − q)/2).

    Raises:
        InputError: a dimension that does not fit in d_model, an unknown measure.
    """
    require_measure(measure)
    require_positive(d_model=d_model, k_a=k_a, k_b=k_b)
    if max(k_a, k_b) > d_model:
        raise InputError(f"k_a={k_a} and k_b={k_b} must be at most d_model={d_model}")
    d, m, q = float(d_model), min(k_a, k_b), max(k_a, k_b)
    if measure == "mean_cos2":
        # mean_cos2 = tr(P_a P_b) / m
        variance = 0.0
        if d_model > 1:
            variance = 2 * k_a * k_b * (d - k_a) * (d - k_b) / (d * d * (d - 1) * (d + 2))
        return q / d, math.sqrt(variance) / m
    if m > 1 or measure == "chordal":
        return None
    if q == d_model:
        return 1.0, 0.0
    # E√X of X ~ beta(a, b) is B(a + ½, b) / B(a, b); E X = q/d. Logarithms, since B underflows.
    mean = math.exp(betaln((q + 1) / 2, (d - q) / 2) - betaln(q / 2, (d - q) / 2))
    return mean, math.sqrt(q / d - mean * mean)


def overlap_null(
    d_model: int,
    k_a: int,
    k_b: int,
    measure: Measure = "mean_cos2",
    draws: int = 1000,
    seed: int = 0,
) -> NullDistribution:
    """Overlap of uniformly random subspaces of dimension k_a and k_b in d_model dimensions.

    Mean and sd are exact where `overlap_moments` has them. For `chordal`, a distance, small values
    are extreme: pass side="less" to `p_value`.

    Args:
        d_model: width of the stream.
        k_a, k_b: dimensions of the two subspaces.
        measure: as in `subspace_overlap`.

    Raises:
        InputError: a dimension that does not fit in d_model, an unknown measure, no draw.
    """
    moments = overlap_moments(d_model, k_a, k_b, measure)
    require_positive(draws=draws)
    rng = numpy_rng(seed, "overlap_null", d_model, k_a, k_b)
    cosines = random_cosines(d_model, k_a, k_b, draws, rng)
    values = measure_from_cosines(cosines, measure).numpy()
    label = f"isotropic {measure}: random subspaces of dimension {k_a} and {k_b} in {d_model}"
    mean, sd = moments or (None, None)
    return NullDistribution(values, label, seed, exact_mean=mean, exact_sd=sd)
