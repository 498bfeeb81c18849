"""Alignment by domain before and after fine-tuning: a panel per fine-tune, a row per domain."""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emlens.figures.kinds import Facet
from emlens.figures.labels import key, label, stacked
from emlens.figures.notes import add_left_out
from emlens.figures.style import (
    BLUE,
    GREY,
    ORANGE,
    VERMILLION,
    add_panel_title,
    apply_layout,
    panels_height,
    rgba,
    row_spacing,
)
from emlens.figures.table_kinds import TableKind, TableNeed, fine_tunes_in
from emlens.figures.tables import distinct, error_bars, require_columns, rows_where
from emlens.figures.thinning import few_names

NAME = "alignment_by_domain"
COLUMNS = (
    "model",
    "kind",
    "group",
    "trained_domain",
    "n",
    "aligned",
    "aligned_low",
    "aligned_high",
)
ROW = 24
GAP = 62


def alignment_by_domain(
    domains: pd.DataFrame, *, before: str = "instruct", models: list[str] | None = None
) -> go.Figure:
    """Mean alignment of every domain in `before` (open circles) and in each fine-tune (filled).

    It runs from 0 to 100, with 95 % intervals.

    Args:
        domains: columns model, kind, group, trained_domain, n, aligned, aligned_low, aligned_high.
        before: the model that every panel compares with; panels are of the fine-tune alone where
            the table has no such model.
        models: panels, in order; all models of kind harmful or benign when left out.

    Raises:
        InputError: a column is missing, or a model is not in the table.
    """
    require_columns(domains, COLUMNS, NAME)
    panels = models or _fine_tunes(domains) or [before]
    has_before = before in distinct(domains, "model")
    ordered_by = before if has_before else panels[0]
    first, note = few_names(rows_where(domains, "model", ordered_by, NAME), ["group"])
    first = first.set_index("group")
    groups = list(first["aligned"].sort_values().index)
    height = ROW * len(groups)
    figure = make_subplots(
        len(panels), 1, shared_xaxes=False, vertical_spacing=row_spacing(len(panels), height, GAP)
    )
    for row, name in enumerate(panels, start=1):
        table = rows_where(domains, "model", name, NAME).set_index("group").reindex(groups)
        if has_before:
            _add_changes(figure, first.loc[groups], table, row)
            _add_series(
                figure, first.loc[groups], f"before ({label(before)})", GREY, "circle-open", row
            )
        if (table["kind"] == "benign").any():
            _add_series(figure, table, "after (benign fine-tune)", BLUE, "diamond", row)
        else:
            _add_series(figure, table, "after (fine-tune)", VERMILLION, "circle", row)
        _mark_trained_domains(figure, table, row)
        figure.update_xaxes(range=[-3, 103], row=row, col=1)
        if len(panels) > 1:
            add_panel_title(figure, label(name), row)
    figure.update_xaxes(title_text="alignment, mean over questions (0–100)", row=len(panels), col=1)
    figure.update_layout(meta={"rows": {"group": {key(g): i for i, g in enumerate(groups)}}})
    apply_layout(
        figure,
        120 + panels_height(len(panels), height, GAP),
        title_lines=int(len(panels) > 1),
    )
    return add_left_out(figure, note)


def _fine_tunes(domains: pd.DataFrame) -> list[str]:
    is_fine_tune = domains["kind"].isin(["harmful", "benign"])
    return list(map(str, distinct(domains[is_fine_tune], "model")))


def _add_changes(figure: go.Figure, before: pd.DataFrame, after: pd.DataFrame, row: int) -> None:
    """A grey line in every domain from the value before to the value after."""
    for i, group in enumerate(after.index):
        figure.add_shape(
            type="line",
            x0=before.loc[group, "aligned"],
            x1=after.loc[group, "aligned"],
            y0=i,
            y1=i,
            layer="below",
            line={"color": rgba(GREY, 0.35), "width": 3},
            row=row,
            col=1,
        )


def _add_series(
    figure: go.Figure, table: pd.DataFrame, title: str, colour: str, symbol: str, row: int
) -> None:
    """One model's mean in every domain, with its interval."""
    low, high = table["aligned_low"], table["aligned_high"]
    questions = table["n"].fillna(0).astype(int)
    boxes = zip(map(label, table.index), questions.tolist(), low, high, strict=True)
    figure.add_scatter(
        x=table["aligned"],
        y=list(range(len(table))),
        mode="markers",
        name=title,
        legendgroup=title,
        showlegend=_is_new(figure, title),
        marker={
            "color": colour,
            "symbol": symbol,
            "size": 9,
            "line": {"width": 1.5, "color": colour},
        },
        error_x=error_bars(table["aligned"], low, high, colour),
        customdata=list(map(list, boxes)),
        hovertemplate=(
            "%{customdata[0]}: %{x:.1f} [%{customdata[2]:.1f}, %{customdata[3]:.1f}],"
            " %{customdata[1]} questions"
        ),
        row=row,
        col=1,
    )


def _mark_trained_domains(figure: go.Figure, table: pd.DataFrame, row: int) -> None:
    """Name the rows of a panel, and shade and star those that the fine-tune was trained on."""
    ticks = []
    is_trained = table["trained_domain"].fillna(False).astype(bool)
    for i, (group, trained) in enumerate(zip(table.index, is_trained, strict=True)):
        name = stacked(group, 16, 28)
        if trained:
            name = f"★ {name}"
            figure.add_hrect(
                y0=i - 0.5,
                y1=i + 0.5,
                fillcolor=rgba(ORANGE, 0.18),
                line_width=0,
                layer="below",
                row=row,
                col=1,
            )
        ticks.append(name)
    figure.update_yaxes(
        tickvals=list(range(len(ticks))),
        ticktext=ticks,
        range=[-0.6, len(ticks) - 0.4],
        row=row,
        col=1,
    )


def _is_new(figure: go.Figure, name: str) -> bool:
    return all(trace.name != name for trace in figure.data)


def _one_panel(domains: pd.DataFrame, *, model: str) -> go.Figure:
    return alignment_by_domain(domains, models=[model])


def _facets(tables: Mapping[str, pd.DataFrame]) -> list[Facet]:
    return fine_tunes_in(tables["domains"])


KIND = TableKind(
    name=NAME,
    reads=(TableNeed("domains", COLUMNS),),
    draw_figure=_one_panel,
    facets_by=("model",),
    list_facets=_facets,
)
