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
        _small_print(figure, text, y=1, yanchor="bottom", yshift=3)


def add_left_out(figure: go.Figure, *notes: str) -> go.Figure:
    """Write small print below the plot on what of the tables is not drawn, in place."""
    text = "; ".join(filter(None, dict.fromkeys(notes)))
    if not text:
        return figure
    _small_print(figure, label(text, LONGEST_NOTE), y=0, yanchor="top", yshift=-BELOW_AXIS)
    margin = (figure.layout.margin.b or 0) + NOTE_ROOM
    return figure.update_layout(
        margin={"b": margin}, height=(figure.layout.height or 0) + NOTE_ROOM
    )


def add_note_if_undefined(figure: go.Figure, values: pd.Series) -> None:
    """Say so inside the plot where no value is a number."""
    if not np.isfinite(values.to_numpy(dtype=float)).any():
        add_panel_note(figure, "no value is defined")


def _small_print(figure: go.Figure, text: str, *, y: int, yanchor: str, yshift: int) -> None:
    """Write grey text at the left edge of the plot; `y` is 0 at its bottom and 1 at its top."""
    figure.add_annotation(
        text=text,
        x=0,
        y=y,
        xref="paper",
        yref="paper",
        xanchor="left",
        yanchor=yanchor,
        yshift=yshift,
        showarrow=False,
        font={"size": 12, "color": GREY},
    )
