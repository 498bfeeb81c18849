"""The status of a finding, and the columns that put a value beside its null."""

import numpy as np

from emlens.stats import NullDistribution
from emlens.stats.nulls import Side


def verdict(*, shown: bool, not_shown: bool) -> str:
    """`"shown"`, `"not shown"` or, where neither holds, `"undecided"`; shown wins over both."""
    if shown:
        return "shown"
    if not_shown:
        return "not shown"
    return "undecided"


def null_columns(
    null: NullDistribution | None, value: float, side: Side = "greater"
) -> dict[str, float]:
    """The columns `null_mean`, `null_q95` and `p` of a value; `nan` where there is no null."""
    if null is None:
        return dict.fromkeys(("null_mean", "null_q95", "p"), np.nan)
    return {
        "null_mean": null.mean,
        "null_q95": null.quantile(0.95),
        "p": null.p_value(value, side=side),
    }
