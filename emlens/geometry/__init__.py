"""Pure tensor mathematics on residual-stream vectors: subspaces, angles, overlaps and their nulls, directions."""

from emlens.geometry.angles import principal_angles
from emlens.geometry.directions import (
    Direction,
    cosine_matrix,
    direction_cosine,
    direction_from_deltas,
    mean_difference_direction,
    random_directions,
    random_directions_like,
)
from emlens.geometry.nulls import covariance_overlap_null, overlap_null, split_half_ceiling
from emlens.geometry.overlap import subspace_overlap
from emlens.geometry.subspaces import Subspace, top_k_subspace, variance_captured

__all__ = [
    "Direction",
    "Subspace",
    "cosine_matrix",
    "covariance_overlap_null",
    "direction_cosine",
    "direction_from_deltas",
    "mean_difference_direction",
    "overlap_null",
    "principal_angles",
    "random_directions",
    "random_directions_like",
    "split_half_ceiling",
    "subspace_overlap",
    "top_k_subspace",
    "variance_captured",
]
