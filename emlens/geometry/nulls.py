"""What subspace overlaps look like when nothing is shared, and how high they can get when everything is.

* `overlap_null`: random subspaces, isotropic. A landmark only: real activations are far from isotropic.
* `covariance_overlap_null`: two independent Gaussian samples with a given covariance, a subspace fitted to each.
  Take the covariance of the *before* activations, or of re-batched or benign deltas; never of the deltas under test,
  which would make what is tested its own null.
* `split_half_ceiling`: halves of one set, fitted apart. A ceiling set by sample size, not a null.

Not offered, since neither is a null for overlap: permuting before and after turns a delta into its negative, and an
uncentred span does not move; permuting train and evaluation labels asks whether both are one distribution, which is the
ceiling again. Computed in float64 on the CPU. Cost: see each function; draws are made in chunks of bounded memory.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.seeds import numpy_rng, torch_rng
from emlens.geometry.linear import gaussian_factor
from emlens.geometry.overlap import Measure, measure_from_cosines, require_measure, subspace_overlap
from emlens.geometry.subspaces import Center, centred_rows, top_k_subspace
from emlens.stats import NullDistribution

_CHUNK = 2**22  # float64 numbers held at once in one stack of draws


def _require_positive(**counts: int) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"{name}={count!r} must be an integer of 1 or more")


def _bartlett(draws: int, p: int, freedom: int, rng: np.random.Generator) -> Float[Tensor, "draws p p"]:
    """Upper-triangular R with R'R ~ Wishart_p(freedom, I), freedom >= p (Bartlett 1933)."""
    upper = np.triu(rng.standard_normal((draws, p, p)), k=1)
    upper[:, range(p), range(p)] = np.sqrt(rng.chisquare(np.arange(freedom, freedom - p, -1), size=(draws, p)))
    return torch.from_numpy(upper)


def random_cosines(d_model: int, k_a: int, k_b: int, draws: int, rng: np.random.Generator) -> Float[Tensor, "draws m"]:
    """Cosines of principal angles between a fixed and a uniformly random subspace, descending; m = min(k_a, k_b).

    Their squares are the eigenvalues of a matrix-variate beta((q/2), (d − q)/2) in m dimensions, q = max(k_a, k_b)
    (Muirhead 1982, §3.3; Absil, Edelman & Koev 2006), drawn through Bartlett factors: the cost does not depend on d.
    """
    m, q = min(k_a, k_b), max(k_a, k_b)
    shared = max(0, m + q - d_model)  # dimensions the two must share; the rest is as for the complements
    if shared:
        m, q = d_model - q, d_model - m
    ones = torch.ones(draws, shared, dtype=torch.float64)
    if m == 0:
        return ones
    found = []
    step = max(1, _CHUNK // (2 * m * m))
    for start in range(0, draws, step):
        size = min(step, draws - start)
        stacked = torch.cat([_bartlett(size, m, q, rng), _bartlett(size, m, d_model - q, rng)], dim=1)
        found.append(torch.linalg.svdvals(torch.linalg.qr(stacked).Q[:, :m]).clamp(max=1.0))
    return torch.cat([ones, torch.cat(found)], dim=1)


def overlap_null(
    d_model: int, k_a: int, k_b: int, measure: Measure = "mean_cos2", draws: int = 1000, seed: int = 0
) -> NullDistribution:
    """Overlap of uniformly random subspaces of dimension k_a and k_b in d_model dimensions.

    For `mean_cos2` mean and sd are exact: max(k_a, k_b)/d, and from Var tr(P_a P_b) = 2 k_a k_b (d − k_a)(d − k_b) /
    (d² (d − 1)(d + 2)). For `chordal`, a distance, small values are extreme: ask for side="less".
    Cost: draws × O(m³), m = min(k_a, k_b); nothing depends on d.

    Raises:
        InputError: a dimension that does not fit in d_model, an unknown measure, no draw.
    """
    require_measure(measure)
    _require_positive(d_model=d_model, k_a=k_a, k_b=k_b, draws=draws)
    if max(k_a, k_b) > d_model:
        raise InputError(f"k_a={k_a} and k_b={k_b} must be at most d_model={d_model}")
    rng = numpy_rng(seed, "overlap_null", d_model, k_a, k_b)
    values = measure_from_cosines(random_cosines(d_model, k_a, k_b, draws, rng), measure).numpy()
    label = f"isotropic {measure}: random subspaces of dimension {k_a} and {k_b} in {d_model}"
    if measure != "mean_cos2":
        return NullDistribution(values, label, seed)
    d, m = float(d_model), min(k_a, k_b)
    spread = 2 * k_a * k_b * (d - k_a) * (d - k_b) / (d * d * (d - 1) * (d + 2)) if d > 1 else 0.0
    return NullDistribution(values, label, seed, exact_mean=max(k_a, k_b) / d, exact_sd=math.sqrt(spread) / m)


def _fitted_bases(scales: Tensor, n: int, k: int, center: bool, draws: int, rng: torch.Generator) -> Tensor:
    """Top-k bases (draws, r, k) of n Gaussian rows each, in the principal axes of a covariance of rank r."""
    rows = torch.randn(draws, n, len(scales), dtype=torch.float64, generator=rng) * scales
    if center:
        rows = rows - rows.mean(dim=1, keepdim=True)
    if n < len(scales):  # the Gram matrix is smaller; top components stand far above its rounding
        _, left = torch.linalg.eigh(rows @ rows.mT)
        return torch.linalg.qr(rows.mT @ left[..., -k:]).Q
    return torch.linalg.eigh(rows.mT @ rows).eigenvectors[..., -k:]


def covariance_overlap_null(
    covariance_or_vectors: Float[Tensor, "row d_model"],
    n_a: int,
    n_b: int,
    k: int,
    *,
    center: bool,
    measure: Measure = "mean_cos2",
    draws: int = 1000,
    seed: int = 0,
) -> NullDistribution:
    """Overlap of top-k subspaces of two *independent* Gaussian samples that share a covariance and nothing else.

    This is the chance level that anisotropy and finite samples give: with eigenvalues ∝ 1/i, d = 128, n = 150, two
    independent sets overlap about .7 in their top 8, where random subspaces overlap .06.

    Args:
        covariance_or_vectors: (d, d) symmetric covariance, or vectors (row, d) whose sample covariance is taken; from
            before activations, re-batched or benign deltas, never from the deltas under test.
        n_a, n_b: sizes of the two samples, those of the sets under test.
        k: dimension of both subspaces.
        center: whether each sample's own mean is taken out, as in the overlap under test. The Gaussian has mean 0.

    Cost: draws × two (n, r) products and eigendecompositions of min(n, r), r the rank of the covariance.

    Raises:
        InputError: k above what the covariance or a (centred) sample carries; an unusable covariance, measure, count.
    """
    require_measure(measure)
    _require_positive(n_a=n_a, n_b=n_b, k=k, draws=draws)
    if not isinstance(center, bool):
        raise InputError(f"center={center!r} must be True or False here: samples under the null have no given mean")
    scales = torch.linalg.vector_norm(gaussian_factor(covariance_or_vectors, "covariance_or_vectors"), dim=1)
    scales = scales / scales.max()
    limit = min(len(scales), n_a - center, n_b - center)
    if k > limit:
        raise InputError(
            f"k={k} is above the rank of a sample: the covariance has rank {len(scales)}, n_a={n_a}, n_b={n_b}, "
            f"center={center}; pass k <= {limit}"
        )
    rng = torch_rng(seed, "covariance_overlap_null", n_a, n_b, k)
    values = []
    step = max(1, _CHUNK // (max(n_a, n_b) * len(scales)))
    for start in range(0, draws, step):
        size = min(step, draws - start)
        a, b = (_fitted_bases(scales, n, k, center, size, rng) for n in (n_a, n_b))
        values.append(measure_from_cosines(torch.linalg.svdvals(a.mT @ b).clamp(max=1.0), measure))
    label = f"covariance-matched {measure}: top {k} of independent samples of {n_a} and {n_b}, center={center}"
    return NullDistribution(torch.cat(values).numpy(), label, seed)


def split_half_ceiling(
    vectors: Float[Tensor, "row d_model"],
    k: int,
    *,
    center: Center,
    measure: Measure = "mean_cos2",
    splits: int = 100,
    seed: int = 0,
) -> Estimate:
    """Overlap between random halves of one set: how much two sets can share at this sample size.

    `value` is the mean over splits; `low` and `high` are the 2.5 % and 97.5 % quantiles over splits. Splits reuse the
    same rows, so this is a range and no confidence interval, and it is not a null: no p-value comes from it. Each half
    has row // 2 vectors, so it understates the ceiling of the whole set.

    Raises:
        InputError: k above the rank of a half, an unknown measure, no split, values that are not finite.
    """
    require_measure(measure)
    _require_positive(k=k, splits=splits)
    rows, _, _ = centred_rows(vectors, False)
    if rows.ndim != 2:
        raise InputError(f"vectors has shape {tuple(vectors.shape)}; pass one set of vectors, shape (row, d)")
    half = len(rows) // 2
    limit = min(half - (0 if isinstance(center, Tensor) or center is False else 1), rows.shape[1])
    if k > limit:
        raise InputError(f"k={k} is above the rank of half of {len(rows)} vectors; pass k <= {limit}, or more vectors")
    rng = torch_rng(seed, "split_half_ceiling", len(rows), k)
    values = np.empty(splits)
    for i in range(splits):
        order = torch.randperm(len(rows), generator=rng)
        a, b = (top_k_subspace(rows[part], k, center=center) for part in (order[:half], order[half : 2 * half]))
        values[i] = float(subspace_overlap(a, b, measure))
    low, high = np.quantile(values, [0.025, 0.975])
    method = f"split-half {measure}, top {k} of halves of {half}: mean and 95 % range over {splits} random splits"
    return Estimate(float(values.mean()), float(low), float(high), len(rows), method)
