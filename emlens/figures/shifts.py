"""Does a prompt that lies in the training prompts' subspace also shift alike? One point a prompt,
and the correlation by layer.
"""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emlens.figures.labels import number, position_name
from emlens.figures.questions import add_questions
from emlens.figures.style import (
    BLUE,
    GREY,
    VERMILLION,
    dress,
    layer_axis,
    panel_title,
    rgba,
    spacing,
)
from emlens.figures.tables import arms, distinct, need, only

NAME = "overlap_against_shift"
ROW = 235
GAP = 118


def middle_layer(table: pd.DataFrame, model: str | None = None) -> int:
    """The middle layer of all, rounded down: fixed before looking at any figure. Where the model
    has no such layer, the middle of its own.

    Raises:
        InputError: a column is missing, or the model is not in the table.
    """
    need(table, ("model", "layer"), "middle_layer")
    everywhere = sorted({int(i) for i in table["layer"]})
    own = (
        everywhere
        if model is None
        else sorted({int(i) for i in only(table, "model", model, "middle_layer")["layer"]})
    )
    middle = everywhere[(len(everywhere) - 1) // 2]
    return middle if middle in own else own[(len(own) - 1) // 2]


def overlap_against_shift(
    shifts: pd.DataFrame,
    relations: pd.DataFrame,
    *,
    model: str | None = None,
    layer: int | None = None,
) -> go.Figure:
    """One panel a position: each evaluation prompt's overlap with the training prompts' subspace
    against its shift's cosine to the mean training shift.

    Args:
        shifts: columns model, layer, position, id, group, text, prompt_overlap, random_overlap,
            cosine_to_mean_train.
        relations: columns model, layer, position, pearson, low, high, p, partial, partial_low,
            partial_high, n.
        layer: the middle one when left out.

    Raises:
        InputError: a column is missing, or the model or layer is not in the table.
    """
    need(
        shifts,
        (
            "model",
            "layer",
            "position",
            "id",
            "group",
            "text",
            "prompt_overlap",
            "random_overlap",
            "cosine_to_mean_train",
        ),
        NAME,
    )
    need(
        relations,
        (
            "model",
            "layer",
            "position",
            "pearson",
            "low",
            "high",
            "p",
            "partial",
            "partial_low",
            "partial_high",
            "n",
        ),
        NAME,
    )
    points = only(shifts, "model", model, NAME)
    chosen = middle_layer(shifts, model) if layer is None else layer
    points = only(points, "layer", chosen, NAME)
    known = only(relations, "model", model, NAME)
    known = known[known["layer"] == chosen]
    positions, groups = distinct(points, "position"), sorted({str(g) for g in points["group"]})
    figure = make_subplots(len(positions), 1, vertical_spacing=spacing(len(positions), ROW, GAP))
    for row, position in enumerate(positions, start=1):
        here = points[points["position"] == position]
        figure.add_scatter(
            x=here["random_overlap"],
            y=here["cosine_to_mean_train"],
            mode="markers",
            name="same prompts, random subspace",
            legendgroup="random",
            legendrank=2000,
            showlegend=row == 1,
            marker={"symbol": "x-thin", "size": 6, "line": {"color": rgba(GREY, 0.6), "width": 1}},
            hoverinfo="skip",
            row=row,
            col=1,
        )
        add_questions(
            figure,
            here,
            groups,
            "prompt_overlap",
            "cosine_to_mean_train",
            "overlap %{x:.3f}, cosine %{y:.3f}",
            row,
        )
        panel_title(figure, f"{position_name(position)}{_words(known, position)}", row)
        figure.update_xaxes(title_text="overlap with the training subspace", row=row, col=1)
        figure.update_yaxes(title_text="cosine to mean training shift", row=row, col=1)
    return dress(figure, 230 + len(positions) * ROW + (len(positions) - 1) * GAP, title_lines=3)


def _words(relations: pd.DataFrame, position: object) -> str:
    rows = relations[relations["position"] == position]
    if not len(rows):
        return ""
    r = rows.iloc[0]
    if not np.isfinite(r["pearson"]):
        return "</b><br>correlation undefined<b>"
    p = f"p = {r['p']:.2g}" if np.isfinite(r["p"]) else "not permuted"
    return (
        f"</b><br>r = {number(r['pearson'])} [{number(r['low'])}, {number(r['high'])}], {p},"
        f" n = {int(r['n'])}<br>partial r = {number(r['partial'])} [{number(r['partial_low'])},"
        f" {number(r['partial_high'])}]<b>"
    )


def relation_by_layer(relations: pd.DataFrame, *, model: str | None = None) -> go.Figure:
    """The overlap–shift correlation at every layer, one panel a position: Pearson, partial, and the
    permutation null.

    Args:
        relations: columns model, layer, position, pearson, low, high, null_mean, null_q95, partial,
            partial_low, partial_high.

    Raises:
        InputError: a column is missing, or the model is not in the table.
    """
    name = "relation_by_layer"
    need(
        relations,
        (
            "model",
            "layer",
            "position",
            "pearson",
            "low",
            "high",
            "null_mean",
            "null_q95",
            "partial",
            "partial_low",
            "partial_high",
        ),
        name,
    )
    table = only(relations, "model", model, name)
    positions, layers = distinct(table, "position"), sorted({int(i) for i in table["layer"]})
    figure = make_subplots(len(positions), 1, vertical_spacing=spacing(len(positions), ROW, GAP))
    for row, position in enumerate(positions, start=1):
        here = table[table["position"] == position].sort_values("layer")
        head = {
            "x": here["layer"],
            "mode": "lines",
            "legendgroup": "null",
            "legendrank": 2000,
            "row": row,
            "col": 1,
            "line": {"color": rgba(GREY, 0.6), "width": 1},
        }
        figure.add_scatter(
            y=here["null_mean"],
            showlegend=False,
            name="permutation null, mean",
            hovertemplate="null mean %{y:.2f}<extra></extra>",
            **head,
        )
        figure.add_scatter(
            y=here["null_q95"],
            fill="tonexty",
            fillcolor=rgba(GREY, 0.25),
            showlegend=row == 1,
            name="permutation null, mean to 95 %",
            hovertemplate="null 95th percentile %{y:.2f}<extra></extra>",
            **head,
        )
        for column, low, high, title, colour, symbol, shift in (
            ("pearson", "low", "high", "Pearson r", BLUE, "circle", -0.06),
            (
                "partial",
                "partial_low",
                "partial_high",
                "partial r (length, norms)",
                VERMILLION,
                "square",
                0.06,
            ),
        ):
            figure.add_scatter(
                x=here["layer"] + shift,
                y=here[column],
                mode="lines+markers",
                name=title,
                legendgroup=title,
                showlegend=row == 1,
                line={"color": colour, "width": 1.5, "dash": "solid" if shift < 0 else "dash"},
                marker={"symbol": symbol, "size": 8},
                error_y={**arms(here[column], here[low], here[high]), "color": colour},
                customdata=here["layer"],
                hovertemplate=f"{title}, layer %{{customdata}}: %{{y:.2f}}<extra></extra>",
                row=row,
                col=1,
            )
        figure.update_yaxes(
            range=[-1.05, 1.05], zeroline=True, title_text="correlation", row=row, col=1
        )
        figure.update_xaxes(**layer_axis(layers), row=row, col=1)
        panel_title(figure, position_name(position), row)
    return dress(figure, 190 + len(positions) * ROW + (len(positions) - 1) * GAP, title_lines=1)
