"""How alike the shifts on two sets of prompts are, at every site and position.

Four statistics. Two are tested against training without the content: `variance_weighted` sees a
direction that both sides share, `mean_cosine` sees a shift that all prompts share. Two are
described beside them: `first_angle`, the smallest principal angle of the top-k subspaces, and
`mean_cos2`, which weighs k directions alike.
"""

from typing import Final

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from emlens.activations import Activations, activation_deltas
from emlens.foundation.errors import InputError
from emlens.foundation.seeds import numpy_rng
from emlens.geometry import direction_cosine, principal_angles, subspace_overlap, top_k_subspace
from emlens.geometry.covariance_overlap import variance_weighted_overlap
from emlens.geometry.shifts import components_above_rounding
from emlens.stats import cosine_of_means

TESTED: Final = ("variance_weighted", "mean_cosine")
DESCRIBED: Final = ("first_angle", "mean_cos2")
Pair = tuple[Activations, Activations]
"""Activations before and after, of the same prompts."""


def shift_statistics(train: Pair, evaluation: Pair, k: int) -> pd.DataFrame:
    """One row per site, position and statistic.

    A place is left out where either side's shifts have fewer than two components above rounding:
    where nothing moved, and where one direction is all that an adapter of rank 1 can write. Both
    sides share that direction by construction; it is an identity and no finding.

    Args:
        train, evaluation: activations before and after, on training and on evaluation prompts;
            as many of the one as of the other, since overlaps depend on their number.
        k: dimension of the subspaces; fewer where the shifts carry fewer components.

    Returns:
        Columns site, position, statistic, value. `first_angle` is in degrees, the others lie in
        [0, 1] ([-1, 1] for `mean_cosine`).

    Raises:
        InputError: other numbers of prompts, sites or positions on the two sides.
    """
    return statistics_of_shifts(
        (train[0], activation_deltas(*train)), (evaluation[0], activation_deltas(*evaluation)), k
    )


def statistics_of_shifts(train: Pair, evaluation: Pair, k: int) -> pd.DataFrame:
    """`shift_statistics` of shifts that were computed already.

    Args:
        train, evaluation: activations before, and the shifts from them.
    """
    before_train, shifts_train = train
    before_evaluation, shifts_evaluation = evaluation
    if len(shifts_train) != len(shifts_evaluation):
        raise InputError(
            f"train has {len(shifts_train)} prompts and evaluation {len(shifts_evaluation)};"
            " overlap depends on their number, so pass as many of each"
        )
    if shifts_train.keys != shifts_evaluation.keys:
        raise InputError(
            "train and evaluation were not captured at the same sites and positions;"
            " capture both with one CaptureSpec"
        )
    rows: list[dict[str, object]] = []
    for key in shifts_train.keys:
        site, position = key
        sides = (shifts_train[key], shifts_evaluation[key])
        before = (before_train[key], before_evaluation[key])
        for statistic, value in _at_place(sides, before, k).items():
            rows.append(
                {"site": site, "position": position, "statistic": statistic, "value": value}
            )
    return pd.DataFrame(rows, columns=["site", "position", "statistic", "value"])


def split_half_statistics(shifts: Tensor, splits: int, seed: int) -> dict[str, float]:
    """The tested statistics between random halves of one set of shifts: a ceiling, no null.

    Args:
        shifts: (row, d); at least 6 rows.
        splits: halvings whose mean is taken.
    """
    rng = numpy_rng(seed, "split halves")
    rows = shifts.double()
    values: dict[str, list[float]] = {name: [] for name in TESTED}
    for _ in range(splits):
        order = rng.permutation(len(rows))
        half = len(rows) // 2
        first, second = rows[order[:half].tolist()], rows[order[half : 2 * half].tolist()]
        values["variance_weighted"].append(
            float(variance_weighted_overlap(first, second, center=True))
        )
        values["mean_cosine"].append(_mean_cosine(first, second))
    return {name: float(np.mean(each)) for name, each in values.items()}


def _at_place(
    sides: tuple[Tensor, Tensor], before: tuple[Tensor, Tensor], k: int
) -> dict[str, float]:
    components = min(
        components_above_rounding(shifts, activations)
        for shifts, activations in zip(sides, before, strict=True)
    )
    if components < 2:
        return {}
    return statistics_of_rows(sides[0].double(), sides[1].double(), min(k, components))


def statistics_of_rows(
    a: Float[Tensor, "row d"], b: Float[Tensor, "other d"], dimension: int
) -> dict[str, float]:
    """The four statistics of two sets of vectors.

    Args:
        a, b: float64. dimension: of the subspaces of `first_angle` and `mean_cos2`.
    """
    space_a = top_k_subspace(a, dimension, center=True)
    space_b = top_k_subspace(b, dimension, center=True)
    return {
        "variance_weighted": float(variance_weighted_overlap(a, b, center=True)),
        "mean_cosine": _mean_cosine(a, b),
        "first_angle": float(torch.rad2deg(principal_angles(space_a, space_b)[0])),
        "mean_cos2": float(subspace_overlap(space_a, space_b)),
    }


def _mean_cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of the mean shifts without their noise; with it, where a mean is not above its noise.

    The estimate without noise can exceed 1, where it is cut.
    """
    estimate = cosine_of_means(a.numpy(), b.numpy())
    if estimate.defined:
        return float(np.clip(estimate.value, -1.0, 1.0))
    return float(direction_cosine(a.mean(0), b.mean(0)))
