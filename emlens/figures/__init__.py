"""Tables to plotly figures; nothing is shown or saved, and any figure can be redrawn from the CSV
beside it.
"""

from emlens.figures.ablation import ablation_forest
from emlens.figures.angles import angle_spectra
from emlens.figures.directions import direction_by_layer
from emlens.figures.domains import alignment_by_domain
from emlens.figures.forecast_points import forecast_scatter
from emlens.figures.forecast_scores import forecast_scores
from emlens.figures.forecast_sites import forecast_by_site
from emlens.figures.gist import gist
from emlens.figures.models import models_overview
from emlens.figures.overlap_layers import overlap_by_layer
from emlens.figures.overlap_maps import overlap_heatmaps
from emlens.figures.plots import draw_plot, plot_facets
from emlens.figures.question_changes import question_changes
from emlens.figures.shifts import middle_layer, overlap_against_shift, relation_by_layer
from emlens.figures.steering import steering_response
from emlens.figures.transfer import transfer_matrix

__all__ = [
    "ablation_forest",
    "alignment_by_domain",
    "angle_spectra",
    "direction_by_layer",
    "draw_plot",
    "forecast_by_site",
    "forecast_scatter",
    "forecast_scores",
    "gist",
    "middle_layer",
    "models_overview",
    "overlap_against_shift",
    "overlap_by_layer",
    "overlap_heatmaps",
    "plot_facets",
    "question_changes",
    "relation_by_layer",
    "steering_response",
    "transfer_matrix",
]
