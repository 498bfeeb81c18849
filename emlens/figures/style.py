"""One look for all figures.

The palette is that of Okabe and Ito, which colour-blind readers can distinguish; shapes are used
beside colours; the layout fits a phone.
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
INK = "#1F1F1F"
"""Texts, also those in the cells of heatmaps: every colour of both scales is light enough that they
have a contrast of at least 4.5.
"""
SEQUENTIAL = [[0.0, "#F7F7F7"], [0.5, "#A5CBE6"], [1.0, "#4C9BD0"]]
DIVERGING = [
    [0.0, "#E98A45"],
    [0.25, "#F2BE98"],
    [0.5, "#F7F7F7"],
    [0.75, "#A5CBE6"],
    [1.0, "#4C9BD0"],
]
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
TITLE_LINE = 20
"""Pixels above the plot that a line of a panel title takes."""
MOST_LAYER_TICKS = 16


def rgba(colour: str, alpha: float) -> str:
    """A colour of the palette, made transparent; `alpha` runs from 0 (invisible) to 1."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


def apply_layout(
    figure: go.Figure, height: int, *, legend: bool = True, title_lines: int = 0
) -> go.Figure:
    """Give a figure the common layout, in place.

    Args:
        height: of the whole figure, in pixels.
        legend: whether the names of its traces are listed, above the panel titles.
        title_lines: lines of the highest panel title, for which room is left.
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
    # plotly places a legend in shares of the plot's height, which is the figure's less its margins
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


def add_panel_title(figure: go.Figure, text: str, row: int, col: int = 1) -> None:
    """Write a title above a panel, aligned to its left."""
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


def add_panel_note(
    figure: go.Figure, text: str, row: int | None = None, col: int | None = None, y: float = 0.5
) -> None:
    """Write a note inside a panel, at the middle of its width and at `y` of its height (0 to 1)."""
    figure.add_annotation(
        text=text,
        x=0.5,
        y=y,
        xref="x domain",
        yref="y domain",
        showarrow=False,
        row=row,
        col=col,
    )


def colour_bar(values: list[float], labels: list[str]) -> dict[str, Any]:
    """A bar along the top of the figure, whose ticks say what the ends mean."""
    return {
        "orientation": "h",
        "y": 1,
        "yref": "container",
        "yanchor": "top",
        "x": 0.5,
        "thickness": 12,
        "len": 0.8,
        "tickvals": values,
        "ticktext": labels,
        "tickfont": {"size": 12},
        "outlinewidth": 0,
    }


def panels_height(panels: int, row: int, gap: int) -> int:
    """Pixels that panels below each other take, with the gaps between them."""
    return panels * row + (panels - 1) * gap


def row_spacing(rows: int, row_height: int, gap: int) -> float:
    """Spacing between rows of `gap` pixels, as a share of the plot's height."""
    if rows < 2:
        return 0.0
    # plotly refuses a spacing above 1 / (rows - 1)
    return min(gap / panels_height(rows, row_height, gap), 1 / (rows - 1))


def layer_axis(layers: list[int]) -> dict[str, Any]:
    """The axis of layers: its title, and a tick at every layer while there are few."""
    title = {"title": {"text": "layer (0-based block)"}}
    if len(layers) > MOST_LAYER_TICKS:
        return {"nticks": 12, **title}
    return {"tickvals": layers, "ticktext": [str(i) for i in layers], **title}
