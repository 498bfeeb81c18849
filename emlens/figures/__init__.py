"""Tables to plotly figures; nothing is shown or saved.

Any figure can be redrawn from the CSV beside it.
"""

from emlens.figures.plots import draw_plot, plot_facets

__all__ = [
    "draw_plot",
    "plot_facets",
]
