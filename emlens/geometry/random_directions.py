"""Directions drawn at random, and what cosines between unrelated directions look like.

Isotropic draws are a landmark only: they carry almost no variance of activations, and their cosines
are near 0 by construction. Draws with the covariance of the *before* activations are what unrelated
directions of an anisotropic stream look like. Computed in float64 on the CPU.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.seeds import numpy_rng, torch_rng
from emlens.geometry.directions import unit_rows
from emlens.geometry.linear import gaussian_factor, result_dtype
from emlens.stats import NullDistribution
from emlens.stats.samples import require_count

_CHUNK = 2**22  # float64 numbers held at once while drawing


def random_directions(d_model: int, count: int, seed: int = 0) -> Float[Tensor, "count d_model"]:
    """Unit vectors uniform on the sphere, (count, d_model), float64.

    As a control arm of an ablation they pass by construction, since they carry almost no variance
    of activations.

    Raises:
        InputError: d_model or count below 1.
    """
    require_count(d_model, "d_model")
    require_count(count, "count")
    rng = torch_rng(seed, "random_directions", d_model)
    # a Gaussian vector has no preferred direction: scaled to length 1 it is uniform
    draws = torch.randn(count, d_model, dtype=torch.float64, generator=rng)
    return unit_rows(draws, "draws")


def random_directions_like(
    covariance_or_vectors: Float[Tensor, "row d_model"], count: int, seed: int = 0
) -> Float[Tensor, "count d_model"]:
    """Unit vectors along Gaussian draws with a covariance, (count, d_model).

    Random directions that carry as much variance of activations as rows do.

    Args:
        covariance_or_vectors: (d, d) symmetric covariance, or vectors (row, d) whose sample
            covariance is taken.

    Raises:
        InputError: count below 1, or a covariance that cannot be used.
    """
    require_count(count, "count")
    factor = gaussian_factor(covariance_or_vectors, "covariance_or_vectors")
    rng = torch_rng(seed, "random_directions_like", factor.shape[1])
    # z F with z ~ N(0, I) has covariance FᵀF
    draws = torch.randn(count, len(factor), dtype=torch.float64, generator=rng) @ factor
    return unit_rows(draws, "draws").to(result_dtype(covariance_or_vectors))


def isotropic_cosine_null(d_model: int, draws: int = 10_000, seed: int = 0) -> NullDistribution:
    """Cosine of two independent directions uniform on the sphere: mean 0, sd exactly 1/√d.

    A landmark, not chance. Drawn as 2·Beta((d − 1)/2, (d − 1)/2) − 1; nothing depends on d but the
    shape.

    Raises:
        InputError: d_model below 2, no draw.
    """
    d = require_count(d_model, "d_model", 2)
    count = require_count(draws, "draws")
    rng = numpy_rng(seed, "isotropic_cosine_null", d)
    values = 2 * rng.beta((d - 1) / 2, (d - 1) / 2, size=count) - 1
    label = f"isotropic cosine of two directions in {d}"
    return NullDistribution(values, label, seed, exact_mean=0.0, exact_sd=1 / math.sqrt(d))


def covariance_cosine_null(
    covariance_or_vectors: Float[Tensor, "row d_model"], draws: int = 10_000, seed: int = 0
) -> NullDistribution:
    """Cosine of two independent Gaussian vectors that share a covariance and nothing else.

    The chance level of cosines between directions of two fine-tunes, signed; a p-value of .001
    needs 10,000 draws. Take the covariance of the *before* activations, or of benign deltas, never
    of the directions under test.

    Args:
        covariance_or_vectors: (d, d) symmetric covariance, or vectors (row, d) whose sample
            covariance is taken.

    Cost: draws × 2 r numbers, r the rank of the covariance, in chunks.

    Raises:
        InputError: no draw, or a covariance that cannot be used.
    """
    count = require_count(draws, "draws")
    factor = gaussian_factor(covariance_or_vectors, "covariance_or_vectors")
    # Lengths of the principal axes. A common rotation or scaling changes no cosine, so the draws
    # can live in r coordinates instead of d.
    scales = torch.linalg.vector_norm(factor, dim=1)
    scales = scales / scales.max()
    rng = torch_rng(seed, "covariance_cosine_null", len(scales))
    values = []
    step = max(1, _CHUNK // (2 * len(scales)))
    for start in range(0, count, step):
        shape = (2, min(step, count - start), len(scales))
        a, b = unit_rows(torch.randn(shape, dtype=torch.float64, generator=rng) * scales, "draws")
        values.append((a * b).sum(-1))
    label = "covariance-matched cosine of two independent directions"
    return NullDistribution(torch.cat(values).numpy(), label, seed)
