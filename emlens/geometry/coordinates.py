"""Massive coordinates: the few of a residual stream that carry most of its squared norm.

A handful of coordinates can dominate every norm, cosine and principal component (Sun et al. 2024), so results are shown
with and without them. Detection reads one vector, usually mean activations; it never changes anything by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.shapes import as_float64, require_ndim


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
        """Share of the squared norm that they hold together, in [0, 1]."""
        return float(sum(self.shares))


def massive_coordinates(
    vector: Float[Tensor, " d"], count: int | None = None, *, threshold: float | None = None
) -> MassiveCoordinates:
    """The `count` largest coordinates of a vector, or those above `threshold` times its median magnitude.

    Args:
        vector: one vector (d,), usually mean activations or a direction.
        count: how many; ties go to the lower index.
        threshold: ratio to the median magnitude; Sun et al. use 1,000 for single tokens.

    Invariant to scaling of the vector.

    Raises:
        InputError: both or neither of count and threshold, a count outside 1 to d, a zero or unusable vector.
    """
    wide = as_float64(vector, "vector")
    if wide.ndim != 1:
        raise InputError(
            f"vector has shape {tuple(wide.shape)}; pass one vector of shape (d,), such as mean activations"
        )
    if (count is None) == (threshold is None):
        raise InputError(f"count={count!r} and threshold={threshold!r} came; pass exactly one of them")
    size = wide.abs()
    if not bool((size > 0).any()):
        raise InputError("vector is zero, so no coordinate holds a share of its norm")
    order = torch.sort(size, descending=True, stable=True).indices
    if count is not None:
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= len(wide):
            raise InputError(f"count={count!r} must be an integer from 1 to {len(wide)}")
        chosen = order[:count]
    else:
        if not (threshold is not None and threshold > 0):
            raise InputError(f"threshold={threshold!r} must be positive: a multiple of the median magnitude")
        chosen = order[size[order] > threshold * size.median()]
    scaled = size / size.max()
    shares = scaled[chosen] ** 2 / (scaled**2).sum()
    return MassiveCoordinates(tuple(int(i) for i in chosen), tuple(float(s) for s in shares))


def without_coordinates(
    vectors: Float[Tensor, "*batch d"], indices: Sequence[int] | MassiveCoordinates
) -> Float[Tensor, "*batch d"]:
    """A copy of the vectors with some coordinates set to 0; width and dtype stay, so results remain comparable.

    Raises:
        InputError: an index that does not exist.
    """
    require_ndim(vectors, 1, "vectors", "vectors with their coordinates on the last axis")
    chosen = list(indices.indices if isinstance(indices, MassiveCoordinates) else indices)
    d = vectors.shape[-1]
    bad = [i for i in chosen if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < d]
    if bad:
        raise InputError(f"indices holds {bad[0]!r}; pass coordinate numbers from 0 to {d - 1}")
    kept = vectors.detach().clone()
    kept[..., chosen] = 0
    return kept
