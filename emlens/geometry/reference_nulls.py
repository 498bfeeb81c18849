"""Overlap of two independent sets that are distributed as a reference, whose covariance is not
known.

What `covariance_overlap_null` takes as known is here estimated, and the estimate's error is part of
the null. It needs the reference vectors themselves, at least as many as both tested sets have
together. Computed in float64 on the CPU in the span of the reference, in stacks of about 32 MB.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.seeds import numpy_rng
from emlens.geometry.batched_bases import (
    cosines_between,
    one_set,
    require_positive,
    stacks,
    top_bases,
)
from emlens.geometry.linear import rank_tolerance
from emlens.geometry.overlap import Measure, measure_from_cosines, require_measure
from emlens.geometry.tested_vectors import refuse_tested
from emlens.stats import NullDistribution

_NEARLY = 1e-9  # overlaps are kept this far from 0 and 1 before their log-odds are taken


def reference_overlap_null(
    reference: Float[Tensor, "row d_model"],
    n_a: int,
    n_b: int,
    k: int,
    *,
    center: bool,
    measure: Measure = "mean_cos2",
    tested: Sequence[Tensor] = (),
    splits: int = 8,
    draws: int = 1000,
    seed: int = 0,
) -> NullDistribution:
    """Overlap of two independent sets that are distributed as the reference, whose covariance is
    *not* known.

    Where it lies comes from the reference alone, without a Gaussian: the mean overlap T̄ of
    `splits` pairs of disjoint sets of n_a and n_b of its rows. How far a new pair may lie from T̄
    comes from a Gaussian with the reference's moments, in which reference and new pair are both
    drawn anew: a draw is T̄ + T* − T̄*, in log-odds (a parametric bootstrap of a prediction error;
    Beran 1990). The steepness that a sample spectrum has too much of drops out of the difference.
    Approximate: docs/nulls.md has its false positives by size of the reference.

    Args:
        reference: vectors (row, d), at least n_a + n_b of them: before activations, re-batched or
            benign deltas.
        n_a, n_b, k, center, measure: those of the overlap under test. With center=False the mean of
            the reference counts as it does there.
        tested: the sets under test (row, d), so that a reference made of them is refused.
        splits: pairs of sets of the reference; where its rows suffice, no row is in two of them.

    Cost: draws × (1 + splits) pairs of eigendecompositions of min(n, r), r <= row the rank of the
    reference.

    Raises:
        InputError: fewer than n_a + n_b vectors, a k they do not carry, the tested vectors among
            them, unusable counts.
    """
    require_measure(measure)
    require_positive(n_a=n_a, n_b=n_b, k=k, splits=splits, draws=draws)
    if not isinstance(center, bool):
        raise InputError(
            f"center={center!r} must be True or False here:"
            " samples under the null have no given mean"
        )
    rows = one_set(reference, "reference")
    if len(rows) < n_a + n_b:
        raise InputError(
            f"reference has {len(rows)} rows; two disjoint sets of {n_a} and {n_b} need"
            f" {n_a + n_b}. covariance_overlap_null takes fewer,"
            " at the price of a null that mostly lies too high"
        )
    refuse_tested(reference, tested, "reference")
    mean = rows.mean(dim=0)
    left, singular, axes = torch.linalg.svd(rows - mean, full_matrices=False)
    if float(singular[0]) <= float(
        rank_tolerance(torch.linalg.vector_norm(rows), rows.shape, reference.dtype)
    ):
        raise InputError(
            f"reference of shape {tuple(rows.shape)} has no variance; pass vectors that differ"
        )
    kept = singular > 1e-12 * singular[0]
    singular, along = singular[kept] / singular[0], (mean @ axes[kept].mT) / singular[0]
    beside = torch.linalg.vector_norm(mean - mean @ axes[kept].mT @ axes[kept]) / singular[0]
    rng = numpy_rng(seed, "reference_overlap_null", n_a, n_b, k)
    pattern = _disjoint_sets(len(rows), n_a + n_b, splits, rng)
    pool = int(pattern.max()) + 1
    offset = torch.zeros(len(singular) + 1, dtype=torch.float64)
    if not center:
        offset[:-1], offset[-1] = along, beside

    def overlap(sets: Tensor) -> Tensor:
        a, b = (
            top_bases(part, k, center, "reference")
            for part in (sets[..., :n_a, :], sets[..., n_a:, :])
        )
        return measure_from_cosines(cosines_between(a, b), measure)

    def placed(coordinates: Tensor) -> Tensor:
        return torch.nn.functional.pad(coordinates, (0, 1)) + offset

    order = torch.from_numpy(rng.permutation(len(rows)))
    seen = _log_odds(overlap(placed(left[:, kept] * singular)[order][pattern]).mean())
    scales = singular / (len(rows) - 1) ** 0.5
    values = []
    for size in stacks(draws, (pool + (1 + splits) * (n_a + n_b)) * len(offset)):
        drawn = placed(
            torch.from_numpy(rng.standard_normal((size, pool + n_a + n_b, len(scales)))) * scales
        )
        again = overlap(drawn[:, pattern]).mean(dim=-1)
        error = _log_odds(overlap(drawn[:, pool:])) - _log_odds(again)
        values.append(torch.sigmoid(seen + error))
    label = (
        f"reference {measure}: top {k} of disjoint sets of {n_a} and {n_b} of {len(rows)} reference"
        f" vectors, center={center}"
    )
    return NullDistribution(torch.cat(values).numpy(), label, seed)


def _disjoint_sets(rows: int, size: int, splits: int, rng: np.random.Generator) -> Tensor:
    """Row numbers (splits, size): disjoint where there are enough rows, else each a random choice
    of all rows.
    """
    if rows >= splits * size:
        return torch.arange(splits * size).reshape(splits, size)
    return torch.from_numpy(np.stack([rng.permutation(rows)[:size] for _ in range(splits)]))


def _log_odds(overlap: Tensor) -> Tensor:
    return torch.logit(overlap, eps=_NEARLY)
