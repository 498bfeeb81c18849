"""Figures of scores: the mean of every model with its interval."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from emlens.figures.drawing import Drawing, drawing
from emlens.figures.notes import add_left_out
from emlens.figures.thinning import evenly
from emlens.results import Plot

if TYPE_CHECKING:
    from emlens.data.scores import AlignmentScores

MOST_MODELS, MOST_METRICS = 80, 8
"""Means that are computed and drawn; each has an interval by resampling."""
_MEANS = Plot(
    kind="forest",
    table="means",
    x="model",
    y="score",
    colour="metric",
    hover=("questions", "answers", "unscored"),
)


def picture_of_scores(scores: "AlignmentScores", metrics: list[str]) -> Drawing:
    """Mean over questions of each model, with its 95 % interval for questions like these."""
    models = [scores.models[i] for i in evenly(len(scores.models), MOST_MODELS)]
    some = metrics[:MOST_METRICS]
    table = pd.DataFrame(list(_means(scores, models, some)))
    low, high = scores.scales[metrics[0]] if metrics else (0.0, 100.0)
    plot = replace(_MEANS, title="Mean over questions", y_title=f"score ({low:g} to {high:g})")
    figure = drawing(table, plot, empty="no answer has a score, so there is no mean to draw")
    notes = [_part_of(len(models), len(scores.models), "models")]
    notes.append(_part_of(len(some), len(metrics), "metrics"))
    add_left_out(figure, *notes)
    return figure


def _part_of(drawn: int, there: int, what: str) -> str:
    return f"{drawn} of {there} {what} drawn" if drawn < there else ""


def sharing_a_scale(scales: Mapping[str, tuple[float, float]]) -> list[str]:
    """The metrics on the scale of the first one, which can share an axis."""
    names = list(scales)
    return [name for name in names if scales[name] == scales[names[0]]]


def _means(
    scores: "AlignmentScores", models: list[str], metrics: list[str]
) -> Iterator[dict[str, object]]:
    for model in models:
        for metric in metrics:
            rows = scores.rows(metric, model)
            if not rows["score"].notna().any():
                continue
            mean = scores.mean(metric, model=model)
            yield {
                "model": model,
                "metric": metric,
                "score": mean.value,
                "score_low": mean.low,
                "score_high": mean.high,
                "questions": rows["question"].nunique(),
                "answers": len(rows),
                "unscored": round(float(rows["score"].isna().mean()), 3),
            }
