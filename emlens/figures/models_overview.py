"""All models of a family at a glance: alignment in their own and in other domains, coherence."""

import pandas as pd
import plotly.graph_objects as go

from emlens.figures.labels import label, stacked
from emlens.figures.style import BLUE, GREEN, VERMILLION, apply_layout
from emlens.figures.table_kinds import TableKind, TableNeed
from emlens.figures.tables import error_bars, require_columns

NAME = "models_overview"
SERIES = (
    ("aligned_own", "alignment, trained domain", VERMILLION, "circle", 0.22),
    ("aligned_others", "alignment, other domains", BLUE, "square", 0.0),
    ("coherent", "coherence", GREEN, "diamond", -0.22),
)
"""Column, title, colour, symbol, and where in its row a mark lies."""
COLUMNS = (
    "model",
    "kind",
    "domain",
    *(f"{column}{end}" for column, *_ in SERIES for end in ("", "_low", "_high")),
)
KIND_NAMES = {
    "base": "pre-trained",
    "instruct": "parent",
    "harmful": "harmful",
    "benign": "benign control",
}
ROW = 64


def models_overview(models: pd.DataFrame) -> go.Figure:
    """Mean alignment of every model in its trained domain and elsewhere, and its coherence.

    All run from 0 to 100, with 95 % intervals.

    Args:
        models: columns model, kind, domain and value, `_low`, `_high` of aligned_own,
            aligned_others, coherent.

    Raises:
        InputError: a column is missing.
    """
    require_columns(models, COLUMNS, NAME)
    figure = go.Figure()
    rows = len(models)
    for column, title, colour, symbol, offset in SERIES:
        value, low, high = models[column], models[f"{column}_low"], models[f"{column}_high"]
        labels = models["model"].map(label)
        figure.add_scatter(
            x=value,
            y=[rows - 1 - i + offset for i in range(rows)],
            mode="markers",
            name=title,
            marker={"color": colour, "symbol": symbol, "size": 9},
            error_x=error_bars(value, low, high, colour),
            customdata=list(map(list, zip(labels, low, high, strict=True))),
            hovertemplate=(
                f"%{{customdata[0]}}, {title}: "
                "%{x:.1f} [%{customdata[1]:.1f}, %{customdata[2]:.1f}]<extra></extra>"
            ),
        )
    figure.update_yaxes(
        tickvals=list(range(rows - 1, -1, -1)),
        ticktext=list(map(_row_name, models["model"], models["kind"], models["domain"])),
        range=[-0.6, rows - 0.4],
    )
    figure.update_xaxes(range=[-3, 103], title_text="mean over questions (0–100)")
    return apply_layout(figure, 110 + ROW * rows)


def _row_name(model: object, kind: object, domain: object) -> str:
    description = KIND_NAMES.get(str(kind), label(kind))
    has_domain = bool(pd.notna(domain)) and bool(str(domain))  # type: ignore[call-overload]
    if has_domain:
        description += f",<br>trained on {label(domain, 16)}"
    return f"{stacked(model, 20)}<br><span style='font-size:11px'>{description}</span>"


KIND = TableKind(
    name=NAME,
    reads=(TableNeed("models", COLUMNS),),
    draw_figure=models_overview,
    is_full_width=True,
)
