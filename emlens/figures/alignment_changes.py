"""Alignment from the parent to each fine-tune, benign ones in grey, with coherence beside it.

Fine-tunes named NAME@SEED that share their NAME share a row, so that many seeds make no long
figure.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emlens.figures.kinds import Facet
from emlens.figures.labels import key, label, stacked
from emlens.figures.style import BLACK, GREY, VERMILLION, add_panel_title, apply_layout
from emlens.figures.table_kinds import TableKind, TableNeed
from emlens.figures.tables import error_bars, require_columns

NAME = "alignment_changes"
OUTSIDE = "outside the trained domain"
"""The facet of all questions on whose topics a fine-tune was not trained."""
MODELS = (
    "model",
    "kind",
    "aligned_others",
    "aligned_others_low",
    "aligned_others_high",
    "coherent",
    "coherent_low",
    "coherent_high",
)
DOMAINS = (
    "model",
    "kind",
    "group",
    "aligned",
    "aligned_low",
    "aligned_high",
    "coherent",
    "coherent_low",
    "coherent_high",
)
LOOKS = {
    "instruct": ("parent", BLACK, "diamond-open"),
    "base": ("pre-trained", GREY, "diamond-open"),
    "harmful": ("fine-tune", VERMILLION, "circle"),
    "benign": ("benign control", GREY, "square"),
}
ORDER = ("instruct", "base", "harmful", "benign")
ROW = 30
SPREAD = 0.5
"""Of a row, over which its seeds are spread."""
WIDTHS = (0.68, 0.32)
"""Shares of the figure's width that alignment and coherence take."""


def alignment_changes(
    models: pd.DataFrame,
    domains: pd.DataFrame | None = None,
    *,
    group: str = OUTSIDE,
) -> go.Figure:
    """Alignment (left) and coherence (right) of every model, from 0 to 100, with 95 % intervals.

    A line leads from the parent's alignment to that of each fine-tune.

    Args:
        models: columns model, kind, and value, `_low`, `_high` of aligned_others and coherent.
        domains: the same by group of questions: columns model, kind, group, and value, `_low`,
            `_high` of aligned and coherent. Needed for any other `group`.
        group: which questions; by default all outside the domain a model was trained on.

    Raises:
        InputError: a column is missing, or no row has the group.
    """
    rows = _rows(models, domains, group)
    heads, places = _places(rows)
    figure = make_subplots(
        1, 2, shared_yaxes=True, horizontal_spacing=0.07, column_widths=list(WIDTHS)
    )
    _add_changes(figure, rows, places)
    for kind in ORDER:
        of_kind = rows[rows["kind"] == kind]
        if len(of_kind):
            _add_models(figure, of_kind, kind, places)
    ticks = [stacked(name, 20, 40) for name in heads]
    figure.update_yaxes(
        tickvals=list(range(len(heads))), ticktext=ticks, range=[len(heads) - 0.4, -0.6]
    )
    for col, title in enumerate(("alignment", "coherence"), start=1):
        figure.update_xaxes(range=[-3, 103], tickvals=[0, 50, 100], row=1, col=col)
        add_panel_title(figure, title, 1, col)
    figure.update_layout(meta={"rows": {"model": {key(m): round(y) for m, y in places.items()}}})
    return apply_layout(figure, 110 + ROW * len(heads), title_lines=1)


def _places(rows: pd.DataFrame) -> tuple[list[str], dict[object, float]]:
    """What each row is called, from above, and where on it each model lies."""
    members: dict[str, list[object]] = {}
    for model in rows["model"]:
        name, at, seed = str(model).rpartition("@")
        members.setdefault(name if at and seed.isdigit() else str(model), []).append(model)
    heads, places = [], {}
    for row, (name, models) in enumerate(members.items()):
        if len(models) == 1:
            heads.append(str(models[0]))
            places[models[0]] = float(row)
            continue
        heads.append(f"{name} × {len(models)}")
        steps = np.linspace(-SPREAD / 2, SPREAD / 2, len(models))
        places.update({model: row + step for model, step in zip(models, steps, strict=True)})
    return heads, places


def _rows(models: pd.DataFrame, domains: pd.DataFrame | None, group: str) -> pd.DataFrame:
    """The models in order: the parent first, then fine-tunes by alignment, then benign controls."""
    if group == OUTSIDE or domains is None:
        require_columns(models, MODELS, NAME)
        rows = models.rename(columns=lambda name: name.replace("aligned_others", "aligned"))
    else:
        require_columns(domains, DOMAINS, NAME)
        rows = domains[domains["group"].astype(str) == group]
        require_columns(rows, DOMAINS, NAME)
    rows = rows[rows["kind"].isin(ORDER)]
    place = rows["kind"].map(ORDER.index)
    return rows.assign(_place=place).sort_values(["_place", "aligned"], kind="stable")


def _add_changes(figure: go.Figure, rows: pd.DataFrame, places: Mapping[object, float]) -> None:
    """A grey line from the parent's alignment to that of each fine-tune."""
    parent = rows.loc[rows["kind"] == "instruct", "aligned"]
    if not len(parent):
        return
    x: list[float | None] = []
    y: list[float | None] = []
    for model, kind, aligned in zip(rows["model"], rows["kind"], rows["aligned"], strict=True):
        if kind in ("harmful", "benign") and np.isfinite(aligned):
            x += [float(parent.iloc[0]), float(aligned), None]
            y += [places[model], places[model], None]
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines",
        line={"color": GREY, "width": 1},
        showlegend=False,
        hoverinfo="skip",
        row=1,
        col=1,
    )


def _add_models(
    figure: go.Figure, rows: pd.DataFrame, kind: str, places: Mapping[object, float]
) -> None:
    title, colour, symbol = LOOKS[kind]
    for col, column in enumerate(("aligned", "coherent"), start=1):
        value, low, high = rows[column], rows[f"{column}_low"], rows[f"{column}_high"]
        boxes = zip(map(label, rows["model"]), low, high, strict=True)
        figure.add_scatter(
            x=value,
            y=[places[model] for model in rows["model"]],
            mode="markers",
            name=title,
            legendgroup=title,
            showlegend=col == 1,
            marker={"color": colour, "symbol": symbol, "size": 9, "line": {"color": colour}},
            error_x=error_bars(value, low, high, colour),
            customdata=list(map(list, boxes)),
            hovertemplate=(
                "%{customdata[0]}: %{x:.1f} [%{customdata[1]:.1f}, %{customdata[2]:.1f}]"
                "<extra></extra>"
            ),
            row=1,
            col=col,
        )


def _facets(tables: Mapping[str, pd.DataFrame]) -> list[Facet]:
    facets = [Facet((OUTSIDE,), OUTSIDE)]
    if "domains" in tables and "group" in tables["domains"].columns:
        groups = dict.fromkeys(map(str, tables["domains"]["group"]))
        facets += [Facet((group,), group) for group in groups]
    return facets


KIND = TableKind(
    name=NAME,
    reads=(TableNeed("models", MODELS), TableNeed("domains", is_required=False)),
    draw_figure=alignment_changes,
    facets_by=("group",),
    list_facets=_facets,
    is_full_width=True,
)
