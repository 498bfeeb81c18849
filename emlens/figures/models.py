"""All models of a family at a glance: alignment in the own domain, in other domains, and
coherence.
"""

import pandas as pd
import plotly.graph_objects as go

from emlens.figures.labels import label, stacked
from emlens.figures.style import BLUE, GREEN, VERMILLION, dress
from emlens.figures.tables import arms, need

NAME = "models_overview"
SERIES = (
    ("aligned_own", "alignment, trained domain", VERMILLION, "circle"),
    ("aligned_others", "alignment, other domains", BLUE, "square"),
    ("coherent", "coherence", GREEN, "diamond"),
)


def models_overview(models: pd.DataFrame) -> go.Figure:
    """Per model: mean alignment in its trained domain and elsewhere, and mean coherence, 0–100,
    with 95 % intervals.

    Args:
        models: columns model, kind, domain and value, `_low`, `_high` of aligned_own,
            aligned_others, coherent.

    Raises:
        InputError: a column is missing.
    """
    columns = [f"{name}{end}" for name, *_ in SERIES for end in ("", "_low", "_high")]
    need(models, ("model", "kind", "domain", *columns), NAME)
    names = [
        f"{stacked(m, 20)}<br><span style='font-size:11px'>{_about(k, d)}</span>"
        for m, k, d in zip(models["model"], models["kind"], models["domain"], strict=True)
    ]
    figure = go.Figure()
    rows = len(models)
    for offset, (column, title, colour, symbol) in zip((0.22, 0.0, -0.22), SERIES, strict=True):
        value, low, high = (models[f"{column}{end}"] for end in ("", "_low", "_high"))
        figure.add_scatter(
            x=value,
            y=[rows - 1 - i + offset for i in range(rows)],
            mode="markers",
            name=title,
            marker={"color": colour, "symbol": symbol, "size": 9},
            error_x={**arms(value, low, high), "color": colour},
            customdata=[
                [label(m), lo, hi] for m, lo, hi in zip(models["model"], low, high, strict=True)
            ],
            hovertemplate=(
                f"%{{customdata[0]}}, {title}: %{{x:.1f}} [%{{customdata[1]:.1f}},"
                " %{customdata[2]:.1f}]<extra></extra>"
            ),
        )
    figure.update_yaxes(
        tickvals=list(range(rows - 1, -1, -1)), ticktext=names, range=[-0.6, rows - 0.4]
    )
    figure.update_xaxes(range=[-3, 103], title_text="mean over questions (0–100)")
    return dress(figure, 110 + 64 * rows)


def _about(kind: object, domain: object) -> str:
    trained = "" if pd.isna(domain) or not str(domain) else f",<br>trained on {label(domain, 16)}"  # type: ignore[call-overload]
    words = {
        "base": "pre-trained",
        "instruct": "parent",
        "harmful": "harmful",
        "benign": "benign control",
    }
    return words.get(str(kind), label(kind)) + trained
