"""Every question before and after fine-tuning: a point each, hover shows the question and what both
models would most likely answer.
"""

import pandas as pd
import plotly.graph_objects as go

from emlens.figures.questions import add_questions
from emlens.figures.style import GREY, dress
from emlens.figures.tables import need, only

NAME = "question_changes"
HEIGHT = 430


def question_changes(questions: pd.DataFrame, *, model: str, before: str = "instruct") -> go.Figure:
    """Alignment (0–100) of every question in a fine-tune against its parent; below the dotted line
    it fell. Questions it was trained on are left out.

    Args:
        questions: columns model, question, group, text, trained, aligned; where there is a column
            answer, the most likely answer of both.
        before: the parent.

    Raises:
        InputError: a column is missing, or a model is not in the table.
    """
    need(questions, ("model", "question", "group", "text", "trained", "aligned"), NAME)
    after = only(questions, "model", model, NAME)
    parent = only(questions, "model", before, NAME).set_index("question")
    table = after[~after["trained"].astype(bool)].rename(columns={"question": "id"})
    table = table.assign(before=parent["aligned"].reindex(table["id"]).to_numpy())
    if "answer" in table.columns:
        table = table.assign(answer_before=parent["answer"].reindex(table["id"]).to_numpy())
    figure = go.Figure().set_subplots(1, 1)
    figure.add_scatter(
        x=[0, 100],
        y=[0, 100],
        mode="lines",
        line={"color": GREY, "dash": "dot", "width": 1},
        name="no change",
        legendrank=2000,
        hoverinfo="skip",
    )
    groups = sorted({str(g) for g in table["group"]})
    add_questions(figure, table, groups, "before", "aligned", "before %{x:.1f}, after %{y:.1f}", 1)
    figure.update_xaxes(range=[-3, 103], title_text="alignment before (0–100)")
    figure.update_yaxes(range=[-3, 103], title_text="alignment after (0–100)")
    return dress(figure, HEIGHT)
