"""Pure tensor mathematics on residual-stream vectors: subspaces, angles, overlaps, nulls,
directions, shifts.
"""

from emlens.geometry.angles import principal_angles
from emlens.geometry.ceilings import split_half_ceiling
from emlens.geometry.comparing import compare_directions
from emlens.geometry.contrast_sums import ContrastSums, deal_blocks
from emlens.geometry.contrasts import (
    direction_from_deltas,
    mean_difference_direction,
    text_content,
    whitened_direction,
)
from emlens.geometry.coordinates import (
    MassiveCoordinates,
    massive_coordinates,
    share_in_coordinates,
    winsorised,
    without_coordinates,
)
from emlens.geometry.covariance_nulls import covariance_overlap_null
from emlens.geometry.directions import Direction, cosine_matrix, direction_cosine
from emlens.geometry.isotropic_nulls import overlap_moments, overlap_null
from emlens.geometry.mahalanobis import mahalanobis_distance
from emlens.geometry.overlap import subspace_overlap
from emlens.geometry.permutations import label_permutation_null, neutral_text_null, sign_flip_null
from emlens.geometry.projections import (
    explained_l2,
    projection_fraction,
    prompt_overlap,
    reconstruction_cosine,
    residual_fraction,
    subspace_mahalanobis,
)
from emlens.geometry.published import delta_columns, k_comparison, prompt_columns
from emlens.geometry.random_directions import (
    covariance_cosine_null,
    isotropic_cosine_null,
    random_directions,
    random_directions_like,
)
from emlens.geometry.recovery import (
    expected_component_cosine,
    expected_logistic_cosine,
    expected_mean_cosine,
    expected_whitened_cosine,
)
from emlens.geometry.reference_nulls import reference_overlap_null
from emlens.geometry.reliability import (
    Cone,
    bootstrap_cone,
    cosine_between,
    jackknife,
    sample_cosine,
    split_half_cosine,
)
from emlens.geometry.shifts import (
    DeltaSummary,
    components_above_rounding,
    cosine_to_mean,
    delta_summary,
)
from emlens.geometry.similarity import (
    cosine_of_means,
    linear_cka,
    mean_pairwise_cosine,
    procrustes_distance,
)
from emlens.geometry.steered import SteeredEvaluation, add_mean_shift, steered_evaluation
from emlens.geometry.subspaces import Subspace, top_k_subspace, variance_captured
from emlens.geometry.trajectories import (
    PathComponents,
    cosine_to_final,
    local_cosine,
    path_components,
    path_gram,
    path_norms,
    path_speed,
    sharpest_turn,
    spectrum_flatness,
    summed,
    turn_null,
    update_gram,
)
from emlens.geometry.weight_updates import (
    WeightUpdate,
    weight_update,
    weight_update_angles,
    weight_update_cosine,
)

__all__ = [
    "Cone",
    "ContrastSums",
    "DeltaSummary",
    "Direction",
    "MassiveCoordinates",
    "PathComponents",
    "SteeredEvaluation",
    "Subspace",
    "WeightUpdate",
    "add_mean_shift",
    "bootstrap_cone",
    "compare_directions",
    "components_above_rounding",
    "cosine_between",
    "cosine_matrix",
    "cosine_of_means",
    "cosine_to_final",
    "cosine_to_mean",
    "covariance_cosine_null",
    "covariance_overlap_null",
    "deal_blocks",
    "delta_columns",
    "delta_summary",
    "direction_cosine",
    "direction_from_deltas",
    "expected_component_cosine",
    "expected_logistic_cosine",
    "expected_mean_cosine",
    "expected_whitened_cosine",
    "explained_l2",
    "isotropic_cosine_null",
    "jackknife",
    "k_comparison",
    "label_permutation_null",
    "linear_cka",
    "local_cosine",
    "mahalanobis_distance",
    "massive_coordinates",
    "mean_difference_direction",
    "mean_pairwise_cosine",
    "neutral_text_null",
    "overlap_moments",
    "overlap_null",
    "path_components",
    "path_gram",
    "path_norms",
    "path_speed",
    "principal_angles",
    "procrustes_distance",
    "projection_fraction",
    "prompt_columns",
    "prompt_overlap",
    "random_directions",
    "random_directions_like",
    "reconstruction_cosine",
    "reference_overlap_null",
    "residual_fraction",
    "sample_cosine",
    "share_in_coordinates",
    "sharpest_turn",
    "sign_flip_null",
    "spectrum_flatness",
    "split_half_ceiling",
    "split_half_cosine",
    "steered_evaluation",
    "subspace_mahalanobis",
    "subspace_overlap",
    "summed",
    "text_content",
    "top_k_subspace",
    "turn_null",
    "update_gram",
    "variance_captured",
    "weight_update",
    "weight_update_angles",
    "weight_update_cosine",
    "whitened_direction",
    "winsorised",
    "without_coordinates",
]
