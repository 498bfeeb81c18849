"""Overlap by layer as lines, with the null as a band: centred, uncentred, and the cosine of the
mean shifts.
"""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emlens.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    dress,
    layer_axis,
    panel_title,
    rgba,
    spacing,
)
from emlens.figures.tables import arms, need, only

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
    "null",
    "null_mean",
    "null_q95",
)
LINES = {
    "train–evaluation": ("tested: train–evaluation", BLUE, "circle", "solid"),
    "benign train–evaluation": ("benign fine-tune", ORANGE, "square", "dash"),
    "train–neutral text": ("neutral text", PURPLE, "diamond", "dot"),
    "split-half ceiling": ("split-half ceiling", GREEN, "triangle-up", "dashdot"),
}
PANELS = {
    "true": "centred overlap",
    "false": "uncentred overlap",
    "means": "cosine of the mean shifts",
}
ROW = 165
GAP = 64


def overlap_by_layer(
    overlap: pd.DataFrame, *, model: str | None = None, position: str | None = None
) -> go.Figure:
    """Three stacked panels over layers: centred overlap, uncentred overlap, cosine of mean shifts;
    nulls from mean to 95th percentile.

    Args:
        overlap: columns model, layer, position, center, comparison, value, low, high, null,
            null_mean, null_q95.

    Raises:
        InputError: a column is missing, or the model or position is not in the table.
    """
    need(overlap, COLUMNS, NAME)
    table = only(only(overlap, "model", model, NAME), "position", position, NAME)
    panels = [key for key in PANELS if (table["center"] == key).any()]
    layers = sorted({int(i) for i in overlap["layer"]})
    figure = make_subplots(len(panels), 1, vertical_spacing=spacing(len(panels), ROW, GAP))
    for row, center in enumerate(panels, start=1):
        here = table[table["center"] == center].sort_values("layer")
        _band(figure, here, row)
        for key, (title, colour, symbol, dash) in LINES.items():
            line = here[here["comparison"] == key].drop_duplicates("layer")
            if not len(line):
                continue
            figure.add_scatter(
                x=line["layer"],
                y=line["value"],
                mode="lines+markers",
                name=title,
                legendgroup=title,
                showlegend=row == 1,
                line={"color": colour, "dash": dash, "width": 2},
                marker={"symbol": symbol, "size": 8},
                error_y=(
                    {**arms(line["value"], line["low"], line["high"]), "color": colour}
                    if line["low"].notna().any()
                    else None
                ),
                hovertemplate=f"{title}, layer %{{x}}: %{{y:.3f}}<extra></extra>",
                row=row,
                col=1,
            )
        lowest = -1.05 if center == "means" and (here["value"] < 0).any() else -0.03
        figure.update_yaxes(
            range=[lowest, 1.05],
            zeroline=True,
            title_text="cosine" if center == "means" else "mean cos²",
            row=row,
            col=1,
        )
        figure.update_xaxes(
            **layer_axis(layers), range=[layers[0] - 0.2, layers[-1] + 0.2], row=row, col=1
        )
        if row < len(panels):
            figure.update_xaxes(title_text=None, row=row, col=1)
        panel_title(figure, PANELS[center], row)
    return dress(figure, 170 + len(panels) * ROW + (len(panels) - 1) * GAP, title_lines=1)


def _band(figure: go.Figure, table: pd.DataFrame, row: int) -> None:
    tested = table[table["comparison"] == "train–evaluation"]
    for null, line in tested[tested["null_mean"].notna()].groupby("null", sort=False):
        covariance = str(null).startswith("covariance")
        title = "covariance null, mean to 95 %" if covariance else "isotropic null, mean to 95 %"
        colour, alpha = ("#000000", 0.14) if covariance else (GREY, 0.28)
        head = {
            "x": line["layer"],
            "legendgroup": title,
            "legendrank": 2000,
            "row": row,
            "col": 1,
            "mode": "lines",
        }
        style = {"color": rgba(colour, 0.55), "width": 1, "dash": "solid" if covariance else "dot"}
        figure.add_scatter(
            y=line["null_mean"],
            line=style,
            showlegend=False,
            name=title,
            hovertemplate=f"{title.split(',')[0]}, mean, layer %{{x}}: %{{y:.3f}}<extra></extra>",
            **head,
        )
        figure.add_scatter(
            y=line["null_q95"],
            line=style,
            fill="tonexty",
            fillcolor=rgba(colour, alpha),
            showlegend=row == 1,
            name=title,
            hovertemplate=(
                f"{title.split(',')[0]}, 95th percentile, layer %{{x}}: %{{y:.3f}}<extra></extra>"
            ),
            **head,
        )
