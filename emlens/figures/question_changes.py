"""Every question before and after fine-tuning: a point each, with what both models would answer."""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from emlens.figures.kinds import Facet
from emlens.figures.question_points import add_diagonal, add_question_points
from emlens.figures.style import apply_layout
from emlens.figures.table_kinds import TableKind, TableNeed, fine_tunes_in
from emlens.figures.tables import distinct, require_columns, rows_where
from emlens.foundation.errors import InputError

NAME = "question_changes"
COLUMNS = ("model", "question", "group", "text", "trained", "aligned")
HEIGHT = 430


def question_changes(questions: pd.DataFrame, *, model: str, before: str = "instruct") -> go.Figure:
    """Alignment (0–100) of every question in a fine-tune against its parent.

    Below the dotted line it fell. Questions that the fine-tune was trained on are left out.

    Args:
        questions: columns model, question, group, text, trained, aligned; where there is a column
            answer, the most likely answer of both.
        before: the parent.

    Raises:
        InputError: a column is missing, or a model is not in the table.
    """
    require_columns(questions, COLUMNS, NAME)
    after = rows_where(questions, "model", model, NAME)
    if before not in distinct(questions, "model"):
        raise InputError(
            f"{NAME}: the questions have no scores of the parent {before!r}, so no change can be"
            " drawn; judge its answers too"
        )
    parent = rows_where(questions, "model", before, NAME).set_index("question")
    if not parent.index.is_unique:
        twice = parent.index[parent.index.duplicated()][0]
        raise InputError(
            f"{NAME}: the parent {before!r} has several rows for question"
            f" {str(twice)[:40]!r}; pass one row for each"
        )
    table = after[~after["trained"].astype(bool)].rename(columns={"question": "id"})
    table = table.assign(before=parent["aligned"].reindex(table["id"]).to_numpy())
    if "answer" in table.columns:
        table = table.assign(answer_before=parent["answer"].reindex(table["id"]).to_numpy())
    figure = go.Figure().set_subplots(1, 1)
    add_diagonal(figure, "no change")
    add_question_points(
        figure,
        table,
        "before",
        "aligned",
        "before %{x:.1f}, after %{y:.1f}",
        groups=sorted(set(map(str, table["group"]))),
    )
    figure.update_xaxes(range=[-3, 103], title_text="alignment before (0–100)")
    figure.update_yaxes(range=[-3, 103], title_text="alignment after (0–100)")
    return apply_layout(figure, HEIGHT)


def _draw(questions: pd.DataFrame, models: pd.DataFrame, *, model: str) -> go.Figure:
    """The table of models only says which of them are fine-tunes."""
    return question_changes(questions, model=model)


def _facets(tables: Mapping[str, pd.DataFrame]) -> list[Facet]:
    return fine_tunes_in(tables["models"])


KIND = TableKind(
    name=NAME,
    reads=(
        TableNeed("questions", COLUMNS, is_thinned=True),
        TableNeed("models", ("model", "kind")),
    ),
    draw_figure=_draw,
    facets_by=("model",),
    list_facets=_facets,
)
