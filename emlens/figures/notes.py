"""Notes on a figure: how much of a table is drawn, and where no value is defined."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from emlens.figures.style import GREY, add_panel_note


def add_notes(figure: go.Figure, *notes: str) -> None:
    """Write small print above the plot; empty notes are left out."""
    text = "; ".join(filter(None, notes))
    if text:
        figure.add_annotation(
            text=text,
            x=0,
            y=1,
            xref="paper",
            yref="paper",
            xanchor="left",
            yanchor="bottom",
            yshift=3,
            showarrow=False,
            font={"size": 12, "color": GREY},
        )


def add_note_if_undefined(figure: go.Figure, values: pd.Series) -> None:
    """Say so inside the plot where no value is a number."""
    if not np.isfinite(values.to_numpy(dtype=float)).any():
        add_panel_note(figure, "no value is defined")
