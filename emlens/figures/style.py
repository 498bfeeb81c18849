"""One look for all figures: colour-blind-safe palette (Okabe and Ito), shapes beside colours, and a
layout that fits a phone.
"""

from typing import Any

import plotly.graph_objects as go

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY, PALE = "#6B6B6B", "#D9D9D9"
CYCLE = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK, GREY)
SYMBOLS = (
    "circle",
    "square",
    "diamond",
    "triangle-up",
    "x",
    "triangle-down",
    "cross",
    "star",
    "pentagon",
    "hexagon",
)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
BAR_ROOM = 78
"""Top margin of a figure with a colour bar and a line of panel titles."""
SEQUENTIAL = "Cividis"
DIVERGING = [[0.0, VERMILLION], [0.25, "#F2B48C"], [0.5, "#F7F7F7"], [0.75, "#8DBBDD"], [1.0, BLUE]]
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
TITLE_LINE = 20
"""Pixels above the plot that a line of a panel title takes."""


def rgba(colour: str, alpha: float) -> str:
    """A palette colour, transparent."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


def dress(
    figure: go.Figure, height: int, *, legend: bool = True, title_lines: int = 0
) -> go.Figure:
    """Apply the common layout in place; the legend sits above the panel titles, which have that
    many lines.
    """
    axis: dict[str, Any] = {
        "showline": True,
        "linecolor": "#8A8A8A",
        "gridcolor": "#E8E8E8",
        "zeroline": False,
        "zerolinecolor": "#9A9A9A",
        "ticks": "outside",
        "tickcolor": "#8A8A8A",
        "automargin": True,
        "title": {"standoff": 8, "font": {"size": 12, "color": "#404040"}},
    }
    above = 8 + TITLE_LINE * title_lines
    gap = above / max(height - 110, 100)
    figure.update_layout(
        template=go.layout.Template(layout={"xaxis": axis, "yaxis": axis, "colorway": list(CYCLE)}),
        height=height,
        margin={"l": 12, "r": 14, "t": 6 + above, "b": 40, "pad": 2},
        font={"family": FONT, "size": 13, "color": "#1F1F1F"},
        paper_bgcolor="#FFFFFF",
        plot_bgcolor="#FFFFFF",
        hoverlabel={
            "bgcolor": "#FFFFFF",
            "bordercolor": "#8A8A8A",
            "font": {"family": FONT, "size": 12, "color": "#1F1F1F"},
            "align": "left",
        },
        legend={
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1 + gap,
            "yanchor": "bottom",
            "font": {"size": 12},
        },
        showlegend=legend,
        hovermode="closest",
        dragmode=False,
    )
    return figure


def panel_title(figure: go.Figure, text: str, row: int, col: int = 1) -> None:
    """A left-aligned title above a panel."""
    figure.add_annotation(
        text=f"<b>{text}</b>",
        x=0,
        y=1,
        xref="x domain",
        yref="y domain",
        xanchor="left",
        yanchor="bottom",
        yshift=4,
        showarrow=False,
        align="left",
        font={"size": 13},
        row=row,
        col=col,
    )


def colour_bar(values: list[float], words: list[str]) -> dict[str, Any]:
    """A bar along the top of the figure; its ticks say what the ends mean."""
    return {
        "orientation": "h",
        "y": 1,
        "yref": "container",
        "yanchor": "top",
        "x": 0.5,
        "thickness": 12,
        "len": 0.8,
        "tickvals": values,
        "ticktext": words,
        "tickfont": {"size": 12},
        "outlinewidth": 0,
    }


def spacing(rows: int, row_height: int, gap: int) -> float:
    """Vertical spacing, as a share of the plot, of `gap` pixels between rows."""
    return 0.0 if rows < 2 else min(gap / (rows * row_height + (rows - 1) * gap), 1 / (rows - 1))


def layer_axis(layers: list[int]) -> dict[str, Any]:
    """Ticks at every layer while there are few, and the title."""
    ticks: dict[str, Any] = (
        {"tickvals": layers, "ticktext": [str(i) for i in layers]}
        if len(layers) <= 16
        else {"nticks": 12}
    )
    return {**ticks, "title": {"text": "layer (0-based block)"}}
