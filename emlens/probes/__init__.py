"""Predict scores from activations, with controls."""

from emlens.probes.features import activation_cells, assert_different
from emlens.probes.forecast import predict_alignment, predict_alignments
from emlens.probes.forecaster import Forecaster, fit_forecaster
from emlens.probes.probe_directions import probe_direction, probe_directions
from emlens.probes.ranking import Ranking, rank_configurations
from emlens.probes.record import Forecast
from emlens.probes.sparse_probes import SparseProbe, general_and_narrow, sparse_probe

__all__ = [
    "Forecast",
    "Forecaster",
    "Ranking",
    "SparseProbe",
    "activation_cells",
    "assert_different",
    "fit_forecaster",
    "general_and_narrow",
    "predict_alignment",
    "predict_alignments",
    "probe_direction",
    "probe_directions",
    "rank_configurations",
    "sparse_probe",
]
