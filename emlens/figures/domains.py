"""Alignment by domain, before and after fine-tuning: one panel a fine-tune, one row a domain,
intervals drawn.
"""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emlens.figures.labels import label, stacked
from emlens.figures.style import BLUE, GREY, ORANGE, VERMILLION, dress, panel_title, rgba, spacing
from emlens.figures.tables import arms, distinct, need, only

NAME = "alignment_by_domain"
ROW = 24
GAP = 62


def alignment_by_domain(
    domains: pd.DataFrame, *, before: str = "instruct", models: list[str] | None = None
) -> go.Figure:
    """Mean alignment (0–100) of every domain in `before` (open circles) and in each fine-tune
    (filled), with 95 % intervals.

    Args:
        domains: columns model, kind, group, trained_domain, n, aligned, aligned_low, aligned_high.
        before: the model every panel compares with.
        models: panels, in order; all models of kind harmful or benign when left out.

    Raises:
        InputError: a column is missing, or a model is not in the table.
    """
    need(
        domains,
        ("model", "kind", "group", "trained_domain", "n", "aligned", "aligned_low", "aligned_high"),
        NAME,
    )
    first = only(domains, "model", before, NAME).set_index("group")
    chosen = (
        models
        or [str(m) for m in distinct(domains[domains["kind"].isin(["harmful", "benign"])], "model")]
        or [before]
    )
    groups = list(first["aligned"].sort_values().index)
    height = ROW * len(groups)
    figure = make_subplots(
        len(chosen), 1, shared_xaxes=False, vertical_spacing=spacing(len(chosen), height, GAP)
    )
    for row, name in enumerate(chosen, start=1):
        table = only(domains, "model", name, NAME).set_index("group").reindex(groups)
        benign = (table["kind"] == "benign").any()
        trained = table["trained_domain"].fillna(False).astype(bool)
        y = list(range(len(groups)))
        for i, group in enumerate(groups):
            figure.add_shape(
                type="line",
                x0=first.loc[group, "aligned"],
                x1=table.loc[group, "aligned"],
                y0=i,
                y1=i,
                layer="below",
                line={"color": rgba(GREY, 0.35), "width": 3},
                row=row,
                col=1,
            )
        series = (
            (f"before ({label(before)})", first.loc[groups], GREY, "circle-open"),
            (
                "after (benign fine-tune)" if benign else "after (fine-tune)",
                table,
                BLUE if benign else VERMILLION,
                "diamond" if benign else "circle",
            ),
        )
        for title, data, colour, symbol in series:
            figure.add_scatter(
                x=data["aligned"],
                y=y,
                mode="markers",
                name=title,
                legendgroup=title,
                showlegend=_first(figure, title),
                marker={
                    "color": colour,
                    "symbol": symbol,
                    "size": 9,
                    "line": {"width": 1.5, "color": colour},
                },
                error_x={
                    **arms(data["aligned"], data["aligned_low"], data["aligned_high"]),
                    "color": colour,
                },
                customdata=[
                    [label(g), int(n), lo, hi]
                    for g, n, lo, hi in zip(
                        groups,
                        data["n"].fillna(0),
                        data["aligned_low"],
                        data["aligned_high"],
                        strict=True,
                    )
                ],
                hovertemplate=(
                    "%{customdata[0]}: %{x:.1f} [%{customdata[2]:.1f}, %{customdata[3]:.1f}],"
                    " %{customdata[1]} questions"
                ),
                row=row,
                col=1,
            )
        for i in [i for i, own in enumerate(trained) if own]:
            figure.add_hrect(
                y0=i - 0.5,
                y1=i + 0.5,
                fillcolor=rgba(ORANGE, 0.18),
                line_width=0,
                layer="below",
                row=row,
                col=1,
            )
        ticks = [
            f"★ {stacked(g, 16, 28)}" if own else stacked(g, 16, 28)
            for g, own in zip(groups, trained, strict=True)
        ]
        figure.update_yaxes(
            tickvals=y, ticktext=ticks, range=[-0.6, len(groups) - 0.4], row=row, col=1
        )
        figure.update_xaxes(range=[-3, 103], row=row, col=1)
        if len(chosen) > 1:
            panel_title(figure, label(name), row)
    figure.update_xaxes(title_text="alignment, mean over questions (0–100)", row=len(chosen), col=1)
    return dress(
        figure,
        120 + len(chosen) * height + (len(chosen) - 1) * GAP,
        title_lines=int(len(chosen) > 1),
    )


def _first(figure: go.Figure, name: str) -> bool:
    return all(trace.name != name for trace in figure.data)
