"""Predict scores from activations, with controls."""

from emlens.probes.across import cross_validate_across
from emlens.probes.baselines import Baselines
from emlens.probes.ceilings import ceiling_from_answers, ceiling_from_seeds
from emlens.probes.design import Design
from emlens.probes.features import activation_cells, assert_different
from emlens.probes.forecast import cross_validate_forecast, cross_validate_forecasts
from emlens.probes.forecaster import Forecaster
from emlens.probes.forecaster_fit import fit_forecaster
from emlens.probes.projections import random_projections, training_projections
from emlens.probes.ranking import rank_configurations
from emlens.probes.record import Forecast
from emlens.probes.sparse_probes import general_and_narrow, sparse_probe

__all__ = [
    "Baselines",
    "Design",
    "Forecast",
    "Forecaster",
    "activation_cells",
    "assert_different",
    "ceiling_from_answers",
    "ceiling_from_seeds",
    "cross_validate_across",
    "cross_validate_forecast",
    "cross_validate_forecasts",
    "fit_forecaster",
    "general_and_narrow",
    "random_projections",
    "rank_configurations",
    "sparse_probe",
    "training_projections",
]
