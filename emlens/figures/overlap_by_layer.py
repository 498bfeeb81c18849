"""Overlap by layer as lines, with the training null and each landmark as a band."""

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emlens.figures.kinds import Facet, combinations
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
LAYER_COLUMNS = (
    "model",
    "layer",
    "position",
    "measure",
    "k",
    "value",
    "null_mean",
    "null_low",
    "null_q95",
    "benign_value",
)
"""Of the optional table `overlap_layers`."""
VARIANCE = "variance_weighted"
"""The panel that is of `overlap_layers` alone."""
STATISTICS = {CENTRED: "mean_cos2", MEANS: "mean_cosine", VARIANCE: "variance_weighted"}
"""Panel → the statistic of `overlap_layers` that it shows."""
PANELS = {
    VARIANCE: "variance-weighted overlap",
    CENTRED: "centred overlap",
    UNCENTRED: "uncentred overlap",
    MEANS: "cosine of the mean shifts",
}
UNITS = {VARIANCE: "overlap", CENTRED: "mean cos²", UNCENTRED: "mean cos²", MEANS: "cosine"}
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


TRAINED = _Band("training without the content", BLUE, 0.18, "dash")


def overlap_by_layer(
    overlap: pd.DataFrame,
    layers: pd.DataFrame | None = None,
    *,
    model: str | None = None,
    position: str | None = None,
    center: str | None = None,
) -> go.Figure:
    """Panels over layers: variance-weighted, centred and uncentred overlap, cosine of mean shifts.

    Landmarks are bands from their mean to their 95th percentile; the training null is one from its
    5th to its 95th.

    Args:
        overlap: columns model, layer, position, center, comparison, value, low, high, null_kind,
            null_mean, null_q95.
        layers: the table `overlap_layers`: the training null by layer, and the variance-weighted
            overlap. None: the panels of `overlap` alone, without that null.
        center: the only panel to draw (`variance_weighted`, `true`, `false` or `means`); all that
            there are without it.

    Raises:
        InputError: a column is missing, or the model, position or center is not in the table.
    """
    require_columns(overlap, COLUMNS, NAME)
    table = rows_where(overlap, "model", model, NAME)
    table = rows_where(table, "position", position, NAME)
    trained = _trained(layers, model, position)
    if center is not None and center != VARIANCE:
        table = rows_where(table, "center", center, NAME)
    panels = [center] if center is not None else _panels(table, trained)
    shown = layers_in(overlap)
    figure = make_subplots(len(panels), 1, vertical_spacing=row_spacing(len(panels), ROW, GAP))
    for row, panel in enumerate(panels, start=1):
        rows = table[table["center"] == panel].sort_values("layer")
        of_null = trained[trained["measure"] == STATISTICS.get(panel, "")].sort_values("layer")
        _add_nulls(figure, rows, row)
        _add_trained(figure, of_null, rows, row)
        if panel == VARIANCE:
            _add_variance_weighted(figure, of_null, row)
        _add_lines(figure, rows, row)
        lowest = -0.03
        if panel == MEANS and (rows["value"] < 0).any():
            lowest = -1.05
        figure.update_yaxes(
            range=[lowest, 1.05], zeroline=True, title_text=UNITS[panel], row=row, col=1
        )
        figure.update_xaxes(
            **layer_axis(shown), range=[shown[0] - 0.2, shown[-1] + 0.2], row=row, col=1
        )
        if row < len(panels):
            figure.update_xaxes(title_text=None, row=row, col=1)
        if len(panels) > 1:
            add_panel_title(figure, PANELS[panel], row)
    height = ROW if len(panels) > 1 else ALONE
    return apply_layout(
        figure,
        170 + panels_height(len(panels), height, GAP),
        title_lines=int(len(panels) > 1),
    )


def _trained(layers: pd.DataFrame | None, model: str | None, position: str | None) -> pd.DataFrame:
    """The rows of `overlap_layers` of a fine-tune and position; none where there are none."""
    if layers is None:
        return pd.DataFrame(columns=list(LAYER_COLUMNS))
    require_columns(layers, LAYER_COLUMNS, NAME)
    rows = layers
    for column, value in (("model", model), ("position", position)):
        if value is not None:
            rows = rows[rows[column].astype(str) == value]
    return rows


def _panels(table: pd.DataFrame, trained: pd.DataFrame) -> list[str]:
    """The panels that there are rows for."""
    panels = []
    for panel in PANELS:
        rows = trained["measure"] if panel == VARIANCE else table["center"]
        if (rows == panel).any():
            panels.append(panel)
    return panels


def _add_trained(figure: go.Figure, of_null: pd.DataFrame, rows: pd.DataFrame, row: int) -> None:
    """The band of the training null, where it is of the dimension that is drawn."""
    line = of_null[of_null["null_mean"].notna()]
    if "k" in rows.columns and (of_null["measure"] == STATISTICS[CENTRED]).all():
        drawn = rows[rows["comparison"] == TESTED].drop_duplicates("layer").set_index("layer")["k"]
        line = line[line["k"] == line["layer"].map(drawn)]
    if len(line):
        _add_band(figure, line, TRAINED, row)


def _add_variance_weighted(figure: go.Figure, of_null: pd.DataFrame, row: int) -> None:
    """The fine-tune's line and that of its benign control."""
    lines = [of_null.assign(comparison=TESTED)]
    benign = of_null[of_null["benign_value"].notna()]
    if len(benign):
        lines.append(benign.assign(comparison=BENIGN, value=benign["benign_value"]))
    _add_lines(figure, pd.concat(lines).assign(low=float("nan"), high=float("nan")), row)


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
    """A band to the 95th percentile: from the mean, or, of the training null, from the 5th."""
    title, lower, beginning = f"{look.name}, mean to 95 %", "null_mean", "mean"
    if look is TRAINED:
        title, lower, beginning = f"{look.name}, 5 to 95 %", "null_low", "5th percentile"
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
        y=line[lower],
        showlegend=False,
        hovertemplate=f"{look.name}, {beginning}, layer %{{x}}: %{{y:.3f}}<extra></extra>",
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


def _facets(tables: Mapping[str, pd.DataFrame]) -> list[Facet]:
    """Of every fine-tune and position the variance-weighted overlap first, which is tested."""
    names = ("model", "position")
    facets = []
    layers = tables.get("overlap_layers", pd.DataFrame())
    tested = set(combinations(layers, names))
    centers_of: dict[tuple[str, str], list[str]] = {}
    for model, position, center in combinations(tables["overlap"], (*names, "center")):
        centers_of.setdefault((model, position), []).append(center)
    for (model, position), centers in centers_of.items():
        if (model, position) in tested:
            centers.insert(0, VARIANCE)
        for center in centers:
            values = (model, position, center)
            facets.append(Facet(values, _label(*values)))
    return facets


KIND = TableKind(
    name=NAME,
    reads=(
        TableNeed("overlap", COLUMNS),
        TableNeed("overlap_layers", LAYER_COLUMNS, is_required=False),
    ),
    draw_figure=overlap_by_layer,
    facets_by=("model", "position", "center"),
    list_facets=_facets,
)
