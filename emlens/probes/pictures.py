"""Figures of forecasts: what was forecast against what was measured, and how good that is."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from emlens.figures.drawing import Drawing, drawing, titled
from emlens.figures.plots import draw_plot
from emlens.foundation.estimate import Estimate
from emlens.results import Plot

if TYPE_CHECKING:
    from emlens.probes.record import Forecast

_SCATTER = Plot(
    kind="forecast_scatter",
    table="forecast_predictions",
    title="Forecast against measurement, per question",
)
_POINTS = Plot(kind="points", table="predictions", x="measured", y="forecast", colour="group")
_RUNS = Plot(
    kind="forest",
    table="runs",
    x="predictor",
    y="r2",
    colour="estimator",
    null="null_mean",
    title="How well runs are forecast",
    y_title="R² over held-out runs",
)
NOTHING = "no question was forecast"
ENDS = (0.0, 100.0)
"""Of the scale on which the report draws forecasts."""


def picture_of_forecast(forecast: "Forecast") -> Drawing:
    """One point per question, the perfect forecast as a diagonal, R² and rank correlation above."""
    predictions = forecast.predictions
    if not len(predictions):
        return drawing(predictions, _SCATTER, empty=NOTHING)
    if forecast.target != "score" or not _lies_within(predictions, ENDS):
        title = f"Forecast against measurement: R² {_in_words(forecast.r2)}"
        return picture_of_pairs(predictions, "target", "predicted", title, hover=("id",))
    names = {"model": "", "parent": "", "held_out": forecast.held_out, "text": ""}
    summary = pd.DataFrame(
        [
            {
                **names,
                "r2": forecast.r2.value,
                "r2_low": forecast.r2.low,
                "r2_high": forecast.r2.high,
                "spearman": forecast.spearman.value,
            }
        ]
    )
    plot = replace(_SCATTER, tables=("forecast",))
    tables = {"forecast_predictions": predictions.assign(**names), "forecast": summary}
    return titled(Drawing(draw_plot(tables, plot)), plot.title)


def picture_of_pairs(
    table: pd.DataFrame,
    measured: str,
    forecast: str,
    title: str,
    *,
    group: str = "group",
    hover: Sequence[str] = (),
) -> Drawing:
    """Any column of forecasts against any column of what was measured.

    Args:
        group: the column that colours the points, where the table has it.
    """
    renamed = table.rename(columns={measured: "measured", forecast: "forecast"})
    colour = group if group in renamed.columns else ""
    plot = replace(_POINTS, title=title, colour=colour, hover=tuple(hover))
    return drawing(renamed, plot, empty=NOTHING)


def picture_of_runs(table: pd.DataFrame) -> Drawing:
    """R² of each set of predictors and estimator with its interval, beside shuffled scores."""
    return drawing(table, _RUNS, empty="no set of predictors was tried")


def _lies_within(predictions: pd.DataFrame, ends: tuple[float, float]) -> bool:
    low, high = ends
    measured = predictions["target"]
    return bool(measured.min() >= low and measured.max() <= high and measured.max() > 1)


def _in_words(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
