"""Nulls by relabelling, only for the questions to which they are nulls.

| relabelled | function | what it is a null for |
|---|---|---|
| before and after of a prompt (δ becomes −δ) | `sign_flip_null` | a statistic of the *mean shift* |
| prompts of two sets | `label_permutation_null` | a *difference of means* |
| evaluation and neutral prompts | `neutral_text_null` | overlap with training beyond neutral text |

Refused, with the reason: an overlap, an angle or a share of variance under the first two. A span
does not move when its vectors turn round, and labels permuted between training and evaluation ask
whether both are one distribution, which is a ceiling (`split_half_ceiling`) and not chance. Exact
where the relabelled rows are exchangeable. All relabellings are enumerated, each once, where that
takes no more than the draws asked for (`geometry.relabellings`). Cost: draws × n × rank after one
SVD; `observed` of the null is the statistic of the unchanged rows.
"""

from collections.abc import Iterator
from typing import Final, Literal

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
    top_bases,
)
from emlens.geometry.overlap import Measure, measure_from_cosines, require_measure
from emlens.geometry.relabellings import first_sets, sign_patterns
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


def sign_flip_null(
    deltas: Float[Tensor, "row d_model"],
    other: Float[Tensor, "row_b d_model"] | None = None,
    *,
    statistic: ShiftStatistic = "mean_norm",
    direction: Float[Tensor, " d_model"] | None = None,
    draws: int = 9999,
    seed: int = 0,
) -> NullDistribution:
    """A statistic of the mean shift where before and after are exchangeable for every prompt.

    `observed` is the statistic of the unchanged deltas. `distinct` is the number of sign
    patterns, so that five prompts give no p below 1/32 (1/16 where turning all round changes
    nothing), whatever the draws.

    Args:
        deltas: one row per prompt, after − before.
        other: the deltas of a second set, for "cosine_of_means" alone; its signs are flipped too.
        statistic: "mean_norm", ‖mean δ‖ (large is extreme); "mean_along", mean δ·r̂ along
            `direction` (two-sided); "cosine_of_means" of both sets, in [-1, 1].
        direction: (d_model,), of any length, for "mean_along".

    Raises:
        InputError: a statistic of spans, for which this is not a null; one that is unknown or lacks
            its `direction` or `other`; values that are not finite; no draw.
    """
    reason = (
        "turning deltas round (before and after exchanged) leaves the span that they have as it is,"
        " so this is not a null for an overlap;"
        " use covariance_overlap_null or reference_overlap_null"
    )
    _require_statistic(statistic, ("mean_norm", "mean_along", "cosine_of_means"), reason)
    require_positive(draws=draws)
    if statistic == "cosine_of_means" and other is None:
        raise InputError(f"statistic={statistic!r} needs other, the deltas of the second set")
    if statistic != "cosine_of_means" and other is not None:
        raise InputError(f"statistic={statistic!r} takes one set; leave other out")
    if other is None:
        rows, n = one_set(deltas, "deltas"), len(deltas)
    else:
        rows, n = _pooled(deltas, other, "deltas", "other")
    is_along = statistic == "mean_along"
    points = _along(direction, rows, statistic) if is_along else row_coordinates(rows)
    rng = numpy_rng(seed, "sign_flip_null", statistic, len(points))
    # a norm and a cosine do not change when all rows turn round, so half the patterns suffice
    signs, distinct = sign_patterns(len(points), draws, fix_first=not is_along, rng=rng)

    def values() -> Iterator[Tensor]:
        for weights in signs:
            means = weights[:, :n] @ points[:n] / n
            if other is not None:
                other_means = weights[:, n:] @ points[n:] / (len(points) - n)
                means = torch.stack([means, other_means], dim=1)
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
    """The difference of means a − b where rows of both sets are exchangeable.

    `observed` is the difference of the unchanged sets. `distinct` is the number of ways to
    choose the rows of a (half of it for equal sets and the norm).

    Args:
        a, b: two sets (row, d_model).
        statistic: "mean_difference_norm" (large is extreme), or "mean_difference_along" a
            `direction` (two-sided).
        direction: (d_model,), of any length.

    Raises:
        InputError: a statistic of spans, for which this is not a null; one that is unknown or lacks
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
    # no difference of means changes, and coordinates about the mean lose fewer digits
    rows = rows - rows.mean(dim=0)
    is_norm = statistic == "mean_difference_norm"
    points = row_coordinates(rows) if is_norm else _along(direction, rows, statistic)
    rng = numpy_rng(seed, "label_permutation_null", statistic, n)
    sets, distinct = first_sets(
        len(rows), n, draws, is_mirrored=is_norm, numbers=len(rows), rng=rng
    )

    def values() -> Iterator[Tensor]:
        for members in sets:
            # 1/n_a for rows of a, −1/n_b for the others: one matrix product gives all differences
            shape = (len(members), len(rows))
            weights = torch.full(shape, -1 / (len(rows) - n), dtype=torch.float64)
            yield _of_means(weights.scatter_(1, members, 1 / n) @ points, statistic)

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
    """The overlap of training with evaluation deltas where neutral prompts would do as well.

    `observed` is the overlap with the unchanged evaluation deltas. Training's subspace stays; as
    many rows as evaluation has are drawn from evaluation and neutral prompts together. Under one
    chat template the last prompt token is the same for all prompts, so that an overlap can come
    from the template alone: here it is in the null. A small p says that evaluation prompts overlap
    with training *more than neutral text does*; it says nothing about neutral text itself. Exact
    where both kinds are exchangeable. Drawn sets hold evaluation prompts too, which costs power:
    the more neutral prompts, the sharper the test.

    Cost: draws × one eigendecomposition of min(row_e, rank).

    Args:
        train, evaluation, neutral: deltas (row, d_model) of one site and position.
        k: dimension of both subspaces.
        center: True or False, whether each set's own mean is taken out.
        measure: as in `subspace_overlap`.

    Raises:
        InputError: a k that a set, or a drawn set, does not carry; other widths; values that are
            not finite; no draw.
    """
    require_measure(measure)
    require_positive(k=k, draws=draws)
    if not isinstance(center, bool):
        raise InputError(
            f"center={center!r} must be True or False here: sets that are drawn have no given mean"
        )
    pooled, n = _pooled(evaluation, neutral, "evaluation", "neutral")
    train_rows = one_set(train, "train")
    require_same_width(train_rows, pooled, "train", "evaluation")
    # one basis for all three sets, so that overlaps can be taken in its coordinates
    points = row_coordinates(torch.cat([train_rows, pooled]))
    basis = top_bases(points[: len(train_rows)], k, center, "train")
    points = points[len(train_rows) :]
    rng = numpy_rng(seed, "neutral_text_null", n, k)
    sets, distinct = first_sets(
        len(pooled), n, draws, is_mirrored=False, numbers=n * points.shape[1], rng=rng
    )

    def values() -> Iterator[Tensor]:
        for members in sets:
            bases = top_bases(points[members], k, center, "evaluation or neutral")
            yield measure_from_cosines(cosines_between(bases, basis), measure)

    label = (
        f"{measure} of training with {n} of {len(pooled)} evaluation and neutral prompts, top {k},"
        f" center={center}"
    )
    return _null(values(), label, seed, distinct)


def _require_statistic(statistic: str, choices: tuple[str, ...], reason: str) -> None:
    """Raises:
    InputError: a statistic of spans, with the reason; or one that is none of `choices`.
    """
    if statistic in _SPANS:
        raise InputError(f"statistic={statistic!r}: {reason}")
    if statistic not in choices:
        raise InputError(
            f"statistic={statistic!r} is unknown; pass one of {', '.join(choices)}",
            name=statistic,
            known=choices,
        )


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
    """Rows of both sets, the first set before the second, and the size of the first."""
    rows = one_set(first, name_first)
    more_rows = one_set(second, name_second)
    require_same_width(rows, more_rows, name_first, name_second)
    return torch.cat([rows, more_rows]), len(rows)


def _of_means(means: Tensor, statistic: str) -> Tensor:
    """The statistic from means: (draw, r) of one set, (draw, 2, r) of two for their cosine."""
    if statistic.endswith("along"):
        return means[:, 0]
    lengths = torch.linalg.vector_norm(means, dim=-1)
    if statistic != "cosine_of_means":
        return lengths
    sizes = lengths.prod(dim=-1)
    # signs can cancel a mean exactly: its cosine counts as 0
    divisor = torch.where(sizes > 0, sizes, torch.ones_like(sizes))
    return (means[:, 0] * means[:, 1]).sum(dim=-1) / divisor


def _null(
    stacked: Iterator[Tensor], label: str, seed: int, distinct: int | None
) -> NullDistribution:
    """The first value is the observed one, all following ones are the draws."""
    values = torch.cat(list(stacked))
    if len(values) < 2:
        raise InputError(
            f"{label}: there is one arrangement only, the observed one; more rows are needed"
        )
    observed = float(values[0])
    return NullDistribution(values[1:].numpy(), label, seed, distinct=distinct, observed=observed)
