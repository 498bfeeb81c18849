"""What the tables of `loss_alignment` say, in sentences: the correlations, the best value of each
setting at matched loss, and a summary.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from emlens.foundation.files import one_line
from emlens.results.study_result import Finding, Part, p_text
from emlens.studies.loss_relations import RUN
from emlens.studies.verdicts import verdict

STUDY = "loss_alignment"
LEVEL = 0.05
COMPARED = " at matched loss, of "
"""In every sentence about the best value of a setting."""


def add_correlation_findings(part: Part, loss: str, metric: str) -> None:
    """One finding per measure of correlation that is defined."""
    table = part.tables["loss_correlations"]
    for _, row in table[_is_of(table, loss, metric)].dropna(subset=["value"]).iterrows():
        given = f" given {row['given']}" if row["given"] else ""
        sentence = (
            f"{row['measure']} correlation of {loss} and {metric}{given}:"
            f" {row['value']:.2f} [{row['value_low']:.2f}, {row['value_high']:.2f}],"
            f" permutation p {p_text(row['p'])}, {row['n']} runs."
        )
        interval_excludes_zero = row["value_low"] > 0 or row["value_high"] < 0
        status = verdict(shown=interval_excludes_zero and row["p"] < LEVEL)
        part.findings.append(Finding(STUDY, sentence, status))


def add_matched_findings(
    part: Part, settings: Sequence[str], metric: str, relations: Sequence[str]
) -> None:
    """One finding per setting, and one for single runs, under the first relation that was fitted.

    Where the isotonic relation was among `relations` but could not be tested, what lies above the
    straight line may lie on a curve, and is not shown.
    """
    gaps = part.tables["loss_matched"]
    for name in [*settings, RUN]:
        rows = gaps[gaps["by"] == name].dropna(subset=["statistic"])
        if not len(rows):
            continue
        rows = rows[rows["relation"] == rows["relation"].iloc[0]]
        may_be_curved = "isotonic" in relations and "isotonic" not in set(rows["relation"])
        part.findings.append(_matched_finding(rows, name, metric, may_be_curved))


def _matched_finding(rows: pd.DataFrame, setting: str, metric: str, may_be_curved: bool) -> Finding:
    """The value of a setting that lies highest above the relation.

    Args:
        may_be_curved: a relation that only does not fall fits every run, so that a curve explains
            what lies above a straight line.
    """
    best = rows.iloc[int(np.argmax(rows["statistic"].to_numpy()))]
    is_significant = bool(best["p_all"] < LEVEL)
    what = "run" if setting == RUN else setting.replace("_", " ")
    sentence = (
        f"Best {what}{COMPARED}{len(rows)}: {one_line(str(best['group']), 80)},"
        f" {best['gap']:+.2f} [{best['gap_low']:.2f}, {best['gap_high']:.2f}] in {metric} above the"
        f" relation ({best['null_q95']:.2f} is what a search finds by chance in one of twenty"
        " cases);"
        f" corrected p {p_text(best['p_all'])}"
    )
    if is_significant and may_be_curved:
        sentence += (
            "; that is about a straight line, and a relation that only does not fall leaves no"
            " scatter: a curve explains it as well"
        )
    status = verdict(shown=is_significant and not may_be_curved, not_shown=not is_significant)
    return Finding(STUDY, f"{sentence}.", status)


def add_summary(part: Part, loss: str, metric: str, runs: int) -> None:
    """How loss and score correlate, and which setting is better at matched loss."""
    table = part.tables["loss_correlations"]
    plain = table[_is_of(table, loss, metric)].iloc[0]
    correlation = "have no correlation that is defined"
    if not np.isnan(plain["value"]):
        correlation = (
            f"correlate by {plain['value']:.2f} [{plain['value_low']:.2f},"
            f" {plain['value_high']:.2f}] ({plain['measure']})"
        )
    sentence = f"Over {runs} runs, {loss} and {metric} {correlation}; {_better(part.findings)}."
    part.findings.insert(0, Finding(STUDY, sentence, "summary"))


def _better(findings: Sequence[Finding]) -> str:
    """Which setting is better at matched loss, in one clause."""
    compared = [finding for finding in findings if COMPARED in finding.sentence]
    if not compared:
        return "nothing was compared at matched loss"
    by_status: dict[str, list[str]] = {"shown": [], "undecided": [], "not shown": []}
    for finding in compared:
        by_status[finding.status].append(finding.sentence.split(":")[0].lower())
    said = []
    if by_status["shown"]:
        best = "; ".join(by_status["shown"])
        said.append(f"better at matched loss than chance explains: {best}")
    if by_status["undecided"]:
        curved = "; ".join(by_status["undecided"])
        said.append(f"better than chance about a straight line, but a curve explains it: {curved}")
    if not said:
        return "no setting and no run was better at matched loss than chance explains"
    return "; ".join(said)


def _is_of(table: pd.DataFrame, loss: str, metric: str) -> "pd.Series[bool]":
    return (table["loss_name"] == loss) & (table["metric"] == metric)
