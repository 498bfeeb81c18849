"""How high an overlap can get when everything is shared: halves of one set, fitted separately.

A ceiling is set by sample size and spread; it is not a null, and no p-value comes from it.
Permuting the labels of two sets asks whether both are one distribution. That is the question of
this ceiling: pass both sets together.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.seeds import torch_rng
from emlens.geometry.batched_bases import (
    cosines_between,
    one_set,
    require_positive,
    row_coordinates,
)
from emlens.geometry.overlap import Measure, measure_from_cosines, require_measure
from emlens.geometry.subspaces import Center, centred_rows, top_k_subspace


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

    `value` is the mean over splits; `low` and `high` are the 2.5 % and 97.5 % quantiles over
    splits. Splits reuse the same rows, so this is a range and no confidence interval, and it is not
    a null: no p-value comes from it. Each half has row // 2 vectors, so it understates the ceiling
    of the whole set; of two sets of n together, halves have n. Range and invariances are those of
    the measure (`geometry.overlap`).

    Cost: one SVD of the vectors; then 2 × splits SVDs of (row / 2, row), which d does not enter.

    Args:
        vectors: one set (row, d).
        k: dimension of both subspaces.
        center: True or "mean" takes out each half's own mean; False nothing; a vector that one.

    Raises:
        InputError: k above the rank of a half, an unknown measure, no split, values that are not
            finite.
    """
    require_measure(measure)
    require_positive(k=k, splits=splits)
    rows = one_set(vectors, "vectors")
    half = len(rows) // 2
    takes_own_mean = not isinstance(center, Tensor) and center is not False
    # taking out a half's own mean costs one dimension
    limit = min(half - 1 if takes_own_mean else half, rows.shape[1])
    if k > limit:
        raise InputError(
            f"k={k} is above the rank of half of {len(rows)} vectors;"
            f" pass k <= {limit}, or more vectors"
        )
    half_center = center
    if isinstance(center, Tensor):
        # A fixed vector is taken out before the coordinates are made, which do not know of it.
        rows, _, _ = centred_rows(vectors, center)
        half_center = False
    coordinates = row_coordinates(rows, vectors.dtype)
    rng = torch_rng(seed, "split_half_ceiling", len(rows), k)
    values = np.empty(splits)
    for i in range(splits):
        order = torch.randperm(len(rows), generator=rng)
        a = top_k_subspace(coordinates[order[:half]], k, center=half_center)
        b = top_k_subspace(coordinates[order[half : 2 * half]], k, center=half_center)
        values[i] = float(measure_from_cosines(cosines_between(a.basis, b.basis), measure))
    low, high = np.quantile(values, [0.025, 0.975])
    method = (
        f"split-half {measure}, top {k} of halves of {half}:"
        f" mean and 95 % range over {splits} random splits"
    )
    return Estimate(float(values.mean()), float(low), float(high), len(rows), method)
