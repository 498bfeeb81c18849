"""Overlap of two independent sets distributed as a reference, whose covariance is estimated.

What `covariance_overlap_null` takes as known is estimated here, and the error of the estimate is
part of the null. It needs the reference vectors themselves, at least as many as both tested sets
have together. Computed in float64 on the CPU in the span of the reference, in stacks of about 32
MB.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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

_NEARLY = 1e-9  # distance from 0 and 1 to which overlaps are clipped before their log-odds
_RANK = 1e-12  # relative: singular values below it are rounding


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
    """Overlap of two independent sets distributed as the reference, whose covariance is estimated.

    Where the null lies comes from the reference alone, without a Gaussian: the mean overlap T̄ of
    `splits` pairs of disjoint sets of n_a and n_b of its rows. How far a new pair may lie from T̄
    comes from a Gaussian with the reference's moments, in which reference and new pair are both
    drawn again: a draw is T̄ + T* − T̄*, in log-odds (a parametric bootstrap of a prediction error;
    Beran 1990). The steepness that a sample spectrum has too much of drops out of the difference.
    Approximate: docs/nulls.md has its false positives by size of the reference.

    Args:
        reference: vectors (row, d), at least n_a + n_b of them: before activations, re-batched or
            benign deltas.
        n_a, n_b, k, measure: those of the overlap under test.
        center: True or False, whether each set's own mean is taken out, as in the overlap under
            test. With False the mean of the reference counts as it does there.
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
    axes = _PrincipalAxes.of(rows, reference.dtype, center)
    rng = numpy_rng(seed, "reference_overlap_null", n_a, n_b, k)
    pattern = _disjoint_sets(len(rows), n_a + n_b, splits, rng)
    pool = int(pattern.max()) + 1  # rows of a drawn reference that are in some set

    def overlap(sets: Tensor) -> Tensor:
        """Of the first n_a rows of each set (…, n_a + n_b, r) with its last n_b."""
        a = top_bases(sets[..., :n_a, :], k, center, "reference")
        b = top_bases(sets[..., n_a:, :], k, center, "reference")
        return measure_from_cosines(cosines_between(a, b), measure)

    order = torch.from_numpy(rng.permutation(len(rows)))
    observed = _log_odds(overlap(axes.rows[order][pattern]).mean())
    values = []
    for size in stacks(draws, (pool + (1 + splits) * (n_a + n_b)) * axes.rows.shape[1]):
        # a reference of `pool` rows and the new pair after it, in one draw
        noise = rng.standard_normal((size, pool + n_a + n_b, len(axes.scales)))
        drawn_rows = axes.place(torch.from_numpy(noise) * axes.scales)
        reference_mean = overlap(drawn_rows[:, pattern]).mean(dim=-1)
        error = _log_odds(overlap(drawn_rows[:, pool:])) - _log_odds(reference_mean)
        values.append(torch.sigmoid(observed + error))
    label = (
        f"reference {measure}: top {k} of disjoint sets of {n_a} and {n_b} of {len(rows)} reference"
        f" vectors, center={center}"
    )
    return NullDistribution(torch.cat(values).numpy(), label, seed)


@dataclass(frozen=True, eq=False)
class _PrincipalAxes:
    """The reference in its own principal axes, scaled so that the longest is 1.

    Args:
        rows: (row, r + 1); the last coordinate holds what of the mean lies outside the axes.
        scales: standard deviations along the axes (r,).
        offset: the mean (r + 1,), 0 where sets are centred.
    """

    rows: Tensor
    scales: Tensor
    offset: Tensor

    @classmethod
    def of(cls, rows: Tensor, dtype: torch.dtype, center: bool) -> "_PrincipalAxes":
        """By an SVD of the centred rows.

        Raises:
            InputError: rows without variance.
        """
        mean = rows.mean(dim=0)
        left, singular, axes = torch.linalg.svd(rows - mean, full_matrices=False)
        tolerance = rank_tolerance(torch.linalg.vector_norm(rows), rows.shape, dtype)
        if float(singular[0]) <= float(tolerance):
            raise InputError(
                f"reference of shape {tuple(rows.shape)} has no variance; pass vectors that differ"
            )
        above_rounding = singular > _RANK * singular[0]
        left, axes = left[:, above_rounding], axes[above_rounding]
        scaled = singular[above_rounding] / singular[0]
        offset = torch.zeros(len(scaled) + 1, dtype=torch.float64)
        if not center:
            # The mean counts as a direction like any other. Overlaps depend on inner products
            # alone, so its part outside the axes needs only one coordinate: its length.
            offset[:-1] = (mean @ axes.mT) / singular[0]
            offset[-1] = torch.linalg.vector_norm(mean - mean @ axes.mT @ axes) / singular[0]
        placed = torch.nn.functional.pad(left * scaled, (0, 1)) + offset
        return cls(placed, scaled / (len(rows) - 1) ** 0.5, offset)

    def place(self, coordinates: Tensor) -> Tensor:
        """Centred coordinates (…, r) as rows (…, r + 1) about the mean."""
        return torch.nn.functional.pad(coordinates, (0, 1)) + self.offset


def _disjoint_sets(rows: int, size: int, splits: int, rng: np.random.Generator) -> Tensor:
    """Row numbers (splits, size) of each split.

    Disjoint where there are enough rows, else each a random choice of all rows.
    """
    if rows >= splits * size:
        return torch.arange(splits * size).reshape(splits, size)
    return torch.from_numpy(np.stack([rng.permutation(rows)[:size] for _ in range(splits)]))


def _log_odds(overlap: Tensor) -> Tensor:
    """Errors add up on this scale without leaving [0, 1]."""
    return torch.logit(overlap, eps=_NEARLY)
