"""Measures of one cell of the grid of layers and positions, each with its interval or beside its
null: length of shifts, cosine of mean shifts, overlap of their subspaces.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.seeds import numpy_rng
from emlens.geometry import covariance_overlap_null, subspace_overlap, top_k_subspace
from emlens.geometry.components import ComponentCount
from emlens.geometry.permutations import sign_flip_null
from emlens.geometry.shifts import chosen_dimension, components_above_rounding
from emlens.results.study_result import columns_of
from emlens.stats import NullDistribution, bootstrap_mean, cosine_of_means, max_statistic_p

OVERLAP_COLUMNS = ("overlap_k", "overlap", "overlap_null", "overlap_null_q95", "overlap_p")


def overlap_p_max(
    overlaps: Sequence[float], nulls: Sequence[NullDistribution | None], seed: int
) -> list[float]:
    """p of each cell's overlap against the greatest of all cells, however many there are.

    Overlaps of different cells have nulls of different levels, so each is measured in standard
    deviations of its own null first. The cells' nulls are drawn apart. Where overlaps of
    neighbouring cells rise together, the greatest of independent draws is larger than that of joint
    ones (Šidák 1967), so p is too large rather than too small.

    Args:
        overlaps: of each cell. nulls: of each cell, None where nothing was tested.
    """
    tested, observed, draws = [], [], []
    for number, (overlap, null) in enumerate(zip(overlaps, nulls, strict=True)):
        if null is None:
            continue
        # a null keeps its draws sorted; in that order those of all cells would rise together
        order = numpy_rng(seed, f"draws of cell {number}").permutation(null.n_draws)
        spread = null.sd or 1.0  # a null of one value, which ties with itself
        tested.append(number)
        observed.append((overlap - null.mean) / spread)
        draws.append((null.draws[order] - null.mean) / spread)
    p = [math.nan] * len(nulls)
    if tested:
        corrected = max_statistic_p(observed, np.column_stack(draws), step_down=False)
        for number, value in zip(tested, corrected, strict=True):
            p[number] = float(value)
    return p


def shift_columns(deltas: Tensor, before: Tensor, seed: int) -> dict[str, float]:
    """Mean length of the deltas, as a share of the mean length before, with its interval."""
    lengths = deltas.norm(dim=1) / before.norm(dim=1).mean()
    return columns_of("shift", bootstrap_mean(lengths.numpy(), seed=seed))


def cosine_columns(train: Tensor, evaluation: Tensor, flips: int, seed: int) -> dict[str, float]:
    """Cosine of the mean shifts, noise taken out; its null turns the sign of each shift at random.

    The null is of the plain cosine, so p compares the plain cosine with it.
    """
    cosine = cosine_of_means(train.numpy(), evaluation.numpy())
    null = sign_flip_null(train, evaluation, statistic="cosine_of_means", draws=flips, seed=seed)
    plain = torch.nn.functional.cosine_similarity(train.mean(0), evaluation.mean(0), dim=0)
    return {
        **columns_of("cosine", cosine),
        "cosine_null": null.quantile(0.95),
        "cosine_p": null.p_value(float(plain)),
    }


def overlap_columns(
    train: Tensor,
    evaluation: Tensor,
    before: Tensor,
    wanted: ComponentCount,
    draws: int,
    seed: int,
) -> tuple[dict[str, float], NullDistribution | None]:
    """Centred overlap of equally many shifts, and its null; k is chosen on the training shifts and
    lowered to what both sets hold. Both are missing where nothing moved, or where k is the elbow
    and there is none.
    """
    most = min(
        components_above_rounding(train, before),
        components_above_rounding(evaluation, before),
        len(train) - 1,
    )
    if most < 1:
        return dict.fromkeys(OVERLAP_COLUMNS, np.nan), None
    try:
        k = min(chosen_dimension(wanted, train, before), most)
    except InputError:
        # fewer than 9 singular values, or none stands out
        return dict.fromkeys(OVERLAP_COLUMNS, np.nan), None
    value = float(
        subspace_overlap(
            top_k_subspace(train, k, center=True), top_k_subspace(evaluation, k, center=True)
        )
    )
    null = covariance_overlap_null(
        before.double(), len(train), len(evaluation), k, center=True, draws=draws, seed=seed
    )
    columns = {
        "overlap_k": k,
        "overlap": value,
        "overlap_null": null.mean,
        "overlap_null_q95": null.quantile(0.95),
        "overlap_p": null.p_value(value),
    }
    return columns, null
