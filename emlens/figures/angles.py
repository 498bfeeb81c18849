"""Principal-angle spectra: the tested pair beside the benign fine-tune and random subspaces."""

import math

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emlens.figures.labels import label
from emlens.figures.style import BLUE, GREY, ORANGE, PURPLE, dress, panel_title
from emlens.figures.tables import distinct, need, only

NAME = "angle_spectra"
MOST_PANELS = 6
LINES = {
    "train–evaluation": ("tested: train–evaluation", BLUE, "circle", "solid"),
    "benign train–evaluation": ("benign fine-tune", ORANGE, "square", "dash"),
    "random subspaces": ("random subspaces, mean", GREY, "x", "dot"),
}
ROW = 165
GAP = 60


def angle_spectra(
    angles: pd.DataFrame, *, model: str | None = None, position: str | None = None
) -> go.Figure:
    """Principal angles in degrees (0 shared, 90 orthogonal), ascending, one panel a layer (at most
    six, evenly spaced, first and last among them).

    Args:
        angles: columns model, layer, position, comparison, index, degrees.

    Raises:
        InputError: a column is missing, or the model or position is not in the table.
    """
    need(angles, ("model", "layer", "position", "comparison", "index", "degrees"), NAME)
    table = only(only(angles, "model", model, NAME), "position", position, NAME)
    layers = _spread(sorted({int(i) for i in table["layer"]}))
    columns = min(2, len(layers))
    rows = math.ceil(len(layers) / columns)
    height = ROW * rows + GAP * (rows - 1)
    figure = make_subplots(
        rows, columns, horizontal_spacing=0.12, vertical_spacing=GAP / height if rows > 1 else 0
    )
    for i, layer in enumerate(layers):
        row, col = i // columns + 1, i % columns + 1
        here = table[table["layer"] == layer]
        for key in distinct(here, "comparison"):
            title, colour, symbol, dash = LINES.get(
                str(key), (label(key), PURPLE, "diamond", "dashdot")
            )
            line = here[here["comparison"] == key].sort_values("index")
            figure.add_scatter(
                x=line["index"],
                y=line["degrees"],
                mode="lines+markers",
                name=title,
                legendgroup=title,
                showlegend=i == 0,
                line={"color": colour, "dash": dash, "width": 2},
                marker={"symbol": symbol, "size": 7},
                hovertemplate=f"{title}, angle %{{x}}: %{{y:.1f}}°<extra>layer {layer}</extra>",
                row=row,
                col=col,
            )
        panel_title(figure, f"layer {layer}", row, col)
    figure.update_yaxes(range=[-3, 93], tickvals=[0, 30, 60, 90], ticksuffix="°")
    figure.update_xaxes(nticks=8)
    figure.update_xaxes(title_text="angle number", row=rows)
    figure.update_yaxes(title_text="angle (degrees)", col=1)
    return dress(figure, height + 150, title_lines=1)


def _spread(layers: list[int]) -> list[int]:
    if len(layers) <= MOST_PANELS:
        return layers
    step = (len(layers) - 1) / (MOST_PANELS - 1)
    return [layers[round(i * step)] for i in range(MOST_PANELS)]
