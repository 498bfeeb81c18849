"""Overlap by layer as lines, with each null as a band."""

from typing import NamedTuple

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emlens.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    add_panel_title,
    apply_layout,
    layer_axis,
    panels_height,
    rgba,
    row_spacing,
)
from emlens.figures.table_kinds import TableKind, TableNeed, model_and_position
from emlens.figures.tables import error_bars, layers_in, require_columns, rows_where
from emlens.results.overlap_labels import (
    BENIGN,
    CEILING,
    CENTRED,
    MEANS,
    TESTED,
    TRAIN_NEUTRAL,
    UNCENTRED,
)

NAME = "overlap_by_layer"
COLUMNS = (
    "model",
    "layer",
    "position",
    "center",
    "comparison",
    "value",
    "low",
    "high",
    "null_kind",
    "null_mean",
    "null_q95",
)
LINES = {
    TESTED: ("train–evaluation", BLUE, "circle", "solid"),
    BENIGN: ("benign fine-tune", ORANGE, "square", "dash"),
    TRAIN_NEUTRAL: ("neutral text", PURPLE, "diamond", "dot"),
    CEILING: ("split-half ceiling", GREEN, "triangle-up", "dashdot"),
}
PANELS = {
    CENTRED: "centred overlap",
    UNCENTRED: "uncentred overlap",
    MEANS: "cosine of the mean shifts",
}
UNITS = {CENTRED: "mean cos²", UNCENTRED: "mean cos²", MEANS: "cosine"}
ROW = 165
ALONE = 230
"""Height of a panel that is the only one."""
GAP = 64


class _Band(NamedTuple):
    """How the band of a null is drawn."""

    name: str
    colour: str
    opacity: float
    dash: str


COVARIANCE = _Band("one population", BLACK, 0.14, "solid")
ISOTROPIC = _Band("random subspaces", GREY, 0.28, "dot")


def overlap_by_layer(
    overlap: pd.DataFrame,
    *,
    model: str | None = None,
    position: str | None = None,
    center: str | None = None,
) -> go.Figure:
    """Panels over layers: centred overlap, uncentred overlap, cosine of the mean shifts.

    Nulls are bands from their mean to their 95th percentile.

    Args:
        overlap: columns model, layer, position, center, comparison, value, low, high, null_kind,
            null_mean, null_q95.
        center: the only panel to draw (`true`, `false` or `means`); all that there are without it.

    Raises:
        InputError: a column is missing, or the model, position or center is not in the table.
    """
    require_columns(overlap, COLUMNS, NAME)
    table = rows_where(overlap, "model", model, NAME)
    table = rows_where(table, "position", position, NAME)
    if center is not None:
        table = rows_where(table, "center", center, NAME)
    panels = [key for key in PANELS if (table["center"] == key).any()]
    layers = layers_in(overlap)
    figure = make_subplots(len(panels), 1, vertical_spacing=row_spacing(len(panels), ROW, GAP))
    for row, center in enumerate(panels, start=1):
        rows = table[table["center"] == center].sort_values("layer")
        _add_nulls(figure, rows, row)
        _add_lines(figure, rows, row)
        lowest, unit = -0.03, UNITS[center]
        if center == "means" and (rows["value"] < 0).any():
            lowest = -1.05
        figure.update_yaxes(range=[lowest, 1.05], zeroline=True, title_text=unit, row=row, col=1)
        figure.update_xaxes(
            **layer_axis(layers), range=[layers[0] - 0.2, layers[-1] + 0.2], row=row, col=1
        )
        if row < len(panels):
            figure.update_xaxes(title_text=None, row=row, col=1)
        if len(panels) > 1:
            add_panel_title(figure, PANELS[center], row)
    row = ROW if len(panels) > 1 else ALONE
    return apply_layout(
        figure,
        170 + panels_height(len(panels), row, GAP),
        title_lines=int(len(panels) > 1),
    )


def _add_lines(figure: go.Figure, rows: pd.DataFrame, row: int) -> None:
    """One line per comparison, with bars where it has an interval."""
    for key, (title, colour, symbol, dash) in LINES.items():
        # The tested overlap has one row per null; its value is the same in all of them.
        line = rows[rows["comparison"] == key].drop_duplicates("layer")
        if not len(line):
            continue
        bars = None
        if line["low"].notna().any():
            bars = error_bars(line["value"], line["low"], line["high"], colour)
        figure.add_scatter(
            x=line["layer"],
            y=line["value"],
            mode="lines+markers",
            name=title,
            legendgroup=title,
            showlegend=row == 1,
            line={"color": colour, "dash": dash, "width": 2},
            marker={"symbol": symbol, "size": 8},
            error_y=bars,
            hovertemplate=f"{title}, layer %{{x}}: %{{y:.3f}}<extra></extra>",
            row=row,
            col=1,
        )


def _add_nulls(figure: go.Figure, rows: pd.DataFrame, row: int) -> None:
    """One band per null of the tested overlap."""
    tested = rows[rows["comparison"] == TESTED]
    for null, line in tested[tested["null_mean"].notna()].groupby("null_kind", sort=False):
        look = COVARIANCE if str(null).startswith("covariance") else ISOTROPIC
        _add_band(figure, line, look, row)


def _add_band(figure: go.Figure, line: pd.DataFrame, look: _Band, row: int) -> None:
    title = f"{look.name}, mean to 95 %"
    common = {
        "x": line["layer"],
        "mode": "lines",
        "line": {"color": rgba(look.colour, 0.55), "width": 1, "dash": look.dash},
        "name": title,
        "legendgroup": title,
        "legendrank": 2000,
        "row": row,
        "col": 1,
    }
    figure.add_scatter(
        y=line["null_mean"],
        showlegend=False,
        hovertemplate=f"{look.name}, mean, layer %{{x}}: %{{y:.3f}}<extra></extra>",
        **common,
    )
    figure.add_scatter(
        y=line["null_q95"],
        fill="tonexty",
        fillcolor=rgba(look.colour, look.opacity),
        showlegend=row == 1,
        hovertemplate=f"{look.name}, 95th percentile, layer %{{x}}: %{{y:.3f}}<extra></extra>",
        **common,
    )


def _label(model: str, position: str, center: str) -> str:
    return f"{model_and_position(model, position)}, {PANELS.get(center, center)}"


KIND = TableKind(
    name=NAME,
    reads=(TableNeed("overlap", COLUMNS),),
    draw_figure=overlap_by_layer,
    facets_by=("model", "position", "center"),
    facet_label=_label,
)
