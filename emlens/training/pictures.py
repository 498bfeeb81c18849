"""Figures of a training run: a column of its log by step."""

import pandas as pd

from emlens.figures.drawing import Drawing, drawing
from emlens.foundation.errors import UnknownNameError
from emlens.results import Plot


def picture_of_log(log: pd.DataFrame, column: str) -> Drawing:
    """One column by step.

    Raises:
        UnknownNameError: the log has no such column.
    """
    if len(log) and column not in log.columns:
        raise UnknownNameError(
            f"column {column!r} is not in the log; it has {', '.join(map(str, log.columns))}",
            name=column,
            known=log.columns,
        )
    plot = Plot(kind="line", table="log", x="step", y=column, title=f"{column} by training step")
    return drawing(log, plot, empty="the run took no step")
