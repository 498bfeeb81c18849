"""Pure tensor mathematics on residual-stream vectors.

Subspaces, angles, overlaps, nulls, directions, shifts.
"""

from emlens.geometry.angles import principal_angles
from emlens.geometry.ceilings import split_half_ceiling
from emlens.geometry.comparing import compare_directions
from emlens.geometry.contrasts import (
    mean_difference_direction,
    text_content,
    whitened_direction,
)
from emlens.geometry.coordinates import massive_coordinates, without_coordinates
from emlens.geometry.covariance_nulls import covariance_overlap_null
from emlens.geometry.directions import Direction, cosine_matrix, direction_cosine
from emlens.geometry.isotropic_nulls import overlap_null
from emlens.geometry.mahalanobis import mahalanobis_distance
from emlens.geometry.overlap import subspace_overlap
from emlens.geometry.permutations import label_permutation_null, neutral_text_null
from emlens.geometry.projections import projection_fraction, prompt_overlap, reconstruction_cosine
from emlens.geometry.random_directions import random_directions, random_directions_like
from emlens.geometry.reference_nulls import reference_overlap_null
from emlens.geometry.reliability import split_half_cosine
from emlens.geometry.shifts import cosine_to_mean, delta_summary
from emlens.geometry.similarity import linear_cka, mean_shift_cosine, procrustes_distance
from emlens.geometry.subspaces import Subspace, top_k_subspace, variance_captured
from emlens.geometry.turns import local_cosine
from emlens.geometry.weight_updates import weight_update, weight_update_angles

__all__ = [
    "Direction",
    "Subspace",
    "compare_directions",
    "cosine_matrix",
    "cosine_to_mean",
    "covariance_overlap_null",
    "delta_summary",
    "direction_cosine",
    "label_permutation_null",
    "linear_cka",
    "local_cosine",
    "mahalanobis_distance",
    "massive_coordinates",
    "mean_difference_direction",
    "mean_shift_cosine",
    "neutral_text_null",
    "overlap_null",
    "principal_angles",
    "procrustes_distance",
    "projection_fraction",
    "prompt_overlap",
    "random_directions",
    "random_directions_like",
    "reconstruction_cosine",
    "reference_overlap_null",
    "split_half_ceiling",
    "split_half_cosine",
    "subspace_overlap",
    "text_content",
    "top_k_subspace",
    "variance_captured",
    "weight_update",
    "weight_update_angles",
    "whitened_direction",
    "without_coordinates",
]
