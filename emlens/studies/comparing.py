"""Two finished results beside each other: every figure that both have, with its difference and,
where there is one, an interval.

Scores of the same questions are compared question by question. Other figures have intervals of
their own, which are joined as if the two were independent (square-and-add; Zou & Donner 2008):
where both rise and fall together, as two seeds on one set of questions mostly do, that is too wide.
Refuses results of different studies or of different questions, unless told otherwise. Nothing is
run.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.results.estimates import figures_of
from emlens.results.sections import Plot, Section
from emlens.results.study_result import Finding, Part, StudyResult, columns_of
from emlens.stats import bootstrap_mean
from emlens.studies.study import Study, StudyContext

SECTION = Section(
    method=(
        "Figures are matched by table, column and everything that names them. B minus A."
        " Alignment and coherence are compared question by question (bootstrap over the questions"
        " that both asked); other differences take the two intervals as independent"
        " (square-and-add), which is too wide where both rest on the same questions."
        " Intervals are for one difference each: among many figures some exclude 0 by chance."
    ),
    reference="Zou and Donner (2008), Statistics in Medicine 27:1693.",
    tables={
        "paired": (
            "One row a model and score: mean difference over the questions that both results have."
        ),
        "figures": "One row a figure that both results have.",
        "unmatched": "One row a table: how many figures only one result has.",
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
    """Figures that two results share, B minus A, as a result of its own (for `write_report`).

    Args:
        a, b: results, or directories in which a study finished.
        anyway: compare results of different studies or questions too; what differs is then a
            warning.

    Raises:
        InputError: no finished study there, results that are not comparable, or none that match.
        IntegrityError: a table was changed after it was written.
    """
    first, second = (
        found if isinstance(found, StudyResult) else StudyResult.load(found) for found in (a, b)
    )
    reasons = _differences(first, second)
    if reasons and not anyway:
        raise InputError(
            f"the results are not comparable: {'; '.join(reasons)}."
            " Pass --anyway to compare what they share all the same"
        )
    part = Part(warnings=[*reasons, *_settings(first.config, second.config)])
    part.tables = {
        "paired": _paired(first.tables, second.tables, seed),
        **_figures(first, second, part),
    }
    if not len(part.tables["figures"]) and not len(part.tables["paired"]):
        raise InputError("the results share no figure: no table, model and place is in both")
    _findings(part)
    config = {"study": "compare", "a": dict(first.config), "b": dict(second.config)}
    facts = {
        key: first.facts[key] for key in ("versions", "threads", "questions") if key in first.facts
    }
    facts["models"] = {
        f"{side}: {name}": found
        for side, result in (("A", first), ("B", second))
        for name, found in result.facts.get("models", {}).items()
    }
    return StudyResult(
        "compare",
        config,
        part.tables,
        part.findings,
        part.warnings,
        facts,
        first.note or second.note,
    )


def _differences(a: StudyResult, b: StudyResult) -> list[str]:
    """Why the two do not measure the same."""
    reasons = []
    if a.study != b.study:
        reasons.append(f"A is a result of study {a.study!r}, B of {b.study!r}")
    asked = [
        one_line(str(result.facts.get("questions", {}).get("sha256", ""))[:8]) for result in (a, b)
    ]
    if asked[0] != asked[1]:
        reasons.append(
            f"they asked different questions (hashes {asked[0] or 'none'} and {asked[1] or 'none'})"
        )
    return reasons


def _settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Settings in which the two differ, apart from what was studied and where it lies."""
    changed = [
        name
        for name in sorted({*a, *b} - {"family", "study", "questions", "neutral", "released"})
        if a.get(name) != b.get(name)
    ]
    return [
        f"{name} is {one_line(str(a.get(name)), 60)} in A and {one_line(str(b.get(name)), 60)} in B"
        for name in changed
    ]


def _paired(
    a: Mapping[str, pd.DataFrame], b: Mapping[str, pd.DataFrame], seed: int
) -> pd.DataFrame:
    columns = [
        "what",
        "model",
        "metric",
        "a",
        "b",
        "difference",
        "difference_low",
        "difference_high",
        "n",
    ]
    rows = []
    if all("questions" in tables and "models" in tables for tables in (a, b)):
        domains = dict(zip(a["models"]["model"], a["models"]["domain"], strict=True))
        # two question sets may use one id for different questions
        keys = ["model", "question", "text"]
        both = a["questions"].merge(b["questions"], on=keys, suffixes=("_a", "_b"))
        both = both[~both["trained_a"].astype(bool) & ~both["trained_b"].astype(bool)]
        for model, mine in both.groupby("model", sort=False):
            own = mine["group_a"] == domains.get(model)
            for where, part in (
                ("its own domain", mine[own]),
                ("other domains" if own.any() else "all questions", mine[~own]),
            ):
                for metric in ("aligned", "coherent"):
                    x, y = part[f"{metric}_a"].to_numpy(float), part[f"{metric}_b"].to_numpy(float)
                    if len(x) < 2:
                        continue
                    found = bootstrap_mean(y - x, seed=seed)
                    head = {
                        "what": f"{model}, {where}",
                        "model": model,
                        "metric": metric,
                        "a": x.mean(),
                        "b": y.mean(),
                    }
                    rows.append({**head, **columns_of("difference", found), "n": len(x)})
    return pd.DataFrame(rows, columns=columns)


def _figures(a: StudyResult, b: StudyResult, part: Part) -> dict[str, pd.DataFrame]:
    sides: list[pd.DataFrame] = []
    counts: dict[int, Any] = {}
    for result in (a, b):
        found = figures_of(result.tables)
        names = ["table", "figure", "key"]
        twice = found.duplicated(names, keep=False)
        if twice.any():
            part.warnings.append(
                f"{int(twice.sum())} figures of study {result.study!r} have no name of their own"
                " and are left out"
            )
        sides.append(found[~twice])
        counts[len(counts)] = found[~twice].groupby("table").size()
    both = sides[0].merge(sides[1], on=["table", "figure", "key"], suffixes=("_a", "_b"))
    matched = both.groupby("table").size()
    rows = []
    for row in both.to_dict(orient="records"):
        low, high = difference_interval(
            *(float(row[f"{c}_{side}"]) for side in "ab" for c in ("value", "low", "high"))
        )
        rows.append(
            {
                **{name: row[name] for name in ("table", "figure", "key")},
                **{
                    f"{side}{end}": row[f"{column}_{side}"]
                    for side in "ab"
                    for column, end in (("value", ""), ("low", "_low"), ("high", "_high"))
                },
                "difference": row["value_b"] - row["value_a"],
                "difference_low": low,
                "difference_high": high,
                "null_a": row["null_a"],
                "null_b": row["null_b"],
            }
        )
    names = sorted({*counts[0].index, *counts[1].index})
    unmatched = [
        {
            "table": name,
            "only_a": int(counts[0].get(name, 0) - matched.get(name, 0)),
            "only_b": int(counts[1].get(name, 0) - matched.get(name, 0)),
        }
        for name in names
    ]
    columns = [
        "table",
        "figure",
        "key",
        "a",
        "a_low",
        "a_high",
        "b",
        "b_low",
        "b_high",
        "difference",
        "difference_low",
        "difference_high",
        "null_a",
        "null_b",
    ]
    return {
        "figures": pd.DataFrame(rows, columns=columns),
        "unmatched": pd.DataFrame(
            [row for row in unmatched if row["only_a"] or row["only_b"]],
            columns=["table", "only_a", "only_b"],
        ),
    }


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


def _findings(part: Part) -> None:
    paired, figures = part.tables["paired"], part.tables["figures"]
    for row in paired[paired["metric"] == "aligned"].to_dict(orient="records"):
        apart = row["difference_low"] > 0 or row["difference_high"] < 0
        part.findings.append(
            Finding(
                "compare",
                f"{row['what']}: alignment {row['a']:.1f} in A, {row['b']:.1f} in B;"
                f" B minus A is {row['difference']:.2f} [{row['difference_low']:.2f},"
                f" {row['difference_high']:.2f}] over {row['n']} questions.",
                "shown" if apart else "undecided",
            )
        )
    clear = int(((figures["difference_low"] > 0) | (figures["difference_high"] < 0)).sum())
    bounded = int(figures["difference_low"].notna().sum())
    same = int((figures["difference"] == 0).sum())
    largest = float(np.abs(figures["difference"]).max()) if len(figures) else 0.0
    sentence = (
        f"The results share {len(figures)} figures, of which {same} are equal and {bounded} have"
        f" intervals in both; the difference excludes 0 in {clear} of these (about"
        f" {0.05 * bounded:.0f} would by chance alone, were they independent)."
        f" The largest difference is {largest:.3g}."
    )
    part.findings.insert(0, Finding("compare", sentence, "summary"))


class Compare(Study):
    """What differs between two results; only `compare_results` makes it."""

    name = "compare"
    title = "What differs between two results?"
    section = SECTION
    needs_models = False

    def left_out(self, context: StudyContext) -> str:
        return "it compares two finished results; run: emlens compare A B"

    def run(self, context: StudyContext) -> Part:
        raise InputError(self.left_out(context))
