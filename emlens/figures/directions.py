"""A fine-tune's direction, layer by layer: what removing it restores, how reliable it is, and what
it points at.
"""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emlens.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    VERMILLION,
    dress,
    layer_axis,
    panel_title,
    rgba,
    spacing,
)
from emlens.figures.tables import arms, need, only

NAME = "direction_by_layer"
ROW = 175
GAP = 66
COSINES = (
    ("split_half_cosine", "split-half reliability", GREEN, "triangle-up", "dashdot"),
    ("cosine_planted", "|cosine| with the planted direction", BLUE, "circle", "solid"),
    ("cosine_unembedding", "cosine with the unembedding contrast", ORANGE, "square", "dash"),
)


def direction_by_layer(directions: pd.DataFrame, *, model: str | None = None) -> go.Figure:
    """Three panels over layers: restoration (selection questions, 95 % interval), cosines, and
    coherence under ablation.

    The last block is shaded: a direction that works only there is a readout, not a mediator. Where
    restoration is undefined its panel says so. The planted direction is drawn only where one is
    known.

    Args:
        directions: columns model, layer, last, split_half_cosine, cosine_unembedding,
            cosine_planted, restoration, low, high, coherent, n.

    Raises:
        InputError: a column is missing, or the model is not in the table.
    """
    need(
        directions,
        (
            "model",
            "layer",
            "last",
            *(c for c, *_ in COSINES),
            "restoration",
            "low",
            "high",
            "coherent",
            "n",
        ),
        NAME,
    )
    table = only(directions, "model", model, NAME).sort_values("layer")
    layers = sorted({int(i) for i in directions["layer"]})
    figure = make_subplots(3, 1, vertical_spacing=spacing(3, ROW, GAP))
    figure.add_scatter(
        x=table["layer"],
        y=table["restoration"],
        mode="lines+markers",
        name="restoration",
        showlegend=False,
        line={"color": VERMILLION},
        marker={"size": 9},
        error_y={**arms(table["restoration"], table["low"], table["high"]), "color": VERMILLION},
        customdata=table[["low", "high", "n"]].to_numpy(),
        hovertemplate=(
            "restoration, layer %{x}: %{y:.2f} [%{customdata[0]:.2f}, %{customdata[1]:.2f}],"
            " %{customdata[2]} questions<extra></extra>"
        ),
        row=1,
        col=1,
    )
    if table["restoration"].isna().all():
        figure.add_annotation(
            text="undefined: no clear loss to restore",
            x=0.5,
            y=0.72,
            xref="x domain",
            yref="y domain",
            showarrow=False,
            row=1,
            col=1,
        )
        figure.update_yaxes(range=[-1, 1], row=1, col=1)
    for column, title, colour, symbol, dash in COSINES:
        if table[column].notna().any():
            figure.add_scatter(
                x=table["layer"],
                y=table[column],
                mode="lines+markers",
                name=title,
                line={"color": colour, "dash": dash},
                marker={"symbol": symbol, "size": 8},
                hovertemplate=f"{title}, layer %{{x}}: %{{y:.2f}}<extra></extra>",
                row=2,
                col=1,
            )
    figure.add_scatter(
        x=table["layer"],
        y=table["coherent"],
        mode="lines+markers",
        name="coherence under ablation",
        showlegend=False,
        line={"color": GREY, "dash": "dot"},
        marker={"symbol": "diamond", "size": 8},
        hovertemplate="coherence, layer %{x}: %{y:.1f}<extra></extra>",
        row=3,
        col=1,
    )
    for layer in table.loc[table["last"].astype(bool), "layer"]:
        for row in (1, 2, 3):
            figure.add_vrect(
                x0=layer - 0.35,
                x1=layer + 0.35,
                fillcolor=rgba(GREY, 0.14),
                line_width=0,
                layer="below",
                row=row,
                col=1,
            )
    for row, (title, unit) in enumerate(
        (
            ("restoration by ablation", "share restored"),
            ("what the direction is", "cosine"),
            ("coherence under ablation", "0–100"),
        ),
        start=1,
    ):
        figure.update_xaxes(
            **layer_axis(layers), range=[min(layers) - 0.5, max(layers) + 0.5], row=row, col=1
        )
        figure.update_yaxes(title_text=unit, zeroline=row < 3, row=row, col=1)
        if row < 3:
            figure.update_xaxes(title_text=None, row=row, col=1)
        panel_title(figure, title, row)
    figure.update_yaxes(
        range=[-1.05, 1.05] if (table["cosine_unembedding"] < -0.05).any() else [-0.1, 1.05],
        row=2,
        col=1,
    )
    figure.update_yaxes(range=[-3, 103], row=3, col=1)
    figure.update_yaxes(rangemode="tozero", row=1, col=1)
    return dress(figure, 180 + 3 * ROW + 2 * GAP, title_lines=1)
