"""What the figures of forecasts take from the table that sums each forecast up."""

from collections.abc import Sequence

import pandas as pd

from emlens.figures.tables import require_columns

KEYS = ("model", "parent", "held_out")


def summary_row(
    summary: pd.DataFrame | None,
    model: str | None,
    parent: str | None,
    held_out: object,
    *,
    columns: Sequence[str],
    figure: str,
) -> pd.Series | None:
    """The row of one forecast; None where there is no table, or not exactly one such row.

    Args:
        columns: that the row must have beside model, parent and held_out.
        figure: for the message.

    Raises:
        InputError: a column is missing.
    """
    if summary is None:
        return None
    require_columns(summary, (*KEYS, *columns), figure)
    matches = (
        (summary["held_out"] == held_out)
        & (summary["model"] == model)
        & (summary["parent"] == parent)
    )
    rows = summary[matches]
    return rows.iloc[0] if len(rows) == 1 else None
