"""What the tables of `phase_transition` say, in sentences: whether alignment turned at once, and
what happened before it.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pandas as pd

from emlens.results.study_result import Finding, Part, p_text
from emlens.results.wording import counted
from emlens.studies.change_point_tables import MIDPOINT
from emlens.studies.verdicts import verdict

STUDY: Final = "phase_transition"
STRAIGHT: Final = "transition against a linear trend"
BREAK: Final = "slope against a logistic trend"
LEVEL: Final = 0.05


def add_findings(part: Part) -> None:
    """One finding per group of runs, and one per event that is compared with alignment outside the
    domain.
    """
    over_runs, order = part.tables["change_points_over_runs"], part.tables["order_of_events"]
    aligned = over_runs[over_runs["series"] == "aligned_others"]
    for group, rows in aligned.groupby("group", sort=False):
        part.findings.append(_change_finding(str(group), rows))
    compared = order[(order["test"] == MIDPOINT) & (order["second_series"] == "aligned_others")]
    for row in compared[compared["p"].notna()].to_dict("records"):
        part.findings.append(_order_finding(row))
    if (over_runs["runs"] < 2).all():
        part.warnings.append(
            "one run per group: intervals of change points are over noise within it,"
            " and the order of events has no test"
        )


def _change_finding(group: str, rows: pd.DataFrame) -> Finding:
    """In how many runs alignment did not change evenly, and in how many it broke."""
    by_test: dict[str, dict[Any, Any]] = {str(row["test"]): row for row in rows.to_dict("records")}
    runs = int(rows["runs"].max())
    not_straight = int(by_test[STRAIGHT]["p_below_05"])
    breaks = int(by_test[BREAK]["p_below_05"])
    sentence = (
        f"{group}, alignment outside the domain: {_uneven(not_straight, runs)};"
        f" {_broken(breaks, runs)}."
    )
    if breaks:
        sentence += " A break explains that, and so does a smooth curve of another shape."
    half = by_test[MIDPOINT]
    if not np.isnan(half["location"]):
        where = (
            ""
            if half["located"] == runs
            else f" in the {half['located']:.0f} of {counted(runs, 'run')} that turn"
        )
        sentence += (
            f" Half of the change is done at step {half['location']:.1f}"
            f" {_interval(half, 'location')}{where}."
        )
    return Finding(STUDY, sentence, verdict(shown=breaks == runs, not_shown=breaks == 0))


def _uneven(shown: int, runs: int) -> str:
    """In how many runs the change is no straight line."""
    if not shown:
        return f"that it is not straight is shown in none of {counted(runs, 'run')} (p > .05)"
    return (
        "it is not straight (nor is any curve that levels off)"
        f" in {shown} of {counted(runs, 'run')} (p ≤ .05)"
    )


def _broken(shown: int, runs: int) -> str:
    """In how many runs the change is more than one logistic curve."""
    if not shown:
        return (
            "that it is more than one logistic curve is shown in none of"
            f" {counted(runs, 'run')} (p > .05)"
        )
    return f"it is more than one logistic curve in {shown} of {counted(runs, 'run')} (p ≤ .05)"


def _order_finding(row: Mapping[Any, Any]) -> Finding:
    """Which of one event and alignment comes first, and by how much; no order is named that is not
    shown.
    """
    is_shown = bool(row["p_holm"] <= LEVEL)
    order = "it cannot be told which comes first"
    if is_shown:
        leader = row["first_series"] if row["lag"] > 0 else "alignment"
        order = f"{leader} comes first, by {abs(row['lag']):.1f} steps"
    sentence = (
        f"{row['group']}: of {row['first_series']} and alignment outside the domain,"
        f" {order} (lag {row['lag']:.1f} {_interval(row, 'lag')}; {row['first_series']} leads in"
        f" {row['first_leads']:.0f} of {counted(int(row['n']), 'run')}; p {p_text(row['p'])},"
        f" {p_text(row['p_holm'])} corrected)."
    )
    return Finding(STUDY, sentence, verdict(shown=is_shown))


def _interval(row: Mapping[Any, Any], name: str) -> str:
    return f"[{row[f'{name}_low']:.1f}, {row[f'{name}_high']:.1f}]"
