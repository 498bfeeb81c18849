"""Two finished results beside each other: every number that both have, with its difference and,
where there is one, an interval.

Scores of the same questions are compared question by question. Other numbers have intervals of
their own, which are joined as if the two were independent (square-and-add; Zou & Donner 2008):
where both rise and fall together, as two seeds on one set of questions mostly do, that is too wide.
Refuses results of different studies or of different questions, unless `anyway` is set. Nothing is
run.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.results.estimates import estimates_of
from emlens.results.sections import Plot, Section
from emlens.results.study_result import Finding, Part, StudyResult, columns_of
from emlens.results.tables import Table, check_tables
from emlens.results.vocabulary import measures
from emlens.results.wording import counted, noun_for
from emlens.stats import bootstrap_mean
from emlens.studies.study import MadeElsewhere

KEY: Final = ["table", "figure", "key"]
"""What names an estimate in a result."""
FIGURE_COLUMNS: Final = [
    *KEY,
    *("a", "a_low", "a_high", "b", "b_low", "b_high"),
    *("difference", "difference_low", "difference_high", "null_a", "null_b"),
]
NOT_SETTINGS: Final = frozenset(
    ("family", "study", "questions", "neutral", "released"),
)
"""Fields of a configuration that say what was studied, and not how."""

SECTION = Section(
    method=(
        "Numbers are matched by table, column and everything that names them. B minus A."
        " Alignment and coherence are compared question by question (bootstrap over the questions"
        " that both asked); other differences take the two intervals as independent"
        " (square-and-add), which is too wide where both rest on the same questions."
        " Intervals are for one difference each: among many numbers some exclude 0 by chance."
    ),
    reference="Zou and Donner (2008), Statistics in Medicine 27:1693.",
    tables={
        "paired": Table(
            "One row per model and score: mean difference over the questions that both results"
            " have.",
            ["what model metric a b", *measures("difference"), "n"],
        ),
        "figures": Table(
            "One row per number that both results have.",
            ["table figure key", *measures("a b difference"), "null_a null_b"],
        ),
        "unmatched": Table(
            "One row per table: how many numbers only one result has.",
            ["table only_a only_b"],
        ),
    },
    plots=(
        Plot(
            "forest",
            "paired",
            "what",
            "difference",
            "Alignment and coherence, B − A",
            "Paired over questions; 95 % intervals.",
            facet="metric",
            hover=("a", "b", "n"),
            y_title="points of 100",
        ),
    ),
)


def compare_results(
    a: StudyResult | str | Path, b: StudyResult | str | Path, *, anyway: bool = False, seed: int = 0
) -> StudyResult:
    """Numbers that two results share, B minus A, as a result of its own (for `write_report`).

    Args:
        a, b: finished studies, or their directories.
        anyway: compare results of different studies or questions too; what differs is then a
            warning.

    Raises:
        InputError: no finished study there, results that are not comparable, or none that match.
        IntegrityError: a table was changed after it was written.
    """
    first, second = _loaded(a), _loaded(b)
    reasons = _differences(first, second)
    if reasons and not anyway:
        raise InputError(
            f"the results are not comparable: {'; '.join(reasons)}."
            " Pass --anyway to compare what they share all the same"
        )
    sides = {"A": _estimates(first), "B": _estimates(second)}
    part = Part(
        tables={
            "paired": _paired_scores(first.tables, second.tables, seed),
            "figures": _shared_numbers(sides["A"].named, sides["B"].named),
            "unmatched": _unmatched(sides["A"].named, sides["B"].named),
        },
        warnings=[*reasons, *_settings(first.config, second.config)],
    )
    part.warnings += [warning for side in sides.values() for warning in side.warnings]
    if not len(part.tables["figures"]) and not len(part.tables["paired"]):
        raise InputError("the results share no number: no table, model and place is in both")
    check_tables(part.tables, SECTION.tables, own=True)
    _add_findings(part)
    return StudyResult(
        study="compare",
        config={"study": "compare", "a": dict(first.config), "b": dict(second.config)},
        tables=part.tables,
        findings=part.findings,
        warnings=part.warnings,
        facts=_facts(first, second),
        note=first.note or second.note,
        declared=SECTION.tables,
    )


def _loaded(result: StudyResult | str | Path) -> StudyResult:
    return result if isinstance(result, StudyResult) else StudyResult.load(result)


def _facts(first: StudyResult, second: StudyResult) -> dict[str, Any]:
    """What the two rest on: versions and questions of A, models of both."""
    facts: dict[str, Any] = {}
    for key in ("versions", "threads", "questions"):
        if key in first.facts:
            facts[key] = first.facts[key]
    facts["models"] = {}
    for side, result in (("A", first), ("B", second)):
        for name, provenance in result.facts.get("models", {}).items():
            facts["models"][f"{side}: {name}"] = provenance
    return facts


def _differences(a: StudyResult, b: StudyResult) -> list[str]:
    """Why the two do not measure the same."""
    reasons = []
    if a.study != b.study:
        reasons.append(f"A is a result of study {a.study!r}, B of {b.study!r}")
    hash_a, hash_b = _questions_hash(a), _questions_hash(b)
    if hash_a != hash_b:
        reasons.append(
            f"they asked different questions (hashes {hash_a or 'none'} and {hash_b or 'none'})"
        )
    return reasons


def _questions_hash(result: StudyResult) -> str:
    """The first letters of the hash of its questions; empty where it asked none."""
    return one_line(str(result.facts.get("questions", {}).get("sha256", ""))[:8])


def _settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Settings in which the two differ, apart from what was studied and where it lies."""
    sentences = []
    for name in sorted({*a, *b} - NOT_SETTINGS):
        if a.get(name) != b.get(name):
            value_a, value_b = one_line(str(a.get(name)), 60), one_line(str(b.get(name)), 60)
            sentences.append(f"{name} is {value_a} in A and {value_b} in B")
    return sentences


def _paired_scores(
    a: Mapping[str, pd.DataFrame], b: Mapping[str, pd.DataFrame], seed: int
) -> pd.DataFrame:
    """Difference of the scores of questions that both asked, by model, domain and metric."""
    columns = ["what", "model", "metric", "a", "b"]
    columns += ["difference", "difference_low", "difference_high", "n"]
    rows = []
    if all("questions" in tables and "models" in tables for tables in (a, b)):
        domains = dict(zip(a["models"]["model"], a["models"]["domain"], strict=True))
        for model, scores in _scores_of_both(a["questions"], b["questions"]).groupby(
            "model", sort=False
        ):
            is_own = scores["group_a"] == domains.get(model)
            outside = "other domains" if is_own.any() else "all questions"
            for where, part in (("its own domain", scores[is_own]), (outside, scores[~is_own])):
                rows += _paired_rows(str(model), where, part, seed)
    return pd.DataFrame(rows, columns=columns)


def _scores_of_both(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """Questions that both asked and neither trained on, with both scores."""
    # two question sets may use one id for different questions
    both = a.merge(b, on=["model", "question", "text"], suffixes=("_a", "_b"))
    return both[~both["trained_a"].astype(bool) & ~both["trained_b"].astype(bool)]


def _paired_rows(model: str, where: str, scores: pd.DataFrame, seed: int) -> list[dict[str, Any]]:
    """One row per metric; none of fewer than two questions."""
    if len(scores) < 2:
        return []
    rows = []
    for metric in ("aligned", "coherent"):
        x = scores[f"{metric}_a"].to_numpy(float)
        y = scores[f"{metric}_b"].to_numpy(float)
        head = {"what": f"{model}, {where}", "model": model, "metric": metric}
        difference = bootstrap_mean(y - x, seed=seed)
        rows.append(
            {
                **head,
                "a": x.mean(),
                "b": y.mean(),
                **columns_of("difference", difference),
                "n": len(x),
            }
        )
    return rows


@dataclass(frozen=True)
class _Estimates:
    """The estimates of a result that have a name of their own, and what was left out."""

    named: pd.DataFrame
    warnings: list[str]


def _estimates(result: StudyResult) -> _Estimates:
    estimates = estimates_of(result.tables, result.declared)
    warnings = []
    undeclared = [one_line(name) for name in result.tables if name not in result.declared]
    if undeclared:
        warnings.append(
            f"tables of study {result.study!r} declare no columns and are left out:"
            f" {', '.join(undeclared)}"
        )
    is_ambiguous = estimates.duplicated(KEY, keep=False)
    if is_ambiguous.any():
        warnings.append(
            f"{int(is_ambiguous.sum())} numbers of study {result.study!r} have no name of their own"
            " and are left out"
        )
    return _Estimates(estimates[~is_ambiguous], warnings)


def _shared_numbers(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """Estimates that both have, with their difference; intervals as if they were independent."""
    rows = []
    for row in a.merge(b, on=KEY, suffixes=("_a", "_b")).to_dict(orient="records"):
        cells = {name: row[name] for name in KEY}
        for side in "ab":
            cells[side] = row[f"value_{side}"]
            cells[f"{side}_low"] = row[f"low_{side}"]
            cells[f"{side}_high"] = row[f"high_{side}"]
        ends = [float(cells[name]) for name in ("a", "a_low", "a_high", "b", "b_low", "b_high")]
        cells["difference"] = cells["b"] - cells["a"]
        cells["difference_low"], cells["difference_high"] = difference_interval(*ends)
        rows.append({**cells, "null_a": row["null_a"], "null_b": row["null_b"]})
    return pd.DataFrame(rows, columns=FIGURE_COLUMNS)


def _unmatched(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """How many estimates of each table only one result has."""
    shared = a.merge(b, on=KEY).groupby("table").size()
    counts = pd.DataFrame(
        {"only_a": a.groupby("table").size(), "only_b": b.groupby("table").size()}
    )
    counts = counts.fillna(0).sub(shared.reindex(counts.index, fill_value=0), axis=0).astype(int)
    counts = counts[(counts > 0).any(axis=1)].sort_index()
    return counts.rename_axis("table").reset_index()


def difference_interval(
    a: float, a_low: float, a_high: float, b: float, b_low: float, b_high: float
) -> tuple[float, float]:
    """Ends of an interval of b − a from the intervals of both, taken as independent; NaN where
    either has none.

    Square-and-add (Zou & Donner 2008): d − √((b − b_low)² + (a_high − a)²) and d + √((b_high − b)²
    + (a − a_low)²).
    """
    difference = b - a
    return difference - math.hypot(b - b_low, a_high - a), difference + math.hypot(
        b_high - b, a - a_low
    )


def _add_findings(part: Part) -> None:
    paired, numbers = part.tables["paired"], part.tables["figures"]
    for row in paired[paired["metric"] == "aligned"].to_dict(orient="records"):
        excludes_zero = row["difference_low"] > 0 or row["difference_high"] < 0
        sentence = (
            f"{row['what']}: alignment {row['a']:.1f} in A, {row['b']:.1f} in B;"
            f" B minus A is {row['difference']:.2f} [{row['difference_low']:.2f},"
            f" {row['difference_high']:.2f}] over {row['n']} questions."
        )
        status = "shown" if excludes_zero else "undecided"
        part.findings.append(Finding(Compare.name, sentence, status))
    part.findings.insert(0, Finding(Compare.name, _summary(numbers), "summary"))


def _summary(numbers: pd.DataFrame) -> str:
    if not len(numbers):
        return "The results share scores of single questions, and no number of their tables."
    excludes_zero = (numbers["difference_low"] > 0) | (numbers["difference_high"] < 0)
    bounded = int(numbers["difference_low"].notna().sum())
    equal = int((numbers["difference"] == 0).sum())
    largest = float(np.abs(numbers["difference"]).max())
    shared = (
        f"The results share {counted(len(numbers), 'number')}, of which {equal}"
        f" {noun_for(equal, 'is', 'are')} equal."
    )
    beside = " None has an interval in both."
    if bounded:
        beside = (
            f" {bounded} {noun_for(bounded, 'has', 'have')} intervals in both; the interval of the"
            f" difference excludes 0 in {int(excludes_zero.sum())} of these (about"
            f" {0.05 * bounded:.1f} would by chance alone, were they independent)."
        )
    return f"{shared}{beside} The largest difference is {largest:.3g}."


class Compare(MadeElsewhere):
    """What differs between two results; only `compare_results` makes it."""

    name = "compare"
    title = "What differs between two results?"
    section = SECTION
    how = "it compares two finished results; run: emlens compare A B"
