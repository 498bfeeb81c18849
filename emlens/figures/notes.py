"""Notes on a figure: how much of a table is drawn, and where no value is defined."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from emlens.figures.labels import label
from emlens.figures.style import GREY, add_panel_note

LONGEST_NOTE = 160
BELOW_AXIS = 44
"""Pixels below the plot that ticks and title of an axis take."""
NOTE_ROOM = 26


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


def add_left_out(figure: go.Figure, *notes: str) -> go.Figure:
    """Write small print below the plot on what of the tables is not drawn, in place."""
    text = "; ".join(filter(None, dict.fromkeys(notes)))
    if not text:
        return figure
    figure.add_annotation(
        text=label(text, LONGEST_NOTE),
        x=0,
        y=0,
        xref="paper",
        yref="paper",
        xanchor="left",
        yanchor="top",
        yshift=-BELOW_AXIS,
        showarrow=False,
        font={"size": 12, "color": GREY},
    )
    margin = (figure.layout.margin.b or 0) + NOTE_ROOM
    return figure.update_layout(
        margin={"b": margin}, height=(figure.layout.height or 0) + NOTE_ROOM
    )


def add_note_if_undefined(figure: go.Figure, values: pd.Series) -> None:
    """Say so inside the plot where no value is a number."""
    if not np.isfinite(values.to_numpy(dtype=float)).any():
        add_panel_note(figure, "no value is defined")
