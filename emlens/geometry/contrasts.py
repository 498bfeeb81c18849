"""Directions from rows of activations: difference of means, whitened difference, mean delta.

Also `text_content`: what of a direction text alone explains. All means are taken in float64: a mean
of thousands of float32 rows loses digits that a small difference needs. Results are float64 for
float64 input and float32 otherwise. Classes whose means agree to rounding have no direction and are
refused. `contrast_sums` does the same from sums, without the rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.shapes import require_same_width
from emlens.foundation.sites import Site
from emlens.geometry.directions import Direction, direction_cosine
from emlens.geometry.linear import EPS64, result_dtype
from emlens.geometry.shrinkage import Shrinkage, whiten_by_rows
from emlens.geometry.subspaces import centred_rows, top_k_subspace


def mean_difference_direction(
    positive: Float[Tensor, "pos d_model"],
    negative: Float[Tensor, "neg d_model"],
    *,
    site: str | Site,
    position: str | None = None,
    ids: Mapping[str, Sequence[str]] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Direction:
    """Mean of `positive` rows minus mean of `negative` rows, so it points to `positive`.

    `baseline` is the mean of the negative rows. Every row weighs the same within its class, so
    class sizes may differ. Invariant to a common shift of all rows; rotates with the rows.

    Args:
        positive, negative: rows (row, d_model) of one site and position.
        site, position: where they were read.
        ids: ids of the rows, by class.
        provenance: anything JSON-ready about where the rows came from.

    Raises:
        InputError: an empty class, other widths, values that are not finite, or means that agree to
            rounding.
    """
    first, second = _two_classes(positive, negative)
    down = second.mean(dim=0)
    difference = mean_difference(first.mean(dim=0), down)
    out = result_dtype(positive, negative)
    return Direction(
        vector=difference.to(out),
        site=Site.parse(site),
        position=position,
        baseline=down.to(out),
        ids=ids or {},
        provenance=dict(provenance or {}),
    )


def whitened_direction(
    positive: Float[Tensor, "pos d_model"],
    negative: Float[Tensor, "neg d_model"],
    *,
    site: str | Site,
    shrinkage: Shrinkage = "oas",
    position: str | None = None,
    ids: Mapping[str, Sequence[str]] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Direction:
    """Fisher's discriminant Σ̂⁻¹(μ₊ − μ₋): the difference of means, whitened within classes.

    The vector has the length of the class difference along it, (Δ·ŵ) ŵ, so that adding it once
    moves one class mean to the other along ŵ. It tells the classes apart best; what *causes* the
    difference is what the mean difference estimates, and with a covariance far from the identity
    the two differ (`emlens.geometry.recovery`). The ρ used is in its provenance.

    Args:
        positive, negative: rows (row, d_model) of one site and position.
        shrinkage: ρ of Σ̂ = (1 − ρ) S + ρ τ I, S pooled within classes; `"oas"` estimates it; 1
            gives the mean difference.
        site, position, ids, provenance: as `mean_difference_direction`.

    Raises:
        InputError: fewer than 2 rows in a class, rows without variance, what
            `mean_difference_direction` refuses, or a shrinkage outside [0, 1] (or 0 with fewer rows
            than coordinates).
    """
    first, second = _two_classes(positive, negative)
    if min(len(first), len(second)) < 2:
        raise InputError(
            f"positive has {len(first)} rows and negative {len(second)};"
            " a covariance within classes needs 2 of each"
        )
    up, down = first.mean(dim=0), second.mean(dim=0)
    difference = mean_difference(up, down)
    # pooled within classes: both means are taken out, which costs 2 degrees of freedom
    centred = torch.cat([first - up, second - down])
    weights, rho = whiten_by_rows(centred, difference, len(centred) - 2, shrinkage)
    out = result_dtype(positive, negative)
    return Direction(
        vector=along(weights, difference).to(out),
        site=Site.parse(site),
        position=position,
        baseline=down.to(out),
        ids=ids or {},
        provenance={**(provenance or {}), "shrinkage": rho},
    )


def direction_from_deltas(
    deltas: Float[Tensor, "row d_model"],
    *,
    site: str | Site,
    kind: Literal["mean", "top_component"] = "mean",
    position: str | None = None,
    ids: Mapping[str, Sequence[str]] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Direction:
    """A direction from deltas (after − before): their mean, or their first uncentred component.

    A component has no sign of its own: it is signed to agree with the mean delta. It is scaled to
    the root mean square of the deltas' coordinates on it.

    Args:
        deltas: rows (row, d_model) of one site and position.
        kind: "mean", or "top_component".
        site, position, ids, provenance: as `mean_difference_direction`.

    Raises:
        InputError: no row, values that are not finite, a zero mean or rank 0, an unknown kind.
    """
    rows, _, _ = centred_rows(deltas, False, "deltas")
    if rows.ndim != 2:
        raise InputError(f"deltas has shape {tuple(rows.shape)}; pass one (row, d) matrix")
    mean = rows.mean(dim=0)
    if kind == "mean":
        scale = float(torch.linalg.vector_norm(rows, dim=1).max())
        if float(torch.linalg.vector_norm(mean)) <= 8 * EPS64 * scale:
            raise InputError(
                "deltas have mean zero, so their mean has no direction; use kind='top_component'"
            )
        vector = mean
    elif kind == "top_component":
        axis = top_k_subspace(rows, 1, center=False).basis[:, 0]
        if float(axis @ mean) < 0:
            axis = -axis
        vector = axis * (rows @ axis).square().mean().sqrt()
    else:
        raise InputError(
            f"kind={kind!r} is unknown; pass 'mean' or 'top_component'",
            name=kind,
            known=("mean", "top_component"),
        )
    return Direction(
        vector=vector.to(result_dtype(deltas)),
        site=Site.parse(site),
        position=position,
        ids=ids or {},
        provenance=dict(provenance or {}),
    )


@dataclass(frozen=True, eq=False)
class TextContent:
    """How much of a direction another model shows on the same texts.

    Args:
        cosine: between the two directions, in [-1, 1].
        share: (d·t)/(d·d), the part of the direction d that the other model's difference t covers:
            1 where they are equal, below 0 where they oppose, above 1 where t is longer.
        remainder: the direction without that part.
    """

    cosine: float
    share: float
    remainder: Direction


def text_content(
    direction: Direction, other: Direction, how: Literal["subtract", "project"] = "subtract"
) -> TextContent:
    """Separate what the text alone explains from a direction.

    Misaligned and aligned answers are different texts, so any model that reads them shows a
    difference t. What a fine-tune adds to it is d − t (`"subtract"`, a difference of differences),
    or d without its part along t (`"project"`).

    Args:
        direction: d, the contrast as the fine-tune reads it.
        other: t, the same contrast of the same answers, read by a model that is not misaligned.

    Raises:
        InputError: other sites, positions, rows or widths; an unknown `how`; nothing is left.
    """
    if how not in ("subtract", "project"):
        raise InputError(
            f"how={how!r} is unknown; pass 'subtract' or 'project'",
            name=how,
            known=("subtract", "project"),
        )
    _require_equal("site", direction.site, other.site)
    _require_equal("position", direction.position, other.position)
    if dict(direction.ids) != dict(other.ids):
        raise InputError(
            "direction and other come from different rows; have both models read the same answers"
        )
    d, t = direction.vector.double(), other.vector.double()
    cosine = direction_cosine(d, t)
    if how == "subtract":
        remainder = d - t
    else:
        remainder = d - (d @ t) / (t @ t) * t
    # 1e-12 of d is rounding: such a remainder would have an arbitrary direction
    if float(torch.linalg.vector_norm(remainder)) <= 1e-12 * float(torch.linalg.vector_norm(d)):
        raise InputError(
            "nothing of the direction is left without its text content;"
            " the two models read these answers alike"
        )
    provenance = {
        **direction.provenance,
        "text_content": how,
        "text_content_model": other.provenance.get("model"),
    }
    without_text = replace(
        direction, vector=remainder.to(direction.vector.dtype), provenance=provenance
    )
    return TextContent(cosine, float(d @ t) / float(d @ d), without_text)


def _require_equal(name: str, of_direction: object, of_other: object) -> None:
    if of_direction != of_other:
        raise InputError(
            f"direction has {name} {str(of_direction)!r} and other {str(of_other)!r};"
            " extract both in one place"
        )


def means_agree(up: Float[Tensor, " d"], down: Float[Tensor, " d"]) -> bool:
    """Whether two class means differ by no more than float64 rounding of them."""
    # a few eps of the means themselves, however small their difference is
    scale = float(torch.linalg.vector_norm(up) + torch.linalg.vector_norm(down))
    return float(torch.linalg.vector_norm(up - down)) <= 8 * EPS64 * scale


def mean_difference(up: Float[Tensor, " d"], down: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """up − down of two class means.

    Raises:
        InputError: they agree to rounding.
    """
    if means_agree(up, down):
        size = float(torch.linalg.vector_norm(up - down))
        raise InputError(
            f"positive and negative have the same mean (they differ by {size:.3g}),"
            " so no direction lies between them"
        )
    return up - down


def along(weights: Float[Tensor, " d"], difference: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """|Δ·ŵ| ŵ: weights that tell two classes apart, with the length of the class difference along
    them; the sign is that of the weights.
    """
    unit = weights / torch.linalg.vector_norm(weights)
    return float(abs(difference @ unit)) * unit


def _two_classes(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Both classes as float64 rows of one width, not centred."""
    first, _, _ = centred_rows(positive, False, "positive")
    second, _, _ = centred_rows(negative, False, "negative")
    require_same_width(first, second, "positive", "negative")
    if first.ndim != 2 or second.ndim != 2:
        raise InputError(
            f"positive has shape {tuple(first.shape)} and negative {tuple(second.shape)};"
            " pass two (row, d) matrices"
        )
    return first, second
