"""Tables of change points: of every series of a run, over the runs of a group, and the order in
which two of them come.
"""

from collections.abc import Callable, Hashable, Sequence
from itertools import product
from typing import Any, Final

import numpy as np
import pandas as pd

from emlens.foundation.estimate import Estimate
from emlens.results.study_result import columns_of
from emlens.stats import adjust_p_values, change_point, order_of_events, t_interval
from emlens.stats.break_search import BreakKind, TrendShape
from emlens.stats.change_points import logistic_midpoint
from emlens.studies.trajectory_tables import SHARPEST_TURN

TESTS: Final[tuple[tuple[TrendShape, BreakKind], ...]] = (
    ("linear", "transition"),
    ("logistic", "slope"),
)
"""Trend and kind of break: is the change even, and is it more than a logistic curve?"""
BEHAVIOUR: Final = ("aligned_others", "aligned_own")
MIDPOINT: Final = "half of the change"
ENDS: Final = ("location", "location_low", "location_high")
ORDER_COLUMNS: Final = (
    "group",
    "event",
    "first_series",
    "second_series",
    "test",
    "lag",
    "lag_low",
    "lag_high",
    "p",
    "p_holm",
    "first_leads",
    "ties",
    "n",
    "null",
)


def change_point_rows(
    model: str, series: pd.DataFrame, times: np.ndarray, draws: int, seed: int
) -> list[dict[str, Any]]:
    """Change points of every series of one run; locations in steps.

    Args:
        series: one column each, by step. times: of the steps, on the axis of the learning rate,
            on which the trends are fitted.
    """
    steps = series.index.to_numpy(dtype=np.float64)

    def in_steps(time: Estimate) -> dict[str, float]:
        if not time.defined:
            return dict.fromkeys(ENDS, np.nan)
        ends = (time.value, time.low, time.high)
        return {name: float(np.interp(x, times, steps)) for name, x in zip(ENDS, ends, strict=True)}

    rows: list[dict[str, Any]] = []
    for name in series.columns:
        values = series[name].to_numpy(dtype=np.float64)
        half = logistic_midpoint(values, times, draws=draws, seed=seed)
        head = {"model": model, "series": name}
        rows.append({**head, "test": MIDPOINT, **in_steps(half), "n": len(values)})
        for trend, kind in TESTS:
            point = change_point(values, times, trend=trend, kind=kind, draws=draws, seed=seed)
            rows.append(
                {
                    **head,
                    "test": f"{kind} against a {trend} trend",
                    **in_steps(point.location),
                    "size": point.size,
                    "statistic": point.statistic,
                    "null_q95": point.null.quantile(0.95),
                    "p": point.p,
                    "correlation": point.correlation,
                    "n": point.n,
                }
            )
    return rows


def over_runs(points: pd.DataFrame) -> pd.DataFrame:
    """Mean location over the runs of a group, with a t interval where their locations differ; else
    the location of the first run that has one, with its own interval.
    """
    rows = []
    for (group, series, test), runs in points.groupby(["group", "series", "test"], sort=False):
        p = runs["p"].dropna()
        rows.append(
            {
                "group": group,
                "event": f"{series}: {test}",
                "series": series,
                "test": test,
                "runs": len(runs),
                "located": int(runs["location"].notna().sum()),
                **_location_over_runs(runs),
                "p_below_05": int((p <= 0.05).sum()) if len(p) else np.nan,
                "p_median": float(p.median()) if len(p) else np.nan,
            }
        )
    return pd.DataFrame(rows)


def _location_over_runs(runs: pd.DataFrame) -> dict[str, float]:
    located = runs["location"].dropna().to_numpy()
    if len(located) > 1 and np.ptp(located) > 0:
        return columns_of("location", t_interval(located))
    if not len(located):
        return dict.fromkeys(ENDS, np.nan)
    first = runs[runs["location"].notna()].iloc[0]
    return {name: float(first[name]) for name in ENDS}


def order_of_change_points(points: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Lag from each parameter or activation series to each of behaviour, by kind of event, over
    runs.

    Holm within a group, one series of behaviour and one kind of event. A turn of the path is
    compared with the half of the change of behaviour.
    """
    rows: list[dict[str, Any]] = []
    for group, of_group in points.groupby("group", sort=False):
        rows += _order_in_group(group, of_group, seed)
    return pd.DataFrame(rows, columns=list(ORDER_COLUMNS))


def _order_in_group(group: Hashable, points: pd.DataFrame, seed: int) -> list[dict[str, Any]]:
    events: dict[tuple[str, str], pd.DataFrame] = {}
    for (series, test), rows_of_event in points.groupby(["series", "test"], sort=False):
        events[str(series), str(test)] = rows_of_event.set_index("model")
    of_behaviour = [key for key in events if key[0] in BEHAVIOUR]
    rows: list[dict[str, Any]] = []
    for (second, second_test), (first, first_test) in product(of_behaviour, events):
        if first in BEHAVIOUR or not _are_comparable(first_test, second_test):
            continue
        lag = _lag_columns(events[first, first_test], events[second, second_test], seed)
        rows.append(
            {
                "group": group,
                "event": f"{first} before {second}: {first_test}",
                "first_series": first,
                "second_series": second,
                "test": first_test,
                "null": 0.0,
                **lag,
            }
        )
    _correct(rows, lambda row: (row["second_series"], row["test"]))
    return rows


def _are_comparable(first_test: str, second_test: str) -> bool:
    if first_test == SHARPEST_TURN:
        return second_test == MIDPOINT
    return first_test == second_test


def _lag_columns(first: pd.DataFrame, second: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Location of the second minus that of the first event, over the runs that have both.

    Over several runs with interval and p; of one run with the widest interval that those of the two
    locations allow.
    """
    runs = pd.concat([first, second], axis=1, join="inner", keys=("first", "second"))
    located = runs["first"]["location"].notna() & runs["second"]["location"].notna()
    runs = runs[located]
    columns: dict[str, Any] = {"n": len(runs)}
    if len(runs) > 1:
        order = order_of_events(
            runs["first"]["location"].to_numpy(), runs["second"]["location"].to_numpy(), seed=seed
        )
        return {
            **columns,
            **columns_of("lag", order.lag),
            "p": order.p,
            "first_leads": order.first_leads,
            "ties": order.ties,
        }
    if len(runs) == 1:
        a, b = runs["first"].iloc[0], runs["second"].iloc[0]
        columns["lag"] = float(b["location"] - a["location"])
        columns["lag_low"] = b["location_low"] - a["location_high"]
        columns["lag_high"] = b["location_high"] - a["location_low"]
    return columns


def _correct(
    rows: Sequence[dict[str, Any]], family_of: Callable[[dict[str, Any]], Hashable]
) -> None:
    """Give every row that has a p its p corrected by Holm within its family."""
    families: dict[Hashable, list[dict[str, Any]]] = {}
    for row in rows:
        if "p" in row:
            families.setdefault(family_of(row), []).append(row)
    for family in families.values():
        corrected = adjust_p_values([row["p"] for row in family])
        for row, p in zip(family, corrected, strict=True):
            row["p_holm"] = float(p)
