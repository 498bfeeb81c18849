"""Massive coordinates: the few of a residual stream that carry most of its squared norm.

A handful of coordinates can dominate every norm, cosine and principal component (Sun et al. 2024),
so results are shown with and without them: detect (`massive_coordinates`), exclude
(`without_coordinates`) or clip (`winsorised`). Detection reads one vector, usually mean
activations, and changes nothing. Both sides of a difference must be treated alike: exclude the same
coordinates from before and after, or clip deltas and not the activations they come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.shapes import as_float64, require_ndim, require_same_width
from emlens.geometry.linear import result_dtype


@dataclass(frozen=True)
class MassiveCoordinates:
    """Coordinates of largest magnitude.

    Args:
        indices: coordinate numbers, largest magnitude first; possibly none.
        shares: share of the vector's squared norm that each holds, in the same order.
    """

    indices: tuple[int, ...]
    shares: tuple[float, ...]

    @property
    def share(self) -> float:
        """Share of the squared norm that all of them hold together, in [0, 1]."""
        return float(sum(self.shares))


def massive_coordinates(
    vector: Float[Tensor, " d"], count: int | None = None, *, threshold: float | None = None
) -> MassiveCoordinates:
    """The `count` largest coordinates, or those above `threshold` times the median magnitude.

    Invariant to scaling of the vector.

    Args:
        vector: one vector (d,), usually mean activations or a direction.
        count: how many; ties go to the lower index.
        threshold: ratio to the median magnitude; Sun et al. use 1,000 for single tokens.

    Raises:
        InputError: both or neither of count and threshold, a count outside 1 to d, a zero or
            unusable vector.
    """
    wide = as_float64(vector, "vector")
    if wide.ndim != 1:
        raise InputError(
            f"vector has shape {tuple(wide.shape)}; pass one vector of shape (d,),"
            " such as mean activations"
        )
    if (count is None) == (threshold is None):
        raise InputError(
            f"count={count!r} and threshold={threshold!r} were given; pass exactly one of them"
        )
    size = wide.abs()
    if not bool((size > 0).any()):
        raise InputError("vector is zero, so no coordinate holds a share of its norm")
    order = torch.sort(size, descending=True, stable=True).indices
    if threshold is not None:
        massive = order[size[order] > _magnitude_limit(size, threshold)]
    else:
        massive = order[: _coordinate_count(count, len(size))]
    # scaled by the largest entry, so that no square overflows
    scaled = size / size.max()
    shares = scaled[massive] ** 2 / (scaled**2).sum()
    return MassiveCoordinates(tuple(massive.tolist()), tuple(shares.tolist()))


def _coordinate_count(count: int | None, d: int) -> int:
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= d:
        raise InputError(f"count={count!r} must be an integer from 1 to {d}")
    return count


def _magnitude_limit(size: Tensor, threshold: float) -> Tensor:
    """`threshold` times the median magnitude; torch takes the lower of two middle values."""
    if not threshold > 0:
        raise InputError(
            f"threshold={threshold!r} must be positive: a multiple of the median magnitude"
        )
    return threshold * size.median()


def share_in_coordinates(
    vectors: Float[Tensor, "*batch d"], indices: Sequence[int] | MassiveCoordinates
) -> Float[Tensor, "*batch"]:
    """Share of each vector's squared norm that lies in the given coordinates.

    For example a direction's share in the massive ones. Range [0, 1]; len(indices)/d for isotropic
    vectors. Invariant to scaling; not to rotation, since it is about coordinates.

    Raises:
        InputError: an index that does not exist, values that are not finite, a zero vector.
    """
    coordinates = _indices(vectors, indices)
    wide = as_float64(vectors, "vectors")
    largest = wide.abs().amax(dim=-1, keepdim=True)
    if bool((largest == 0).any()):
        raise InputError(
            "vectors holds a zero vector, whose norm no coordinate has a share of; leave it out"
        )
    squares = (wide / largest).square()
    share = squares[..., coordinates].sum(dim=-1) / squares.sum(dim=-1)
    return share.to(result_dtype(vectors))


def winsorised(
    vectors: Float[Tensor, "*batch d"],
    *,
    threshold: float,
    reference: Float[Tensor, " d"] | None = None,
) -> Float[Tensor, "*batch d"]:
    """A copy of the vectors, coordinates clipped to ± `threshold` times a median magnitude.

    Idempotent; width and dtype stay.

    Args:
        threshold: 1 or more, as in `massive_coordinates(threshold=)`: nothing above it remains.
        reference: a vector, such as mean activations, whose median magnitude sets one limit for
            all; by default each vector's own does, and the result scales with the vector.

    Raises:
        InputError: a threshold below 1, a limit of zero, another width, values that are not finite.
    """
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not threshold >= 1:
        raise InputError(
            f"threshold={threshold!r} must be 1 or more: a multiple of the median magnitude"
        )
    require_ndim(vectors, 1, "vectors", "vectors with their coordinates on the last axis")
    wide = as_float64(vectors, "vectors")
    if reference is None:
        middle = wide.abs().median(dim=-1, keepdim=True).values
    else:
        require_same_width(vectors, reference, "vectors", "reference")
        middle = as_float64(reference, "reference").abs().median(dim=-1, keepdim=True).values
    if bool((middle == 0).any()):
        raise InputError(
            "half the coordinates are zero, so the median magnitude sets no limit;"
            " exclude coordinates instead"
        )
    limit = (threshold * middle).expand(*wide.shape[:-1], 1)
    return wide.clamp(min=-limit, max=limit).to(vectors.dtype)


def without_coordinates(
    vectors: Float[Tensor, "*batch d"], indices: Sequence[int] | MassiveCoordinates
) -> Float[Tensor, "*batch d"]:
    """A copy of the vectors with the given coordinates set to 0.

    Width and dtype stay, so results remain comparable.

    Args:
        indices: 0-based, or what `massive_coordinates` found.

    Raises:
        InputError: an index that does not exist.
    """
    result = vectors.detach().clone()
    result[..., _indices(vectors, indices)] = 0
    return result


def _indices(vectors: Tensor, indices: Sequence[int] | MassiveCoordinates) -> list[int]:
    """Distinct coordinate numbers in their order of appearance.

    Raises:
        InputError: one that does not exist.
    """
    require_ndim(vectors, 1, "vectors", "vectors with their coordinates on the last axis")
    if isinstance(indices, MassiveCoordinates):
        indices = indices.indices
    distinct = list(dict.fromkeys(indices))
    d = vectors.shape[-1]
    for i in distinct:
        if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < d:
            raise InputError(f"indices holds {i!r}; pass coordinate numbers from 0 to {d - 1}")
    return distinct
