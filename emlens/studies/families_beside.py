"""Several families side by side: the same study of each in a folder of its own, and their numbers
in one result.

A configuration holds `families` instead of `family`: by name, what differs from the fields beside
it. Each family's own result and page stay below `families/<name>`; nothing is pooled over questions
or models, only numbers are averaged, each beside its null, with families as units.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from emlens.data.configuration import Origin, read_file
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line, safe_name
from emlens.results.sections import Plot, Section
from emlens.results.study_result import Part, StudyResult
from emlens.results.tables import Table, check_tables
from emlens.studies.config import StudyConfig, read_config
from emlens.studies.headlines import (
    HEADLINE,
    SIDE_BY_SIDE,
    averaged,
    findings_of,
    headlines,
    side_by_side,
)
from emlens.studies.study import Study, StudyContext

SECTION = Section(
    method=(
        "The same study was run on each family. A number is first averaged over the fine-tunes of"
        " one kind in a family, then over families; the interval is a t interval over families,"
        " and the standard deviation and range show how far they lie apart."
        " Whether a number lies beyond its null is read from the difference of both in each family,"
        " with a t interval of its own. Two or three families say little."
    ),
    reference="Every family's own page lies below families/.",
    tables={
        "family_numbers": Table(
            "One row per family, fine-tune and number, with its own interval and its null.",
            ["family", *HEADLINE, "kind"],
        ),
        "over_families": Table(
            "One row per number: mean over families with t interval, spread, range, mean null;"
            " beyond: value − null.",
            SIDE_BY_SIDE,
        ),
    },
    plots=(
        Plot(
            "forest",
            "family_numbers",
            "family",
            "value",
            "Each family's numbers",
            "One mark a fine-tune; dotted: its null.",
            colour="model",
            facet="number",
            null="null",
            hover=("null_is",),
        ),
        Plot(
            "forest",
            "over_families",
            "number",
            "mean",
            "Over families",
            "95 % t intervals over families.",
            null="null",
            hover=("beyond", "beyond_low", "beyond_high", "sd", "n"),
        ),
    ),
)


def read_members(source: Any) -> dict[str, StudyConfig] | None:
    """The configuration of each family, or None where the source has no `families`.

    Raises:
        InputError: both `family` and `families`, fewer than two, names that are no folder's, or a
            member that cannot be used.
    """
    file = str(source) if isinstance(source, str | Path) and Path(source).is_file() else None
    record = read_file(file) if file else source
    if not isinstance(record, Mapping) or "families" not in record:
        return None
    where = Origin(file).place(("families",)) if file else "config: "
    members = record["families"]
    if not isinstance(members, Mapping) or len(members) < 2 or "family" in record:
        raise InputError(
            f"{where}families must map at least two names to what each family differs in,"
            " and stands instead of family"
        )
    shared = {name: value for name, value in record.items() if name != "families"}
    found = {}
    for name, own in members.items():
        where = Origin(file).place(("families", str(name))) if file else "config: "
        if not isinstance(own, Mapping) or "study" in own or safe_name(str(name)) != str(name):
            raise InputError(
                f"{where}family {one_line(str(name))!r} must be named as a folder can be and hold"
                " fields, without study"
            )
        try:
            found[str(name)] = read_config(
                {**shared, **own},
                Origin(file, ("families", str(name)), frozenset(own)) if file else None,
            )
        except InputError as error:
            raise InputError(
                str(error)
                if file
                else f"{where}family {one_line(str(name))!r}: {str(error).removeprefix('config: ')}"
            ) from None
    return found


def gathered(results: Mapping[str, StudyResult]) -> StudyResult:
    """One result from those of several families."""
    numbers = pd.concat(
        [headlines(result.tables).assign(family=name) for name, result in results.items()],
        ignore_index=True,
    )
    kinds = {name: _kinds(result) for name, result in results.items()}
    numbers["kind"] = [
        kinds[family].get(model, "harmful")
        for family, model in zip(numbers["family"], numbers["model"], strict=True)
    ]
    each = averaged(numbers, ["kind", "family"])
    table = side_by_side(each.assign(number=each["number"] + " (" + each["kind"] + ")"))
    findings = findings_of(table, "families_beside", "families", list(table["number"]))
    warnings = [
        f"{name}: {warning}" for name, result in results.items() for warning in result.warnings
    ]
    if len(results) < 4:
        warnings.insert(0, f"{len(results)} families: an interval over so few says little")
    first = next(iter(results.values()))
    facts = {
        **first.facts,
        "models": {
            f"{name}: {key}": value
            for name, result in results.items()
            for key, value in result.facts.get("models", {}).items()
        },
    }
    config = {
        "study": first.study,
        "families": {name: dict(result.config) for name, result in results.items()},
    }
    notes = list(dict.fromkeys(result.note for result in results.values() if result.note))
    tables = {
        "family_numbers": numbers[["family", *(c for c in numbers.columns if c != "family")]],
        "over_families": table,
    }
    check_tables(tables, SECTION.tables, own=True)
    return StudyResult(
        study="families_beside",
        config=config,
        tables=tables,
        findings=findings,
        warnings=warnings,
        facts=facts,
        note=" ".join(notes),
        declared=SECTION.tables,
    )


def _kinds(result: StudyResult) -> dict[str, str]:
    found: dict[str, str] = {}
    for table, column in (("models", "model"), ("trained_runs", "run")):
        if table in result.tables:
            found |= dict(
                zip(result.tables[table][column], result.tables[table]["kind"], strict=True)
            )
    return found


class FamiliesBeside(Study):
    """Several families side by side; `run_study` makes it of a configuration with `families`."""

    name = "families_beside"
    title = "Does it hold in several families?"
    section = SECTION
    needs_models = False

    def left_out(self, context: StudyContext) -> str:
        return "it sums up the results of several families; give families instead of family"

    def run(self, context: StudyContext) -> Part:
        raise InputError(self.left_out(context))
