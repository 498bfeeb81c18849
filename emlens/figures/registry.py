"""All kinds of figures. A new kind is a module with a `KIND`, and a line here."""

from collections.abc import Mapping

from emlens.figures import (
    ablation_forest,
    alignment_by_domain,
    alignment_changes,
    angle_spectra,
    direction_by_layer,
    forecast_by_site,
    forecast_scatter,
    forecast_scores,
    forest,
    heatmap,
    lines_and_points,
    models_overview,
    overlap_against_shift,
    overlap_by_layer,
    overlap_heatmaps,
    question_changes,
    restoration_forest,
    steering_response,
    transfer_matrix,
)
from emlens.figures.kinds import NAME, Kind
from emlens.foundation.errors import InputError
from emlens.results import Plot

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        lines_and_points.LINE,
        lines_and_points.POINTS,
        forest.KIND,
        heatmap.KIND,
        alignment_changes.KIND,
        models_overview.KIND,
        alignment_by_domain.KIND,
        question_changes.KIND,
        overlap_heatmaps.KIND,
        overlap_by_layer.KIND,
        angle_spectra.KIND,
        overlap_against_shift.KIND,
        direction_by_layer.KIND,
        restoration_forest.KIND,
        ablation_forest.KIND,
        steering_response.KIND,
        transfer_matrix.KIND,
        forecast_scores.KIND,
        forecast_scatter.KIND,
        forecast_by_site.KIND,
    )
}


def kind_of(plot: Plot) -> Kind:
    """The kind that a plot names.

    Raises:
        InputError: there is no such kind.
    """
    if plot.kind not in KINDS:
        raise InputError(
            f"{NAME}: kind {plot.kind!r} is unknown; pass one of {', '.join(KINDS)}",
            name=plot.kind,
            known=KINDS,
        )
    return KINDS[plot.kind]
