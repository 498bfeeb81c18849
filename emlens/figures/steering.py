"""Steering dose and response: the direction added to the parent and taken from the fine-tune,
beside a random vector of the same length.
"""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emlens.figures.labels import label
from emlens.figures.style import CYCLE, DASHES, GREY, SYMBOLS, dress, panel_title, rgba, spacing
from emlens.figures.tables import distinct, need, only

NAME = "steering_response"
ROW = 210
GAP = 84


def steering_response(steering: pd.DataFrame, *, model: str | None = None) -> go.Figure:
    """Mean alignment (0–100, 95 % band) and coherence (thin dotted) against the steering
    coefficient, one panel a steered model.

    Args:
        steering: columns model, steered, vector, site, coefficient, aligned, aligned_low,
            aligned_high, coherent, n.

    Raises:
        InputError: a column is missing, or the model is not in the table.
    """
    need(
        steering,
        (
            "model",
            "steered",
            "vector",
            "site",
            "coefficient",
            "aligned",
            "aligned_low",
            "aligned_high",
            "coherent",
            "n",
        ),
        NAME,
    )
    table = only(steering, "model", model, NAME)
    panels = distinct(table, "steered")
    figure = make_subplots(len(panels), 1, vertical_spacing=spacing(len(panels), ROW, GAP))
    for row, steered in enumerate(panels, start=1):
        here = table[table["steered"] == steered]
        for i, vector in enumerate(distinct(here, "vector")):
            line = here[here["vector"] == vector].sort_values("coefficient")
            colour, name = CYCLE[1 if i == 0 else 0 if i == 1 else i], label(vector)
            x = line["coefficient"]
            head = {"row": row, "col": 1, "x": x}
            for bound, fill in (("aligned_low", None), ("aligned_high", "tonexty")):
                figure.add_scatter(
                    y=line[bound],
                    mode="lines",
                    line={"width": 0},
                    fill=fill,
                    fillcolor=rgba(colour, 0.16),
                    showlegend=False,
                    hoverinfo="skip",
                    name=f"{name}, {bound[8:]}",
                    **head,
                )
            figure.add_scatter(
                y=line["aligned"],
                mode="lines+markers",
                name=f"alignment, {name}",
                legendgroup=f"alignment {i}",
                legendrank=1000,
                line={"color": colour, "dash": DASHES[i % len(DASHES)]},
                marker={"symbol": SYMBOLS[i], "size": 8},
                showlegend=row == 1,
                customdata=line[["aligned_low", "aligned_high", "n"]].to_numpy(),
                hovertemplate=(
                    "coefficient %{x}: alignment %{y:.1f} [%{customdata[0]:.1f},"
                    " %{customdata[1]:.1f}], %{customdata[2]} questions<extra></extra>"
                ),
                **head,
            )
            figure.add_scatter(
                y=line["coherent"],
                mode="lines",
                name=f"coherence, {name}",
                legendgroup=f"coherence {i}",
                legendrank=1001,
                line={"color": rgba(colour if i else GREY, 0.8), "dash": "dot", "width": 1.5},
                showlegend=row == 1,
                hovertemplate="coefficient %{x}: coherence %{y:.1f}<extra></extra>",
                **head,
            )
        panel_title(figure, f"steering {label(steered)}", row)
        figure.update_xaxes(title_text="coefficient (× the direction’s length)", row=row, col=1)
        figure.update_yaxes(range=[-3, 103], title_text="0–100", row=row, col=1)
    return dress(figure, 180 + len(panels) * ROW + (len(panels) - 1) * GAP, title_lines=1)
