"""Predict scores from activations, with controls."""

from emlens.probes.across import AcrossForecast, predict_across
from emlens.probes.calibration import Calibration, calibration_line
from emlens.probes.ceilings import ceiling_from_answers, ceiling_from_seeds
from emlens.probes.estimators import ESTIMATORS, make_estimator
from emlens.probes.features import (
    DomainFeatures,
    Features,
    JoinedFeatures,
    MatrixFeatures,
    RepeatedFeatures,
    TextFeatures,
    activation_cells,
    assert_different,
)
from emlens.probes.forecast import predict_alignment, predict_alignments
from emlens.probes.forecaster import Forecaster, fit_forecaster
from emlens.probes.probe_directions import probe_direction, probe_directions
from emlens.probes.projections import (
    FoldProjections,
    fold_projections,
    random_projections,
    training_distances,
    training_projections,
)
from emlens.probes.ranking import Ranking, rank_configurations
from emlens.probes.record import Forecast
from emlens.probes.sparse_probes import SparseProbe, general_and_narrow, sparse_probe
from emlens.probes.targets import sampling_weights

__all__ = [
    "ESTIMATORS",
    "AcrossForecast",
    "Calibration",
    "DomainFeatures",
    "Features",
    "FoldProjections",
    "Forecast",
    "Forecaster",
    "JoinedFeatures",
    "MatrixFeatures",
    "Ranking",
    "RepeatedFeatures",
    "SparseProbe",
    "TextFeatures",
    "activation_cells",
    "assert_different",
    "calibration_line",
    "ceiling_from_answers",
    "ceiling_from_seeds",
    "fit_forecaster",
    "fold_projections",
    "general_and_narrow",
    "make_estimator",
    "predict_across",
    "predict_alignment",
    "predict_alignments",
    "probe_direction",
    "probe_directions",
    "random_projections",
    "rank_configurations",
    "sampling_weights",
    "sparse_probe",
    "training_distances",
    "training_projections",
]
