"""Cosines between the directions of several fine-tunes, each beside a null and a ceiling.

The null is what unrelated directions would give, the ceiling what identical ones would.
"""

import math
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.geometry.contrast_sums import ContrastSums
from emlens.geometry.directions import Direction, direction_cosine
from emlens.geometry.random_directions import covariance_cosine_null
from emlens.geometry.reliability import cosine_between, sample_cosine, split_half_cosine
from emlens.stats import adjust_p_values

COLUMNS = [
    "a",
    "b",
    "cosine",
    "low",
    "high",
    "n",
    "null_mean",
    "null_sd",
    "null_95",
    "p",
    "p_adjusted",
    "isotropic_sd",
    "ceiling",
]


def compare_directions(
    directions: Mapping[str, Direction | ContrastSums],
    before: Float[Tensor, "row d_model"],
    *,
    draws: int = 10_000,
    splits: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Cosine of every pair of directions beside chance and ceiling, one row per pair.

    Args:
        directions: by name of the fine-tune; all at one site and position. `ContrastSums` give
            intervals and ceilings, where the two are sums over the same blocks; a plain `Direction`
            gives neither.
        before: covariance (d, d) or rows of activations at that place *before* fine-tuning.
        splits: random halves of the units, for the ceiling.

    Returns:
        a, b, cosine, low, high (95 %, jackknife over blocks of units; NaN without sums), n
        (blocks), null_mean, null_sd, null_95, p (one-sided against independent directions with the
        covariance of `before`), p_adjusted (Holm over pairs), isotropic_sd (1/√d, a landmark only),
        ceiling (expected cosine if both estimated one direction, from their split halves; NaN
        without).

    Raises:
        InputError: fewer than 2 directions, several sites or positions, other widths, an unusable
            covariance.
    """
    if len(directions) < 2:
        raise InputError(f"directions holds {len(directions)}; pass at least 2 to compare")
    _require_one_place(directions)
    null = covariance_cosine_null(before, draws, seed)
    vectors, ceilings = {}, {}
    for name, direction in directions.items():
        if isinstance(direction, ContrastSums):
            vectors[name] = direction.difference
            split_half = split_half_cosine(direction, splits=splits, seed=seed)
            ceilings[name] = sample_cosine(split_half.value)
        else:
            vectors[name] = direction.vector
            ceilings[name] = math.nan
    rows: list[dict[str, Any]] = []
    for a, b in combinations(directions, 2):
        cosine = direction_cosine(vectors[a], vectors[b])
        low, high, n = _interval(directions[a], directions[b])
        rows.append(
            {
                "a": a,
                "b": b,
                "cosine": cosine,
                "low": low,
                "high": high,
                "n": n,
                "null_mean": null.mean,
                "null_sd": null.sd,
                "null_95": null.quantile(0.95),
                "p": null.p_value(cosine),
                "isotropic_sd": 1 / math.sqrt(len(vectors[a])),
                # errors of the two are independent, so their expected cosines multiply
                "ceiling": ceilings[a] * ceilings[b],
            }
        )
    adjusted = adjust_p_values([row["p"] for row in rows])
    for row, p in zip(rows, adjusted, strict=True):
        row["p_adjusted"] = float(p)
    return pd.DataFrame(rows, columns=COLUMNS)


def _require_one_place(directions: Mapping[str, Direction | ContrastSums]) -> None:
    """Raises:
    InputError: the `Direction`s lie at several sites or positions.
    """
    places = {(str(d.site), d.position) for d in directions.values() if isinstance(d, Direction)}
    if len(places) > 1:
        raise InputError(
            f"directions lie at {sorted(map(str, places))}; compare them at one site and position"
        )


def _interval(a: Direction | ContrastSums, b: Direction | ContrastSums) -> tuple[float, float, int]:
    """95 % interval of the cosine and its blocks; NaN and 0 where both are not sums over blocks."""
    if not (isinstance(a, ContrastSums) and isinstance(b, ContrastSums)):
        return math.nan, math.nan, 0
    if len(a.positive) != len(b.positive):
        return math.nan, math.nan, 0
    estimate = cosine_between(a, b)
    return max(-1.0, estimate.low), min(1.0, estimate.high), estimate.n
