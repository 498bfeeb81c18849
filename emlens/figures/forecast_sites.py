"""Where forecasts work: R² by layer and position, exploratory, with p-values corrected over the
whole grid.
"""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emlens.figures.labels import label, number, position_name
from emlens.figures.style import (
    BAR_ROOM,
    DIVERGING,
    colour_bar,
    dress,
    layer_axis,
    panel_title,
    spacing,
)
from emlens.figures.tables import distinct, layers_of, need, only

NAME = "forecast_by_site"
ROW = 46
GAP = 76


def forecast_by_site(
    sites: pd.DataFrame, *, model: str | None = None, parent: str | None = None
) -> go.Figure:
    """R² at every layer (columns) and position (rows), one panel a way of holding out; under it the
    max-statistic p.

    Exploratory: the best cell of a grid is never a headline. Colours run from −0.5 to 0.5.

    Args:
        sites: columns model, parent, held_out, site, position, r2, p_max.

    Raises:
        InputError: a column is missing, or the model or parent is not in the table.
    """
    need(sites, ("model", "parent", "held_out", "site", "position", "r2", "p_max"), NAME)
    table = only(only(sites, "model", model, NAME), "parent", parent, NAME)
    table = table.assign(layer=layers_of(table["site"].tolist()))
    panels, positions, layers = (
        distinct(table, "held_out"),
        distinct(table, "position"),
        sorted(set(table["layer"])),
    )
    height = ROW * len(positions)
    figure = make_subplots(len(panels), 1, vertical_spacing=spacing(len(panels), height, GAP))
    for row, held_out in enumerate(panels, start=1):
        here = table[table["held_out"] == held_out]
        r2, p = (
            here.pivot_table(index="position", columns="layer", values=c, sort=False, dropna=False)
            .reindex(index=positions, columns=layers)
            .to_numpy(dtype=float)
            for c in ("r2", "p_max")
        )
        text = [
            [
                "" if np.isnan(v) else f"{number(v)}<br>p {_p(q)}"
                for v, q in zip(values, ps, strict=True)
            ]
            for values, ps in zip(r2, p, strict=True)
        ]
        figure.add_heatmap(
            z=r2,
            x=layers,
            y=list(range(len(positions))),
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            text=text,
            texttemplate="%{text}" if len(layers) <= 12 else None,
            customdata=p,
            hovertemplate="layer %{x}: R² %{z:.3f}, corrected p %{customdata:.3g}<extra></extra>",
            row=row,
            col=1,
        )
        figure.update_yaxes(
            tickvals=list(range(len(positions))),
            ticktext=[position_name(q) for q in positions],
            autorange="reversed",
            showgrid=False,
            row=row,
            col=1,
        )
        figure.update_xaxes(**layer_axis(layers), showgrid=False, row=row, col=1)
        panel_title(figure, f"{label(held_out)}s held out", row)
    bar = colour_bar([-0.5, 0, 0.5], ["R² −0.5", "0", "0.5"])
    figure.update_layout(
        coloraxis={"colorscale": DIVERGING, "cmin": -0.5, "cmax": 0.5, "colorbar": bar}
    )
    dress(figure, 150 + len(panels) * height + (len(panels) - 1) * GAP, legend=False, title_lines=1)
    return figure.update_layout(margin={"t": BAR_ROOM})


def _p(value: float) -> str:
    if np.isnan(value):
        return "–"
    return "< .001" if value < 0.001 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"
