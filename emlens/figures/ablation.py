"""Ablation arms as a forest plot: restoration, alignment, coherence and damage of the direction and
of every control.
"""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emlens.figures.labels import label
from emlens.figures.style import BLUE, GREY, VERMILLION, dress, panel_title, rgba
from emlens.figures.tables import arms as bars, distinct, need, only

NAME = "ablation_forest"
PANELS = (
    ("restoration", "restoration", "share of lost alignment", True),
    ("aligned", "alignment", "0–100", True),
    ("coherent", "coherence", "0–100", True),
    ("kl", "damage", "KL (nats per token)", False),
)
MARKS = ((VERMILLION, "circle"), (BLUE, "square"), (GREY, "diamond"), ("#009E73", "triangle-up"))


def ablation_forest(arms: pd.DataFrame, *, model: str | None = None) -> go.Figure:
    """Four panels side by side, one row an arm; a colour and a symbol for each site the direction
    was taken from.

    Arms of the direction itself are set in bold, controls are not; the last rows are the parent
    under the same edit.

    Args:
        arms: columns model, site, role, arm, on, control, and value, `_low`, `_high` of
            restoration, aligned, coherent; kl, n.

    Raises:
        InputError: a column is missing, or the model is not in the table.
    """
    intervals = [f"{c}{end}" for c, _, _, ends in PANELS if ends for end in ("", "_low", "_high")]
    need(arms, ("model", "site", "role", "arm", "on", "control", "kl", "n", *intervals), NAME)
    table = only(arms, "model", model, NAME)
    on_parent = set(table.loc[table["on"] == "instruct", "arm"])
    names = sorted(distinct(table, "arm"), key=lambda name: name in on_parent)
    roles = list(dict.fromkeys(zip(table["role"], table["site"], strict=True)))
    place = {name: len(names) - 1 - i for i, name in enumerate(names)}
    tested = {str(a) for a, c in zip(table["arm"], table["control"], strict=True) if not c}
    figure = make_subplots(1, len(PANELS), shared_yaxes=True, horizontal_spacing=0.035)
    for col, (column, title, unit, ends) in enumerate(PANELS, start=1):
        interval = " [%{customdata[1]:.3g}, %{customdata[2]:.3g}]" if ends else ""
        for i, (role, site) in enumerate(roles):
            here = table[(table["role"] == role) & (table["site"] == site)]
            colour, symbol = MARKS[i % len(MARKS)]
            offset = (0.5 - (i + 0.5) / len(roles)) * 0.5
            low, high = (
                (here[f"{column}_low"], here[f"{column}_high"])
                if ends
                else (here[column], here[column])
            )
            figure.add_scatter(
                x=here[column],
                y=[place[a] + offset for a in here["arm"]],
                mode="markers",
                name=f"{label(site)}: {label(role, 60)}",
                legendgroup=f"role {i}",
                showlegend=col == 1,
                marker={"color": colour, "symbol": symbol, "size": 8},
                error_x={**bars(here[column], low, high), "color": colour} if ends else None,
                customdata=[
                    [label(a, 80), lo, hi] for a, lo, hi in zip(here["arm"], low, high, strict=True)
                ],
                hovertemplate=f"%{{customdata[0]}}: %{{x:.3g}}{interval}<extra></extra>",
                row=1,
                col=col,
            )
        panel_title(figure, title, 1, col)
        figure.update_xaxes(title_text=unit, row=1, col=col)
        if table[column].isna().all():
            figure.add_annotation(
                text="undefined" if column == "restoration" else "not measured",
                x=0.5,
                y=0.5,
                xref="x domain",
                yref="y domain",
                showarrow=False,
                row=1,
                col=col,
            )
            figure.update_xaxes(range=[-0.2, 1.2], row=1, col=col)
    figure.add_vline(x=0, line={"color": rgba("#000000", 0.5), "width": 1}, row=1, col=1)
    figure.add_vline(
        x=1, line={"color": rgba("#000000", 0.35), "width": 1, "dash": "dot"}, row=1, col=1
    )
    for col in (2, 3):
        figure.update_xaxes(range=[-4, 104], row=1, col=col)
    figure.update_yaxes(
        tickvals=list(place.values()),
        ticktext=[f"<b>{label(a, 44)}</b>" if a in tested else label(a, 44) for a in names],
        range=[-0.6, len(names) - 0.4],
    )
    return dress(figure, 150 + 34 * len(names), title_lines=1)
