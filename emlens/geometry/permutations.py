"""Nulls by relabelling, only for the questions to which they are nulls.

| relabelled | function | what it is a null for |
|---|---|---|
| before and after of a prompt (δ becomes −δ) | `sign_flip_null` | statistics of the *mean shift*:
shifts are as likely to point back | | prompts of two sets | `label_permutation_null` | a
*difference of means*: both sets are one distribution | | evaluation and neutral prompts |
`neutral_text_null` | evaluation prompts overlap with training no more than neutral text does |

Refused, with the reason: an overlap, an angle or a share of variance under the first two. A span
does not move when its vectors turn round, and labels permuted between training and evaluation ask
whether both are one distribution, which is a ceiling (`split_half_ceiling`) and not chance. Exact
where the relabelled rows are exchangeable. All relabellings are gone through, each once, where that
takes no more than the draws asked for. Cost: draws × n × rank after one SVD; `observed` of the null
is the statistic of the rows as they came.
"""

import math
from collections.abc import Iterator
from itertools import combinations, islice, product
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.seeds import numpy_rng
from emlens.foundation.shapes import as_float64, require_same_width
from emlens.geometry.batched_bases import (
    cosines_between,
    one_set,
    require_positive,
    row_coordinates,
    stacks,
    top_bases,
)
from emlens.geometry.overlap import Measure, measure_from_cosines, require_measure
from emlens.stats import NullDistribution

ShiftStatistic = Literal["mean_norm", "mean_along", "cosine_of_means"]
DifferenceStatistic = Literal["mean_difference_norm", "mean_difference_along"]

_SPANS: Final = (
    "overlap",
    "subspace_overlap",
    "principal_angles",
    "variance_captured",
    "projection_fraction",
)


def _require_statistic(statistic: str, known: tuple[str, ...], reason: str) -> None:
    if statistic in _SPANS:
        raise InputError(f"statistic={statistic!r}: {reason}")
    if statistic not in known:
        raise InputError(f"statistic={statistic!r} is unknown; pass one of {', '.join(known)}")


def _along(direction: Tensor | None, rows: Tensor, statistic: str) -> Tensor:
    """Coordinates (row, 1) of rows along a direction of any length."""
    if direction is None:
        raise InputError(f"statistic={statistic!r} needs direction, a vector of shape (d,)")
    wide = as_float64(direction, "direction")
    if wide.ndim != 1:
        raise InputError(
            f"direction has shape {tuple(direction.shape)}; pass a vector of shape (d,)"
        )
    require_same_width(rows, wide, "the rows", "direction")
    norm = torch.linalg.vector_norm(wide)
    if not float(norm) > 0:
        raise InputError("direction is zero; pass a vector of positive length")
    return (rows @ (wide / norm))[:, None]


def _pooled(first: Tensor, second: Tensor, name_first: str, name_second: str) -> tuple[Tensor, int]:
    rows = one_set(first, name_first), one_set(second, name_second)
    require_same_width(*rows, name_first, name_second)
    return torch.cat(rows), len(rows[0])


def _of_means(means: Tensor, statistic: str) -> Tensor:
    """The statistic from mean vectors: (draw, r) of one set, (draw, 2, r) of two for their
    cosine.
    """
    if statistic.endswith("along"):
        return means[:, 0]
    if statistic == "cosine_of_means":
        sizes = torch.linalg.vector_norm(means, dim=-1).prod(dim=-1)
        return (means[:, 0] * means[:, 1]).sum(dim=-1) / torch.where(
            sizes > 0, sizes, torch.ones_like(sizes)
        )
    return torch.linalg.vector_norm(means, dim=-1)


def _signs(
    n: int, draws: int, fixed: bool, rng: np.random.Generator
) -> tuple[Iterator[Tensor], int | None]:
    """Stacks (draw, n) of signs, the observed all-plus pattern first, and the number of patterns.

    `fixed`: the first sign stays, where turning all rows round changes nothing.
    """
    free = n - fixed
    if free < 63 and 2**free - 1 <= draws:
        every = product(*[(1.0,)] * (n - free), *[(1.0, -1.0)] * free)
        lists = (list(islice(every, size)) for size in stacks(2**free, n))
        return (torch.tensor(patterns, dtype=torch.float64) for patterns in lists), 2**free

    def drawn() -> Iterator[Tensor]:
        yield torch.ones(1, n, dtype=torch.float64)
        for size in stacks(draws, n):
            signs = rng.choice(np.array([-1.0, 1.0]), size=(size, n))
            yield torch.from_numpy(signs)

    return drawn(), 2**free if free < 63 else None


def _choices(
    rows: int, n: int, draws: int, mirrored: bool, numbers: int, rng: np.random.Generator
) -> tuple[Iterator[Tensor], int | None]:
    """Stacks (draw, n) of rows that go into the first set, the observed choice first, and the
    number of choices.

    `mirrored`: exchanging the two sets changes nothing, so row 0 stays in the first where both are
    equally large.
    """
    kept = int(mirrored and 2 * n == rows)
    ways = math.comb(rows - kept, n - kept)
    if ways - 1 <= draws:
        every = combinations(range(kept, rows), n - kept)
        lists = (
            [(*range(kept), *chosen) for chosen in islice(every, size)]
            for size in stacks(ways, numbers)
        )
        return (torch.tensor(chosen) for chosen in lists), ways

    def drawn() -> Iterator[Tensor]:
        yield torch.arange(n)[None]
        for size in stacks(draws, numbers):
            yield torch.from_numpy(
                rng.permuted(np.tile(np.arange(rows), (size, 1)), axis=1)[:, :n].copy()
            )

    return drawn(), ways if ways < 2**63 else None


def _null(
    stacked: Iterator[Tensor], label: str, seed: int, distinct: int | None
) -> NullDistribution:
    """The first value is the observed one, the others are the draws."""
    values = torch.cat(list(stacked))
    if len(values) < 2:
        raise InputError(
            f"{label}: there is one arrangement only, the observed one; more rows are needed"
        )
    return NullDistribution(
        values[1:].numpy(), label, seed, distinct=distinct, observed=float(values[0])
    )


def sign_flip_null(
    deltas: Float[Tensor, "row d_model"],
    other: Float[Tensor, "row_b d_model"] | None = None,
    *,
    statistic: ShiftStatistic = "mean_norm",
    direction: Float[Tensor, " d_model"] | None = None,
    draws: int = 9999,
    seed: int = 0,
) -> NullDistribution:
    """A statistic of the mean shift (`observed`) where before and after are exchangeable for every
    prompt.

    Args:
        deltas: one row a prompt, after − before.
        other: the deltas of a second set, for "cosine_of_means" alone; its signs are flipped too.
        statistic: "mean_norm", ‖mean δ‖ (large is extreme); "mean_along", mean δ·r̂ along
            `direction` (two-sided); "cosine_of_means" of both sets, in [-1, 1].

    `distinct` of the null is the number of sign patterns, so that five prompts give no p below 1/32
    (1/16 where turning all round changes nothing), whatever the draws.

    Raises:
        InputError: a statistic of spans, for which this is no null; one that is unknown or lacks
            its `direction` or `other`; values that are not finite; no draw.
    """
    reason = (
        "turning deltas round (before and after exchanged) leaves the span that they have as it is,"
        " so this is no null for an overlap; use covariance_overlap_null or reference_overlap_null"
    )
    _require_statistic(statistic, ("mean_norm", "mean_along", "cosine_of_means"), reason)
    require_positive(draws=draws)
    if (other is not None) != (statistic == "cosine_of_means"):
        need = (
            "needs other, the deltas of the second set"
            if other is None
            else "takes one set; leave other out"
        )
        raise InputError(f"statistic={statistic!r} {need}")
    rows, n = (
        (one_set(deltas, "deltas"), len(deltas))
        if other is None
        else _pooled(deltas, other, "deltas", "other")
    )
    points = (
        _along(direction, rows, statistic) if statistic == "mean_along" else row_coordinates(rows)
    )
    rng = numpy_rng(seed, "sign_flip_null", statistic, len(points))
    signs, distinct = _signs(len(points), draws, statistic != "mean_along", rng)

    def values() -> Iterator[Tensor]:
        for weights in signs:
            means = weights[:, :n] @ points[:n] / n
            if other is not None:
                means = torch.stack([means, weights[:, n:] @ points[n:] / (len(points) - n)], dim=1)
            yield _of_means(means, statistic)

    return _null(values(), f"{statistic} of {len(points)} deltas with random signs", seed, distinct)


def label_permutation_null(
    a: Float[Tensor, "row_a d_model"],
    b: Float[Tensor, "row_b d_model"],
    *,
    statistic: DifferenceStatistic = "mean_difference_norm",
    direction: Float[Tensor, " d_model"] | None = None,
    draws: int = 9999,
    seed: int = 0,
) -> NullDistribution:
    """The difference of means a − b (`observed`) where rows of both sets are exchangeable.

    Args:
        statistic: "mean_difference_norm" (large is extreme), or "mean_difference_along" a
            `direction` (two-sided).

    `distinct` of the null is the number of ways to choose the rows of a (half of it for equal sets
    and the norm).

    Raises:
        InputError: a statistic of spans, for which this is no null; one that is unknown or lacks
            its `direction`; values that are not finite; no draw.
    """
    reason = (
        "permuting the labels of two sets asks whether both are one distribution,"
        " which is the ceiling of an overlap and not chance;"
        " use split_half_ceiling of both together, or covariance_overlap_null"
    )
    _require_statistic(statistic, ("mean_difference_norm", "mean_difference_along"), reason)
    require_positive(draws=draws)
    rows, n = _pooled(a, b, "a", "b")
    rows = rows - rows.mean(dim=0)
    points = (
        row_coordinates(rows)
        if statistic == "mean_difference_norm"
        else _along(direction, rows, statistic)
    )
    rng = numpy_rng(seed, "label_permutation_null", statistic, n)
    choices, distinct = _choices(
        len(rows), n, draws, statistic == "mean_difference_norm", len(rows), rng
    )

    def values() -> Iterator[Tensor]:
        for chosen in choices:
            weights = torch.full(
                (len(chosen), len(rows)), -1 / (len(rows) - n), dtype=torch.float64
            )
            yield _of_means(weights.scatter_(1, chosen, 1 / n) @ points, statistic)

    label = f"{statistic} of {n} and {len(rows) - n} vectors with permuted labels"
    return _null(values(), label, seed, distinct)


def neutral_text_null(
    train: Float[Tensor, "row_t d_model"],
    evaluation: Float[Tensor, "row_e d_model"],
    neutral: Float[Tensor, "row_n d_model"],
    k: int,
    *,
    center: bool,
    measure: Measure = "mean_cos2",
    draws: int = 1000,
    seed: int = 0,
) -> NullDistribution:
    """The overlap of training with evaluation deltas (`observed`) where neutral prompts would have
    done as well.

    Training's subspace stays; as many rows as evaluation has are drawn from evaluation and neutral
    prompts together. Under one chat template the last prompt token is the same for all prompts, so
    that an overlap can come from the template alone: here it is in the null. A small p says that
    evaluation prompts overlap with training *more than neutral text does*; it says nothing about
    neutral text itself. Exact where both kinds are exchangeable. Sets that are drawn hold
    evaluation prompts too, which costs power: the more neutral prompts, the sharper the test.

    Cost: draws × one eigendecomposition of min(row_e, rank).

    Raises:
        InputError: a k that a set, or a set drawn, does not carry; other widths; values that are
            not finite; no draw.
    """
    require_measure(measure)
    require_positive(k=k, draws=draws)
    if not isinstance(center, bool):
        raise InputError(
            f"center={center!r} must be True or False here: sets that are drawn have no given mean"
        )
    pooled, n = _pooled(evaluation, neutral, "evaluation", "neutral")
    fixed = one_set(train, "train")
    require_same_width(fixed, pooled, "train", "evaluation")
    points = row_coordinates(torch.cat([fixed, pooled]))
    basis, points = top_bases(points[: len(fixed)], k, center, "train"), points[len(fixed) :]
    rng = numpy_rng(seed, "neutral_text_null", n, k)
    choices, distinct = _choices(len(pooled), n, draws, False, n * points.shape[1], rng)

    def values() -> Iterator[Tensor]:
        for chosen in choices:
            drawn = top_bases(points[chosen], k, center, "evaluation or neutral")
            yield measure_from_cosines(cosines_between(drawn, basis), measure)

    label = (
        f"{measure} of training with {n} of {len(pooled)} evaluation and neutral prompts, top {k},"
        f" center={center}"
    )
    return _null(values(), label, seed, distinct)
