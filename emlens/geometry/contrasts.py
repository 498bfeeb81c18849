"""Directions from rows of activations: difference of class means, deltas, whitened difference; and
what text alone explains.

All means are taken in float64; results are float64 for float64 input and float32 otherwise. Classes
whose means agree to rounding have no direction and are refused. `contrast_sums` does the same from
sums, without the rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """Mean of `positive` rows minus mean of `negative` rows, so it points to `positive`; `baseline`
    is the latter.

    Every row weighs the same within its class, so class sizes may differ. Invariant to a common
    shift of all rows.

    Raises:
        InputError: an empty class, other widths, values that are not finite, or means that agree to
            rounding.
    """
    first, second = _two_classes(positive, negative)
    difference = mean_difference(first.mean(dim=0), second.mean(dim=0))
    out = result_dtype(positive, negative)
    return Direction(
        difference.to(out),
        Site.parse(site),
        position,
        second.mean(dim=0).to(out),
        ids or {},
        dict(provenance or {}),
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
    """Σ̂⁻¹(μ₊ − μ₋): the difference of means with the covariance within classes divided out
    (Fisher's discriminant).

    Args:
        shrinkage: ρ of Σ̂ = (1 − ρ) S + ρ τ I, S pooled within classes; `"oas"` estimates it; 1
            gives the mean difference.

    The vector has the length of the class difference along it, (Δ·ŵ) ŵ, so that adding it once
    moves one class mean to the other along ŵ. It tells the classes apart best; what *causes* the
    difference is what the mean difference estimates, and with a covariance far from the identity
    the two point apart (`emlens.geometry.recovery`). The ρ used is in its provenance.

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
    centred = torch.cat([first - up, second - down])
    found, rho = whiten_by_rows(centred, difference, len(centred) - 2, shrinkage)
    out = result_dtype(positive, negative)
    facts = {**(provenance or {}), "shrinkage": rho}
    return Direction(
        along(found, difference).to(out), Site.parse(site), position, down.to(out), ids or {}, facts
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

    The component is signed to agree with the mean delta and scaled to the deltas' root-mean-square
    coordinate on it.

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
        axis = -axis if float(axis @ mean) < 0 else axis
        vector = axis * (rows @ axis).square().mean().sqrt()
    else:
        raise InputError(f"kind={kind!r} is unknown; pass 'mean' or 'top_component'")
    return Direction(
        vector.to(result_dtype(deltas)),
        Site.parse(site),
        position,
        None,
        ids or {},
        dict(provenance or {}),
    )


@dataclass(frozen=True, eq=False)
class TextContent:
    """How much of a direction another model shows on the same texts.

    Args:
        cosine: between the two directions, in [-1, 1].
        share: (d·t)/(d·d): how much of the direction's length the other model's difference covers;
            1 where they are equal, below 0 where they oppose, above 1 where the other model's is
            longer.
        remainder: the direction without it.
    """

    cosine: float
    share: float
    remainder: Direction


def text_content(
    direction: Direction, other: Direction, how: Literal["subtract", "project"] = "subtract"
) -> TextContent:
    """Separate what the text alone explains: the same contrast, read by a model that is not
    misaligned.

    Misaligned and aligned answers are different texts, so any model that reads them shows a
    difference; what a fine-tune adds to it is d − t (`"subtract"`, a difference of differences), or
    d without its part along t (`"project"`).

    Raises:
        InputError: other sites, positions, rows or widths; an unknown `how`; nothing is left.
    """
    if how not in ("subtract", "project"):
        raise InputError(f"how={how!r} is unknown; pass 'subtract' or 'project'")
    for name, mine, theirs in (
        ("site", direction.site, other.site),
        ("position", direction.position, other.position),
    ):
        if mine != theirs:
            raise InputError(
                f"direction has {name} {str(mine)!r} and other {str(theirs)!r};"
                " extract both in one place"
            )
    if dict(direction.ids) != dict(other.ids):
        raise InputError(
            "direction and other come from different rows; have both models read the same answers"
        )
    d, t = direction.vector.double(), other.vector.double()
    cosine = direction_cosine(d, t)
    left = d - t if how == "subtract" else d - (d @ t) / (t @ t) * t
    if float(torch.linalg.vector_norm(left)) <= 1e-12 * float(torch.linalg.vector_norm(d)):
        raise InputError(
            "nothing of the direction is left without its text content;"
            " the two models read these answers alike"
        )
    facts = {
        **direction.provenance,
        "text_content": how,
        "text_content_model": other.provenance.get("model"),
    }
    kept = Direction(
        left.to(direction.vector.dtype),
        direction.site,
        direction.position,
        direction.baseline,
        direction.ids,
        facts,
    )
    return TextContent(cosine, float(d @ t) / float(d @ d), kept)


def means_agree(up: Float[Tensor, " d"], down: Float[Tensor, " d"]) -> bool:
    """Whether two class means differ by no more than float64 rounding of them."""
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
    """(Δ·ŵ) ŵ: weights that tell two classes apart, with the length of the class difference along
    them.
    """
    unit = weights / torch.linalg.vector_norm(weights)
    return float(abs(difference @ unit)) * unit


def _two_classes(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    first, _, _ = centred_rows(positive, False, "positive")
    second, _, _ = centred_rows(negative, False, "negative")
    require_same_width(first, second, "positive", "negative")
    if first.ndim != 2 or second.ndim != 2:
        raise InputError(
            f"positive has shape {tuple(first.shape)} and negative {tuple(second.shape)};"
            " pass two (row, d) matrices"
        )
    return first, second
