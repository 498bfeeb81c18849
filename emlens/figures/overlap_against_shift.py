"""Do prompts that lie in the training prompts' subspace also shift alike? A point per prompt."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emlens.figures.kinds import Facet, combinations
from emlens.figures.labels import interval, number, position_name
from emlens.figures.question_points import add_question_points
from emlens.figures.relation_by_layer import relation_by_layer
from emlens.figures.style import (
    GREY,
    add_panel_title,
    apply_layout,
    panels_height,
    rgba,
    row_spacing,
)
from emlens.figures.table_kinds import TableKind, TableNeed
from emlens.figures.tables import distinct, layers_in, require_columns, rows_where
from emlens.figures.thinning import thinned

NAME = "overlap_against_shift"
COLUMNS = (
    "model",
    "layer",
    "position",
    "id",
    "group",
    "text",
    "prompt_overlap",
    "random_overlap",
    "cosine_to_mean_train",
)
RELATION_COLUMNS = (
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
)
MIDDLE, ALL = "middle", "all"
"""The two figures of a model: the points of its middle layer, and the correlation at all layers."""
ROW = 235
GAP = 118


def middle_layer(table: pd.DataFrame, model: str | None = None) -> int:
    """The middle of all layers, rounded down: fixed before looking at any figure.

    Where the model has no such layer, it is the middle of the layers it has.

    Raises:
        InputError: a column is missing, or the model is not in the table.
    """
    require_columns(table, ("model", "layer"), "middle_layer")
    all_layers = layers_in(table)
    middle = _middle(all_layers)
    if model is None:
        return middle
    layers = layers_in(rows_where(table, "model", model, "middle_layer"))
    return middle if middle in layers else _middle(layers)


def _middle(layers: list[int]) -> int:
    return layers[(len(layers) - 1) // 2]


def overlap_against_shift(
    shifts: pd.DataFrame,
    relations: pd.DataFrame,
    *,
    model: str | None = None,
    layer: int | None = None,
) -> go.Figure:
    """Each prompt's overlap with the training subspace against the direction of its shift.

    Up: the cosine of its shift to the mean shift of the training prompts. One panel per position.

    Args:
        shifts: columns model, layer, position, id, group, text, prompt_overlap, random_overlap,
            cosine_to_mean_train.
        relations: columns model, layer, position, pearson, low, high, p, partial, partial_low,
            partial_high, n.
        layer: the middle one when left out.

    Raises:
        InputError: a column is missing, or the model or layer is not in the table.
    """
    require_columns(shifts, COLUMNS, NAME)
    require_columns(relations, RELATION_COLUMNS, NAME)
    points = rows_where(shifts, "model", model, NAME)
    if layer is None:
        layer = middle_layer(shifts, model)
    points = rows_where(points, "layer", layer, NAME)
    of_model = rows_where(relations, "model", model, NAME)
    of_layer = of_model[of_model["layer"] == layer]
    positions, groups = distinct(points, "position"), sorted(set(map(str, points["group"])))
    spacing = row_spacing(len(positions), ROW, GAP)
    figure = make_subplots(len(positions), 1, vertical_spacing=spacing)
    for row, position in enumerate(positions, start=1):
        prompts = points[points["position"] == position]
        _add_random_subspace(figure, prompts, row)
        add_question_points(
            figure,
            prompts,
            "prompt_overlap",
            "cosine_to_mean_train",
            "overlap %{x:.3f}, cosine %{y:.3f}",
            groups=groups,
            row=row,
        )
        add_panel_title(figure, f"{position_name(position)}{_relation(of_layer, position)}", row)
        figure.update_xaxes(title_text="overlap with the training subspace", row=row, col=1)
        figure.update_yaxes(title_text="cosine to mean training shift", row=row, col=1)
    return apply_layout(figure, 230 + panels_height(len(positions), ROW, GAP), title_lines=3)


def _add_random_subspace(figure: go.Figure, prompts: pd.DataFrame, row: int) -> None:
    """The control: the same prompts against a random subspace."""
    prompts, _ = thinned(prompts, "group", "cosine_to_mean_train")
    figure.add_scatter(
        x=prompts["random_overlap"],
        y=prompts["cosine_to_mean_train"],
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


def _relation(relations: pd.DataFrame, position: object) -> str:
    """The correlations of a position as further lines of its panel's title, not in bold."""
    rows = relations[relations["position"] == position]
    if not len(rows):
        return ""
    first = rows.iloc[0]
    if not np.isfinite(first["pearson"]):
        return "</b><br>correlation undefined<b>"
    p = f"p = {first['p']:.2g}" if np.isfinite(first["p"]) else "not permuted"
    pearson = f"{number(first['pearson'])} {interval(first['low'], first['high'])}"
    ends = interval(first["partial_low"], first["partial_high"])
    partial = f"{number(first['partial'])} {ends}"
    return f"</b><br>r = {pearson}, {p}, n = {int(first['n'])}<br>partial r = {partial}<b>"


def _draw(shifts: pd.DataFrame, relations: pd.DataFrame, *, model: str, layers: str) -> go.Figure:
    if layers == ALL:
        return relation_by_layer(relations, model=model)
    return overlap_against_shift(shifts, relations, model=model)


def _facets(tables: Mapping[str, pd.DataFrame]) -> list[Facet]:
    """Two figures per model: the points of its middle layer, then all layers."""
    shifts = tables["shifts"]
    if "layer" not in shifts.columns:
        return []
    facets = []
    middle = _middle(layers_in(shifts))
    layers_of: dict[str, list[int]] = {}
    for model, text in combinations(shifts, ("model", "layer")):
        layers_of.setdefault(model, []).append(int(float(text)))
    for model, layers in layers_of.items():
        of_model = sorted(layers)
        layer = middle if middle in of_model else _middle(of_model)
        facets.append(Facet((model, MIDDLE), f"{model}, layer {layer}"))
        facets.append(Facet((model, ALL), f"{model}, all layers"))
    return facets


KIND = TableKind(
    name=NAME,
    reads=(
        TableNeed("shifts", COLUMNS, is_thinned=True),
        TableNeed("overlap_shift", RELATION_COLUMNS),
    ),
    draw_figure=_draw,
    facets_by=("model", "layers"),
    list_facets=_facets,
)
