"""A forest from any tidy table: one row a name, its interval, and its null as a dotted mark."""

import pandas as pd
import plotly.graph_objects as go

from emlens.figures.labels import stacked
from emlens.figures.plot_marks import Asked, looks, names_of, say, spread, told, undefined, unnamed
from emlens.figures.style import GREY, dress
from emlens.figures.tables import arms

MOST_ROWS = 80
ROW = 34


def forest(table: pd.DataFrame, asked: Asked) -> go.Figure:
    """x names the rows, from top to bottom in order of appearance; y runs across. Groups stand
    beside each other within a row.
    """
    names = names_of(table[asked.x])
    fewer = ""
    if len(names) > MOST_ROWS:
        fewer = f"{MOST_ROWS} of {len(names)} rows drawn, evenly; the table has all"
        keys = list(names)
        names = {keys[i]: names[keys[i]] for i in spread(len(keys), MOST_ROWS)}
        table = table[table[asked.x].map(str).isin(list(names))]
    place = {key: len(names) - 1 - i for i, key in enumerate(names)}
    groups = looks(table, asked.colour)
    figure = go.Figure()
    for i, (part, look) in enumerate(groups):
        offset = (0.5 - (i + 0.5) / len(groups)) * 0.7
        y = [place[str(value)] + offset for value in part[asked.x]]
        if asked.null:
            figure.add_scatter(
                x=part[asked.null],
                y=y,
                mode="markers",
                name="null",
                legendgroup="null",
                legendrank=2000,
                showlegend=i == 0,
                hoverinfo="skip",
                marker={
                    "symbol": "line-ns",
                    "size": max(8, 22 // len(groups)),
                    "line": {"color": GREY, "width": 2},
                },
            )
        figure.add_scatter(
            x=part[asked.y],
            y=y,
            mode="markers",
            name=look.name,
            legendgroup=look.name,
            showlegend=look.listed,
            marker={"color": look.colour, "symbol": look.symbol, "size": 9},
            error_x=(
                {**arms(part[asked.y], part[asked.low], part[asked.high]), "color": look.colour}
                if asked.intervals
                else None
            ),
            customdata=told(part, asked),
            hovertemplate="%{customdata}<extra></extra>",
        )
    undefined(figure, table[asked.y])
    say(figure, fewer, unnamed(groups))
    figure.update_xaxes(title_text=asked.title("y"), zeroline=True)
    figure.update_yaxes(
        tickvals=list(place.values()),
        ticktext=[stacked(name, 22, 60) for name in names.values()],
        range=[-0.6, len(names) - 0.4],
    )
    legend = bool(asked.null) or sum(look.listed for _, look in groups) > 1
    taller = max(1.0, min(len(groups), 8) * 0.45)
    return dress(
        figure, 150 + round(ROW * taller * len(names)), legend=legend, title_lines=int(bool(fewer))
    )
