"""What the tables of `general_vs_narrow` say, in sentences: one per measure, at the cell that the
sentence names, and one per group of questions on drift.
"""

from dataclasses import dataclass
from typing import Final

import pandas as pd

from emlens.results.study_result import Finding, Part, p_text
from emlens.results.wording import counted
from emlens.studies.solution_measures import GENERAL, NARROW, RANDOM
from emlens.studies.solution_pairs import KEPT, LIFTED
from emlens.studies.verdicts import verdict

STUDY: Final = "general_vs_narrow"
NEUTRAL: Final = "neutral"
DOCUMENTS: Final = "documents"
TEXTS: Final = {NEUTRAL: "neutral text", DOCUMENTS: "text as in pre-training"}


@dataclass(frozen=True)
class _Measure:
    """A measure and the rows of its table that the finding is about.

    Args:
        sign: +1 where the general solution is ahead if its value is lower, −1 if it is higher.
    """

    name: str
    rows: pd.DataFrame
    words: str
    sign: int


def add_findings(part: Part) -> None:
    """Add the findings of all tables that there are, after a summary."""
    measures = [measure for measure in _measures(part.tables) if len(measure.rows)]
    findings = {measure.name: _measure_finding(measure) for measure in measures}
    ahead = [name for name, finding in findings.items() if finding.status == "shown"]
    summary = (
        f"Of {counted(len(findings), 'measure')}, the general solution is clearly"
        f" ahead in {', '.join(ahead) or 'none'}."
    )
    if not findings:
        summary = "Neither solution was measured on what it was trained on."
    part.findings.append(Finding(STUDY, summary, "summary"))
    part.findings += findings.values()
    if "drift" in part.tables:
        part.findings += _drift_findings(part.tables["drift"])


def _measures(tables: dict[str, pd.DataFrame]) -> list[_Measure]:
    """The measures that were taken, each at its cell."""
    efficiency, stability = tables["efficiency"], tables["stability"]
    efficiency = efficiency[(efficiency["data"] == "trained") & (efficiency["share"] == 1.0)]
    stability = stability[stability["data"] == "trained"]
    epsilon = stability["epsilon"].max()
    measures = [
        _Measure(
            "efficiency",
            efficiency,
            "Efficiency: loss on the trained chats at the general solution's norm",
            +1,
        ),
        _Measure(
            "stability",
            stability[stability["epsilon"] == epsilon],
            f"Stability: percentage of the gain lost to a random turn of ε = {epsilon:g}",
            +1,
        ),
    ]
    if "significance" in tables:
        significance = tables["significance"]
        text = DOCUMENTS if DOCUMENTS in set(significance["data"]) else NEUTRAL
        measures.append(
            _Measure(
                "significance",
                significance[(significance["data"] == text) & (significance["share"] == 1.0)],
                f"Significance: KL on {TEXTS[text]} at the general solution's norm",
                -1,
            )
        )
    return measures


def _measure_finding(measure: _Measure) -> Finding:
    row = measure.rows.iloc[0]
    random = f", random {row[RANDOM]:.3g}" if RANDOM in measure.rows else ""
    sentence = (
        f"{measure.words}: general {row[GENERAL]:.3g}, narrow {row[NARROW]:.3g}{random};"
        f" narrow − general {_difference(row)}, {counted(int(row['seeds']), 'seed')}."
    )
    is_ahead = measure.sign * row["difference"] > 0
    is_clear = bool(row["difference_low"] > 0 or row["difference_high"] < 0)
    status = verdict(shown=is_ahead and is_clear, not_shown=is_clear)
    return Finding(STUDY, sentence, status)


def _drift_findings(table: pd.DataFrame) -> list[Finding]:
    """How alignment changes once the penalty is lifted, by the end of the run."""
    first, last = table["step"].min(), table["step"].max()
    at_end = table[table["step"] == last]
    groups = {"others": "the other domains", "own_held_out": "the own domain's held-out topics"}
    findings = []
    for measure, words in groups.items():
        for _, row in at_end[at_end["measure"] == measure].iterrows():
            sentence = (
                f"Drift: with the penalty lifted at step {first:.0f},"
                f" alignment of {words} goes from {row['when_lifted']:.1f} to"
                f" {row[LIFTED]:.1f} of 100 by step {last:.0f}:"
                f" {_difference(row, 'since_lifted', 'since_lifted_p')};"
                f" with it kept it is {row[KEPT]:.1f} then, lifted − kept {_difference(row)}."
            )
            status = verdict(
                shown=row["since_lifted_high"] < 0, not_shown=row["since_lifted_low"] > 0
            )
            findings.append(Finding(STUDY, sentence, status))
    return findings


def _difference(row: pd.Series, name: str = "difference", p: str = "p") -> str:
    """A paired difference with its interval and p, where it has them."""
    if pd.isna(row[p]):
        return f"{row[name]:.3g}, without an interval"
    return (
        f"{row[name]:.3g} [{row[f'{name}_low']:.3g}, {row[f'{name}_high']:.3g}],"
        f" paired p {p_text(row[p])}"
    )
