"""Does a direction taken from one fine-tune restore another? A matrix with intervals in the
cells.
"""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from emlens.figures.labels import label, number, stacked
from emlens.figures.style import BAR_ROOM, DIVERGING, colour_bar, dress
from emlens.figures.tables import distinct, need

NAME = "transfer_matrix"


def transfer_matrix(transfer: pd.DataFrame) -> go.Figure:
    """Restoration in the column's fine-tune by ablating the row's direction, with 95 % intervals;
    colours run from −1 to 1.

    Args:
        transfer: columns direction_of, ablated_in, restoration, low, high, n; where there is a
            column strongest_control, the best restoration by any control arm is written under the
            interval.

    Raises:
        InputError: a column is missing.
    """
    need(transfer, ("direction_of", "ablated_in", "restoration", "low", "high", "n"), NAME)
    sources, targets = distinct(transfer, "direction_of"), distinct(transfer, "ablated_in")
    z = np.full((len(sources), len(targets)), np.nan)
    text = [["–"] * len(targets) for _ in sources]
    told = [["no measurement"] * len(targets) for _ in sources]
    controls = (
        transfer["strongest_control"]
        if "strongest_control" in transfer.columns
        else [np.nan] * len(transfer)
    )
    columns = transfer[["direction_of", "ablated_in", "restoration", "low", "high", "n"]]
    for (source, target, value, low, high, n), control in zip(
        columns.itertuples(index=False), controls, strict=True
    ):
        i, j = sources.index(source), targets.index(target)
        z[i, j] = value
        known = bool(np.isfinite(value))
        beside = f"<br>control {number(control)}" if np.isfinite(control) else ""
        strongest = f"<br>strongest control: {number(control)}" if beside else ""
        text[i][j] = (
            f"{number(value)}<br>[{number(low)}, {number(high)}]{beside}" if known else "undefined"
        )
        told[i][j] = f"direction of {label(source)}, ablated in {label(target)}<br>" + (
            f"restoration {number(value, 3)} [{number(low, 3)}, {number(high, 3)}],"
            f" {int(n)} questions{strongest}"
            if known
            else "restoration undefined: no clear loss to restore"
        )
    figure = go.Figure()
    # A blank layer below, so that undefined cells are grey and have a hover box too.
    figure.add_heatmap(
        z=np.zeros_like(z),
        x=list(range(len(targets))),
        y=list(range(len(sources))),
        colorscale=[[0, "#EFEFEF"], [1, "#EFEFEF"]],
        showscale=False,
        xgap=2,
        ygap=2,
        text=np.where(np.isfinite(z), "", np.array(text)),
        texttemplate="%{text}",
        customdata=told,
        hovertemplate="%{customdata}<extra></extra>",
    )
    figure.add_heatmap(
        z=z,
        x=list(range(len(targets))),
        y=list(range(len(sources))),
        coloraxis="coloraxis",
        xgap=2,
        ygap=2,
        text=text,
        texttemplate="%{text}",
        hoverongaps=False,
        customdata=told,
        hovertemplate="%{customdata}<extra></extra>",
    )
    figure.update_xaxes(
        tickvals=list(range(len(targets))),
        ticktext=[stacked(t, 12, 24) for t in targets],
        tickangle=0,
        title_text="ablated in",
        showgrid=False,
    )
    figure.update_yaxes(
        tickvals=list(range(len(sources))),
        ticktext=[stacked(s, 12, 24) for s in sources],
        title_text="direction of",
        autorange="reversed",
        showgrid=False,
    )
    bar = colour_bar([-1, 0, 1], ["restoration −1", "0", "1"])
    figure.update_layout(
        coloraxis={"colorscale": DIVERGING, "cmin": -1, "cmax": 1, "colorbar": bar}
    )
    return dress(figure, 150 + 70 * len(sources), legend=False).update_layout(
        margin={"t": BAR_ROOM}
    )
