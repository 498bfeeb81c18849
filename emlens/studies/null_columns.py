"""The columns that put a value beside its null, with the same names in every table."""

import numpy as np

from emlens.stats import NullDistribution
from emlens.stats.nulls import Side


def null_columns(
    null: NullDistribution | None, value: float, side: Side = "greater"
) -> dict[str, float]:
    """`null_mean`, `null_q95` and `p` of a value; `nan` where there is no null.

    Args:
        side: on which a value counts as beyond the null.
    """
    if null is None:
        return {**null_spread(null), "p": np.nan}
    return {**null_spread(null), "p": null.p_value(value, side=side)}


def null_spread(null: NullDistribution | None) -> dict[str, float]:
    """`null_mean` and `null_q95`; `nan` where there is no null."""
    if null is None:
        return {"null_mean": np.nan, "null_q95": np.nan}
    return {"null_mean": null.mean, "null_q95": null.quantile(0.95)}
