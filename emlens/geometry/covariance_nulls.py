"""Overlap of two independent sets that share a covariance and nothing else.

This is what anisotropy and finite samples give without any effect.
The overlap of two Gaussian samples depends on the *eigenvalues* of their covariance alone. Where
those are known, `covariance_overlap_null` is exact. Where they come from a reference sample they
are a plug-in: a sample spectrum is steeper than the true one, so the null mostly lies too high (it
misses), and where one leading eigenvalue decides it can lie too low. `reference_overlap_null`
corrects for that; docs/nulls.md has the false positives of both.

The reference is the *before* activations, re-batched or benign deltas; never the deltas under test,
which would make what is tested its own null: pass them as `tested`, and a reference that holds them
is refused. Whether the reference has the spectrum that the deltas would have without an effect is
an assumption that no draw can check. Computed in float64 on the CPU in the principal axes, in
stacks of about 32 MB. Cost: see each function.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.seeds import numpy_rng
from emlens.geometry.batched_bases import cosines_between, require_positive, stacks, top_bases
from emlens.geometry.isotropic_nulls import bartlett
from emlens.geometry.linear import gaussian_scales
from emlens.geometry.overlap import Measure, measure_from_cosines, require_measure
from emlens.geometry.tested_vectors import is_covariance, refuse_tested
from emlens.stats import NullDistribution


def _gaussian_bases(
    scales: Tensor, n: int, k: int, center: bool, draws: int, rng: np.random.Generator
) -> Tensor:
    """Top-k bases (draws, r, k) of n Gaussian vectors each.

    In the principal axes of a covariance of rank r; `scales` are the standard deviations there.
    """
    # Centred Gaussian rows have the scatter of n − 1 uncentred ones, so no mean is subtracted.
    freedom = n - 1 if center else n
    r = len(scales)
    if freedom > r:
        # XᵀX alone decides the basis: draw its Wishart factor (r, r) instead of freedom rows
        rows = bartlett(draws, r, freedom, rng)
    else:
        rows = torch.from_numpy(rng.standard_normal((draws, freedom, r)))
    return top_bases(rows * scales, k, center=False, name="covariance_or_vectors")


def covariance_overlap_null(
    covariance_or_vectors: Float[Tensor, "row d_model"],
    n_a: int,
    n_b: int,
    k: int,
    *,
    center: bool,
    measure: Measure = "mean_cos2",
    about: Literal["mean", "zero"] = "mean",
    tested: Sequence[Tensor] = (),
    draws: int = 1000,
    seed: int = 0,
) -> NullDistribution:
    """Overlap of top-k subspaces of two *independent* Gaussian samples with one covariance.

    This is the chance level that anisotropy and finite samples give: with eigenvalues ∝ 1/i, d =
    128, n = 150, two independent sets overlap about .7 in their top 8, where random subspaces
    overlap .06. Invariant to rotation and scale. Exact for a known covariance; of vectors it is a
    plug-in (see the module, and `reference_overlap_null`).

    Args:
        covariance_or_vectors: (d, d) symmetric covariance, or vectors (row, d) whose sample
            covariance is taken; from before activations, re-batched or benign deltas, never from
            the deltas under test.
        n_a, n_b: sizes of the two samples, those of the sets under test.
        k: dimension of both subspaces.
        center: True or False, whether each sample's own mean is taken out, as in the overlap
            under test (`Subspace.center` "mean" or "none"). The Gaussian has mean 0.
        about: of vectors, "mean" takes their covariance, "zero" their second moment, where an
            uncentred overlap is tested and their mean counts as a direction like any other.
        tested: the sets under test (row, d), so that a reference made of them is refused.

    Cost: draws × two Gram matrices (n, n, r) and eigendecompositions of min(n, r), r the rank of
    the covariance. With n > r nothing grows with n. Of vectors nothing grows with d beyond their
    singular values, (row² · d); a covariance (d, d) costs d³ once, so pass vectors where they are
    few.

    Raises:
        InputError: k above what the covariance or a (centred) sample carries; an unusable
            covariance, measure, count; a reference that holds the tested vectors.
    """
    require_measure(measure)
    require_positive(n_a=n_a, n_b=n_b, k=k, draws=draws)
    if not isinstance(center, bool):
        raise InputError(
            f"center={center!r} must be True or False here:"
            " samples under the null have no given mean"
        )
    if about not in ("mean", "zero"):
        raise InputError(
            f"about={about!r} is unknown; pass 'mean' or 'zero'", name=about, known=("mean", "zero")
        )
    refuse_tested(covariance_or_vectors, tested, "covariance_or_vectors")
    if about == "zero" and is_covariance(covariance_or_vectors):
        raise InputError(
            "about='zero' is for vectors, and covariance_or_vectors is a covariance;"
            " pass their second moment"
        )
    # A common rotation or scaling changes no overlap: standard deviations are all that is needed.
    scales = gaussian_scales(covariance_or_vectors, "covariance_or_vectors", about=about)
    scales = scales / scales.max()
    limit = min(len(scales), n_a - center, n_b - center)
    if k > limit:
        raise InputError(
            f"k={k} is above the rank of a sample: the covariance has rank {len(scales)},"
            f" n_a={n_a}, n_b={n_b}, center={center}; pass k <= {limit}"
        )
    rng = numpy_rng(seed, "covariance_overlap_null", n_a, n_b, k)
    values = []
    for size in stacks(draws, max(n_a, n_b) * len(scales)):
        a = _gaussian_bases(scales, n_a, k, center, size, rng)
        b = _gaussian_bases(scales, n_b, k, center, size, rng)
        values.append(measure_from_cosines(cosines_between(a, b), measure))
    label = (
        f"covariance-matched {measure}: top {k} of independent samples of {n_a} and {n_b},"
        f" center={center}"
    )
    return NullDistribution(torch.cat(values).numpy(), label, seed)
