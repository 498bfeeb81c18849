"""How well activations forecast, beside everything simpler: R² with intervals and the
shuffled-label null.
"""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emlens.figures.labels import label, number
from emlens.figures.style import BLACK, BLUE, GREY, dress, panel_title, spacing
from emlens.figures.tables import arms, distinct, need, only

NAME = "forecast_scores"
LOWEST = -1.0
"""The axis is cut here: below, a forecast is useless however low it goes; the hover box has the
number.
"""
ROW = 28
GAP = 84


def forecast_scores(
    baselines: pd.DataFrame,
    *,
    model: str | None = None,
    parent: str | None = None,
    summary: pd.DataFrame | None = None,
) -> go.Figure:
    """Out-of-fold R² of activations (filled) and of each baseline (open), 95 % intervals; one panel
    a way of holding out.

    Zero is the training-fold mean; the dotted line is the 95th percentile with labels shuffled.

    Args:
        baselines: columns model, parent, held_out, predictor, r2, r2_low, r2_high, gain, gain_low,
            gain_high.
        summary: columns model, parent, held_out, null_q95, for the dotted line.

    Raises:
        InputError: a column is missing, or the model or parent is not in the table.
    """
    need(
        baselines,
        (
            "model",
            "parent",
            "held_out",
            "predictor",
            "r2",
            "r2_low",
            "r2_high",
            "gain",
            "gain_low",
            "gain_high",
        ),
        NAME,
    )
    table = only(only(baselines, "model", model, NAME), "parent", parent, NAME)
    panels, names = distinct(table, "held_out"), distinct(table, "predictor")
    height = ROW * len(names)
    figure = make_subplots(len(panels), 1, vertical_spacing=spacing(len(panels), height, GAP))
    lowest = max(LOWEST, float(np.nanmin(table["r2_low"].to_numpy(dtype=float), initial=0)) - 0.05)
    highest = max(0.2, float(np.nanmax(table["r2_high"].to_numpy(dtype=float), initial=0)) + 0.05)
    for row, held_out in enumerate(panels, start=1):
        here = table[table["held_out"] == held_out].set_index("predictor").reindex(names)
        y = [len(names) - 1 - i for i in range(len(names))]
        for title, chosen, colour, symbol in (
            ("activations", True, BLUE, "circle"),
            ("baselines", False, BLACK, "circle-open"),
        ):
            kept = [i for i, name in enumerate(names) if (name == "activations") == chosen]
            mine = here.iloc[kept]
            figure.add_scatter(
                x=mine["r2"].clip(lower=lowest),
                y=[y[i] for i in kept],
                mode="markers",
                name=title,
                legendgroup=title,
                showlegend=row == 1,
                marker={"color": colour, "symbol": symbol, "size": 10},
                error_x={**arms(mine["r2"], mine["r2_low"], mine["r2_high"]), "color": colour},
                customdata=[
                    [label(n), r, lo, hi, _gain(g, gl, gh)]
                    for n, r, lo, hi, g, gl, gh in mine.reset_index()[
                        ["predictor", "r2", "r2_low", "r2_high", "gain", "gain_low", "gain_high"]
                    ].itertuples(index=False)
                ],
                hovertemplate=(
                    "%{customdata[0]}: R² %{customdata[1]:.3f} [%{customdata[2]:.3f},"
                    " %{customdata[3]:.3f}]%{customdata[4]}<extra></extra>"
                ),
                row=row,
                col=1,
            )
        figure.add_vline(x=0, line={"color": GREY, "width": 1}, row=row, col=1)
        null = _null(summary, model, parent, held_out)
        if null is not None:
            figure.add_scatter(
                x=[null, null],
                y=[-0.6, len(names) - 0.4],
                mode="lines",
                line={"color": "#D55E00", "dash": "dot", "width": 2},
                name="shuffled labels, 95 %",
                legendgroup="null",
                showlegend=row == 1,
                hovertemplate="shuffled labels, 95th percentile: %{x:.3f}<extra></extra>",
                row=row,
                col=1,
            )
        figure.update_yaxes(
            tickvals=y,
            ticktext=[f"<b>{label(n)}</b>" if n == "activations" else label(n) for n in names],
            range=[-0.6, len(names) - 0.4],
            row=row,
            col=1,
        )
        figure.update_xaxes(range=[lowest, highest], title_text="R², out of fold", row=row, col=1)
        panel_title(figure, f"{label(held_out)}s held out", row)
    return dress(figure, 150 + len(panels) * height + (len(panels) - 1) * GAP, title_lines=1)


def _gain(gain: float, low: float, high: float) -> str:
    return (
        f"<br>activations gain {number(gain, 3)} [{number(low, 3)}, {number(high, 3)}] over it"
        if np.isfinite(gain)
        else ""
    )


def _null(
    summary: pd.DataFrame | None, model: str | None, parent: str | None, held_out: object
) -> float | None:
    if summary is None:
        return None
    need(summary, ("model", "parent", "held_out", "null_q95"), NAME)
    row = summary[
        (summary["held_out"] == held_out)
        & (summary["model"] == model)
        & (summary["parent"] == parent)
    ]["null_q95"].dropna()
    return float(row.iloc[0]) if len(row) == 1 else None
