"""Principal-angle spectra: the tested pair beside the benign fine-tune and random subspaces."""

import math

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emlens.figures.labels import label
from emlens.figures.style import (
    BLUE,
    GREY,
    ORANGE,
    PURPLE,
    add_panel_title,
    apply_layout,
    panels_height,
)
from emlens.figures.table_kinds import TableKind, TableNeed, model_and_position
from emlens.figures.tables import distinct, layers_in, require_columns, rows_where
from emlens.figures.thinning import evenly
from emlens.results.overlap_labels import BENIGN, RANDOM_SUBSPACES, TESTED

NAME = "angle_spectra"
COLUMNS = ("model", "layer", "position", "comparison", "index", "degrees")
MOST_PANELS = 6
LINES = {
    TESTED: ("tested: train–evaluation", BLUE, "circle", "solid"),
    BENIGN: ("benign fine-tune", ORANGE, "square", "dash"),
    RANDOM_SUBSPACES: ("random subspaces, mean", GREY, "x", "dot"),
}
ROW = 165
GAP = 60


def angle_spectra(
    angles: pd.DataFrame, *, model: str | None = None, position: str | None = None
) -> go.Figure:
    """Principal angles in degrees (0 shared, 90 orthogonal), ascending, one panel per layer.

    At most six layers are drawn, evenly spaced, the first and the last among them.

    Args:
        angles: columns model, layer, position, comparison, index, degrees.

    Raises:
        InputError: a column is missing, or the model or position is not in the table.
    """
    require_columns(angles, COLUMNS, NAME)
    table = rows_where(angles, "model", model, NAME)
    table = rows_where(table, "position", position, NAME)
    layers = _some_layers(layers_in(table))
    columns = min(2, len(layers))
    rows = math.ceil(len(layers) / columns)
    height = panels_height(rows, ROW, GAP)
    figure = make_subplots(
        rows, columns, horizontal_spacing=0.12, vertical_spacing=GAP / height if rows > 1 else 0
    )
    for i, layer in enumerate(layers):
        row, col = i // columns + 1, i % columns + 1
        _add_spectra(figure, table[table["layer"] == layer], layer, row, col)
        add_panel_title(figure, f"layer {layer}", row, col)
    figure.update_yaxes(range=[-3, 93], tickvals=[0, 30, 60, 90], ticksuffix="°")
    figure.update_xaxes(nticks=8)
    figure.update_xaxes(title_text="angle number", row=rows)
    figure.update_yaxes(title_text="angle (degrees)", col=1)
    return apply_layout(figure, height + 150, title_lines=1)


def _add_spectra(figure: go.Figure, table: pd.DataFrame, layer: int, row: int, col: int) -> None:
    """One line per comparison of a layer."""
    for key in distinct(table, "comparison"):
        look = LINES.get(str(key), (label(key), PURPLE, "diamond", "dashdot"))
        title, colour, symbol, dash = look
        line = table[table["comparison"] == key].sort_values("index")
        figure.add_scatter(
            x=line["index"],
            y=line["degrees"],
            mode="lines+markers",
            name=title,
            legendgroup=title,
            showlegend=row == col == 1,
            line={"color": colour, "dash": dash, "width": 2},
            marker={"symbol": symbol, "size": 7},
            hovertemplate=f"{title}, angle %{{x}}: %{{y:.1f}}°<extra>layer {layer}</extra>",
            row=row,
            col=col,
        )


def _some_layers(layers: list[int]) -> list[int]:
    return [layers[i] for i in evenly(len(layers), MOST_PANELS)]


KIND = TableKind(
    name=NAME,
    reads=(TableNeed("angles", COLUMNS),),
    draw_figure=angle_spectra,
    facets_by=("model", "position"),
    facet_label=model_and_position,
)
