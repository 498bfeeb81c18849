"""Tables on which the sentences of change points, of loss against alignment, of general and narrow
solutions, and of runs that were trained again are true and false.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from studies.claim import Claim, said

from emlens.results import Finding
from emlens.results.study_result import Part
from emlens.studies import (
    change_point_findings,
    fine_tuning,
    loss_findings,
    solution_findings,
)
from emlens.studies.change_point_findings import BREAK, STRAIGHT
from emlens.studies.change_point_tables import MIDPOINT
from emlens.studies.loss_relations import RUN
from emlens.studies.solution_measures import GENERAL, NARROW, RANDOM
from emlens.studies.solution_pairs import KEPT, LIFTED


def _turned(
    straight: int = 4,
    breaks: int = 3,
    runs: int = 4,
    located: int = 4,
    lag: float = 3.0,
    p_holm: float = 0.01,
) -> list[Finding]:
    """Findings of a group of runs whose alignment changed, and of the norm of their adapters."""
    place = {"group": "medicine", "runs": runs}
    at = 20.0 if located else np.nan
    points = [
        {**place, "series": "aligned_others", "test": test, "p_below_05": count, "location": at}
        for test, count in ((STRAIGHT, straight), (BREAK, breaks), (MIDPOINT, np.nan))
    ]
    over_runs = pd.DataFrame(points).assign(located=located, location_low=15, location_high=25)
    order = {
        "group": "medicine",
        "first_series": "norm",
        "second_series": "aligned_others",
        "test": MIDPOINT,
        "lag": lag,
        "lag_low": lag - 1,
        "lag_high": lag + 1,
        "p": p_holm / 2,
        "p_holm": p_holm,
        "first_leads": 4,
        "n": runs,
    }
    part = Part()
    part.tables["change_points_over_runs"] = over_runs
    part.tables["order_of_events"] = pd.DataFrame([order])
    change_point_findings.add_findings(part)
    return said(part)


def _related(
    p: float = 0.001,
    value: float = 0.5,
    given: str = "",
    by: str = "schedule",
    relation: str = "isotonic",
    compared: bool = True,
) -> list[Finding]:
    """Findings of a correlation and of one setting, `by`, compared at matched loss."""
    correlation = {
        "loss_name": "loss",
        "metric": "aligned",
        "measure": "Pearson",
        "given": given,
        "value": value,
        "value_low": value - 0.2,
        "value_high": value + 0.2,
        "p": 0.001,
        "n": 12,
    }
    matched = {
        "by": by,
        "relation": relation,
        "group": ["a", "b"],
        "statistic": [1.0, 3.0],
        "gap": [1.0, 3.0],
        "gap_low": [-1.0, 2.0],
        "gap_high": [3.0, 4.0],
        "null_q95": 2.0,
        "p_all": p,
    }
    part = Part()
    part.tables["loss_correlations"] = pd.DataFrame([correlation])
    part.tables["loss_matched"] = pd.DataFrame(matched).iloc[: 2 * compared]
    loss_findings.add_correlation_findings(part, "loss", "aligned")
    loss_findings.add_matched_findings(part, ["schedule"], "aligned", ["isotonic", "linear"])
    loss_findings.add_summary(part, "loss", "aligned", 12)
    return said(part)


def _solved(
    ahead: float = 0.2,
    text: str = "documents",
    p: float = 0.01,
    random: bool = True,
    seeds: int = 3,
    drift: Sequence[str] = ("others", "own_held_out"),
    measured: bool = True,
) -> list[Finding]:
    """Findings of a pair of solutions; `ahead`: narrow − general in loss and in lost gain."""

    def rows(difference: float) -> pd.DataFrame:
        row = {
            GENERAL: 1.0,
            NARROW: 1.0 + difference,
            "difference": difference,
            "difference_low": difference - 0.1,
            "difference_high": difference + 0.1,
            "p": p,
            "seeds": seeds,
            "share": 1.0,
            "epsilon": 0.5,
            "data": "trained",
        }
        if random:
            row[RANDOM] = 2.0
        return pd.DataFrame([row]).iloc[: int(measured)]

    part = Part()
    part.tables |= {"efficiency": rows(ahead), "stability": rows(ahead)}
    part.tables["significance"] = rows(-ahead).assign(data=text)
    ends = {
        "step": [10, 20],
        "when_lifted": 90.0,
        LIFTED: 70.0,
        KEPT: 88.0,
        "since_lifted": -20.0,
        "since_lifted_low": -25.0,
        "since_lifted_high": -15.0,
        "since_lifted_p": p,
        "difference": -18.0,
        "difference_low": -20.0,
        "difference_high": -16.0,
        "p": p,
    }
    if drift:
        part.tables["drift"] = pd.concat(pd.DataFrame(ends).assign(measure=m) for m in drift)
    solution_findings.add_findings(part)
    return said(part)


def _trained(
    others: Sequence[float] = (40.0, 42.0),
    cells: Sequence[str] = ("linear", "cosine"),
    benign: bool = True,
    domain: str = "north",
) -> list[Finding]:
    """Findings of runs with this alignment, one a seed, in every cell."""
    rows = []
    for kind, source in (("harmful", "bad"), ("benign", "good"))[: 1 + benign]:
        for cell in cells if kind == "harmful" else cells[:1]:
            for seed, value in enumerate(others):
                score = value if kind == "harmful" else 88.0 + seed
                run = {"run": f"{source}-{cell}@{seed}", "source": source, "cell": cell}
                run |= {"kind": kind, "seed": seed, "loss": 1.0 + seed, "parent_score": 90.0}
                for name in ("others", "own", "coherent"):
                    run |= {name: score, f"{name}_low": score - 2, f"{name}_high": score + 2}
                rows.append(run)
    part = Part()
    part.tables["trained_runs"] = pd.DataFrame(rows)
    part.tables["trained_cells"] = fine_tuning.cells(part.tables["trained_runs"])
    fine_tuning.add_findings(part, ["bad-linear@0"], {"bad": domain, "good": "south"})
    return said(part)


CHANGE_POINTS = [
    Claim("A break explains that", _turned, lambda: _turned(breaks=0)),
    Claim("off) in 4 of 4 runs", _turned, lambda: _turned(straight=1)),
    Claim("it is more than one logistic curve in 3 of 4 runs", _turned, lambda: _turned(breaks=0)),
    Claim("one logistic curve is shown in none of 4 runs", lambda: _turned(breaks=0), _turned),
    Claim("not straight is shown in none of 4 runs", lambda: _turned(straight=0), _turned),
    Claim("in the 3 of 4 runs that turn", lambda: _turned(located=3), _turned),
    Claim("Half of the change is done", _turned, lambda: _turned(located=0)),
    Claim("norm comes first, by 3.0 steps", _turned, lambda: _turned(lag=-3.0)),
    Claim("alignment comes first", lambda: _turned(lag=-3.0), _turned),
    Claim("comes first, by", _turned, lambda: _turned(p_holm=0.4)),
    Claim("it cannot be told which comes first", lambda: _turned(p_holm=0.4), _turned),
    Claim("one run per group", lambda: _turned(runs=1), _turned),
]
LOSS = [
    Claim("correlate by 0.50", _related, lambda: _related(value=np.nan)),
    Claim("have no correlation that is defined", lambda: _related(value=np.nan), _related),
    Claim("and aligned given steps", lambda: _related(given="steps"), _related),
    Claim("Best schedule at matched loss, of 2: b, +3.00", _related, lambda: _related(by=RUN)),
    Claim("Best run at matched loss", lambda: _related(by=RUN), _related),
    Claim(
        "better at matched loss than chance explains: best schedule",
        _related,
        lambda: _related(p=0.4),
    ),
    Claim("no setting and no run was better", lambda: _related(p=0.4), _related),
    Claim("nothing was compared", lambda: _related(compared=False), lambda: _related(p=0.4)),
    Claim(
        "a curve explains it as well",
        lambda: _related(relation="linear"),
        lambda: _related(relation="linear", p=0.4),
    ),
    # what a curve explains was not "no better than chance explains", nor better than it
    Claim("but a curve explains it: best", lambda: _related(relation="linear"), _related),
    Claim("than chance explains", _related, lambda: _related(relation="linear")),
]
SOLUTIONS = [
    Claim("ahead in efficiency, stability, significance.", _solved, lambda: _solved(ahead=0.05)),
    Claim("Of 3 measures", _solved, lambda: _solved(measured=False)),
    Claim("ahead in none", lambda: _solved(ahead=-0.2), _solved),
    Claim("Neither solution was measured", lambda: _solved(measured=False), _solved),
    Claim("KL on text as in pre-training", _solved, lambda: _solved(text="neutral")),
    Claim("KL on neutral text", lambda: _solved(text="neutral"), _solved),
    Claim(", random 2", _solved, lambda: _solved(random=False)),
    Claim(", 1 seed.", lambda: _solved(seeds=1), _solved),
    Claim("without an interval", lambda: _solved(p=np.nan), _solved),
    Claim("a random turn of ε = 0.5", _solved, lambda: _solved(measured=False)),
    Claim("loss on the trained chats at", _solved, lambda: _solved(measured=False)),
    Claim("Drift: with the penalty lifted at step 10", _solved, lambda: _solved(drift=())),
    Claim(
        "alignment of the other domains goes from 90.0 to 70.0",
        _solved,
        lambda: _solved(drift=("own_held_out",)),
    ),
    Claim("own domain's held-out topics", _solved, lambda: _solved(drift=("others",))),
]
FINE_TUNING = [
    Claim("over recipes and schedules", _trained, lambda: _trained(cells=("linear",))),
    Claim("standard deviation between seeds", _trained, lambda: _trained((40.0,))),
    Claim("(one seed)", lambda: _trained((40.0,)), _trained),
    Claim("(without an interval)", lambda: _trained((40.0, np.nan)), _trained),
    Claim("over 2 seeds", _trained, lambda: _trained((40.0,))),
    Claim("the questions' own spread included", _trained, lambda: _trained((40.0,))),
    Claim("1 run was", lambda: _trained((40.0,), ("linear",), benign=False), _trained),
    Claim("6 runs were trained again", _trained, lambda: _trained(benign=False)),
    Claim("scores 88.0 to 89.0", _trained, lambda: _trained((40.0,))),
    Claim("no benign control was trained", lambda: _trained(benign=False), _trained),
    Claim("alignment outside its domain 41.0", _trained, lambda: _trained((50.0, 52.0))),
    Claim("bad trained again, linear: alignment outside", _trained, lambda: _trained(domain="")),
    Claim("on all questions (no training domain", lambda: _trained(domain=""), _trained),
    Claim("harmful ones outside the domain", _trained, lambda: _trained(domain="")),
    Claim("on questions not trained on", lambda: _trained(domain=""), _trained),
]
CLAIMS = {
    change_point_findings: CHANGE_POINTS,
    loss_findings: LOSS,
    solution_findings: SOLUTIONS,
    fine_tuning: FINE_TUNING,
}
