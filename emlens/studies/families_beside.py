"""Several families side by side: the same study of each in a folder of its own, and their numbers
in one result.

A configuration holds `families` instead of `family`: by name, what differs from the fields beside
it. Each family's own result and page stay below `families/<name>`; nothing is pooled over questions
or models, only numbers are averaged, each beside its null, with families as units.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from emlens.data.configuration import Origin, read_file
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line, safe_name
from emlens.results.sections import Plot, Section
from emlens.results.study_result import StudyResult
from emlens.results.tables import Table, check_tables
from emlens.stats import adjust_p_values
from emlens.studies.config import StudyConfig, read_config
from emlens.studies.headlines import (
    HEADLINE,
    SIDE_BY_SIDE,
    averaged,
    findings_of,
    headlines,
    side_by_side,
)
from emlens.studies.study import MadeElsewhere

LEAST_SIZES: Final = 3
"""Families of different sizes below which no trend is tested."""

SECTION = Section(
    method=(
        "The same study was run on each family. A number is first averaged over the fine-tunes of"
        " one kind in a family, then over families; the interval is a t interval over families,"
        " and the standard deviation and range show how far they lie apart."
        " Whether a number lies beyond its null is read from the difference of both in each family;"
        " families share questions, so the spread of the null’s draws (or of the number’s own"
        " interval over questions) is added to that between families. Two or three families say"
        " little."
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
        "family_sizes": Table(
            "One row per family, kind of fine-tune and number, where parameter counts are known:"
            " mean over fine-tunes.",
            ["family", "kind", "number", "parameters", "value", "null"],
        ),
        "size_trend": Table(
            "One row per kind of fine-tune and number of three families or more: rank correlation"
            " of value − null (of the value where it has no null) with the parameter count over n"
            " families, with Mann and Kendall's exact test of no trend.",
            ["kind", "number", "n", "kendall_tau", "p", "p_holm", "smallest_p"],
        ),
    },
    plots=(
        Plot(
            "points",
            "family_sizes",
            "parameters",
            "value",
            "Each number against the parameter count",
            "One mark per family, the mean over its fine-tunes; dotted: its null.",
            colour="kind",
            facet="number",
            null="null",
            optional=True,
        ),
        Plot(
            "forest",
            "family_numbers",
            "family",
            "value",
            "Each family's numbers",
            "One mark per fine-tune; dotted: its null.",
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


MOST_FAMILIES: Final = 100
"""Of one configuration; each is read with the line of its fields."""


def read_members(source: Any) -> dict[str, StudyConfig] | None:
    """The configuration of each family, or None where the source has no `families`.

    Raises:
        InputError: both `family` and `families`, fewer than two, names that are not a folder's, or
            a member that cannot be used.
    """
    file = str(source) if isinstance(source, str | Path) and Path(source).is_file() else None
    record = source if file is None else read_file(file)
    if not isinstance(record, Mapping) or "families" not in record:
        return None
    families = record["families"]
    if not isinstance(families, Mapping) or len(families) < 2 or "family" in record:
        raise InputError(
            f"{_place(file)}families must map at least two names to what each family differs in,"
            " and replaces family"
        )
    if len(families) > MOST_FAMILIES:
        raise InputError(
            f"{_place(file)}families names {len(families)}, more than {MOST_FAMILIES};"
            " split the file"
        )
    shared = {field: value for field, value in record.items() if field != "families"}
    return {str(name): _member(file, str(name), families[name], shared) for name in families}


def _place(file: str | None, *names: str) -> str:
    """`"file:line: "` of `families`, or of one of them; `"config: "` of a mapping."""
    return "config: " if file is None else Origin(file).place(("families", *names))


def _member(file: str | None, name: str, fields: Any, shared: Mapping[str, Any]) -> StudyConfig:
    """The configuration of one family: its own fields over those of all.

    Raises:
        InputError: a name that is not a folder's, or fields that cannot be used.
    """
    where = f"{_place(file, name)}family {one_line(name)!r}"
    if not isinstance(fields, Mapping) or "study" in fields or safe_name(name) != name:
        raise InputError(f"{where} must be named as a folder can be and hold fields, without study")
    if file is not None:  # errors then name the line
        return read_config(
            {**shared, **fields}, Origin(file, ("families", name), frozenset(fields))
        )
    try:
        return read_config({**shared, **fields})
    except InputError as error:
        raise InputError(f"{where}: {str(error).removeprefix('config: ')}") from None


def gathered(results: Mapping[str, StudyResult]) -> StudyResult:
    """One result from those of several families."""
    first = next(iter(results.values()))
    numbers = pd.concat(
        [_numbers(family, result) for family, result in results.items()], ignore_index=True
    )
    by_family = averaged(numbers, ["kind", "family"])
    labels = by_family["number"] + " (" + by_family["kind"] + ")"
    table = side_by_side(by_family.assign(number=labels))
    tables = {"family_numbers": numbers, "over_families": table}
    sizes = {family: result.facts.get("parameters") for family, result in results.items()}
    tables |= size_tables(by_family, {name: n for name, n in sizes.items() if n})
    check_tables(tables, SECTION.tables, own=True)
    configs, models, notes, warnings = {}, {}, [], []
    if len(results) < 4:
        warnings.append(f"{len(results)} families: an interval over so few says little")
    if "size_trend" in tables and tables["size_trend"]["smallest_p"].min() > 0.05:
        warnings.append(
            f"{len(results)} sizes cannot show a trend with the parameter count: no order of them"
            " has p below .05; 5 can"
        )
    for family, result in results.items():
        configs[family] = dict(result.config)
        for name, provenance in result.facts.get("models", {}).items():
            models[f"{family}: {name}"] = provenance
        if result.note and result.note not in notes:
            notes.append(result.note)
        warnings += [f"{family}: {warning}" for warning in result.warnings]
    return StudyResult(
        study="families_beside",
        config={"study": first.study, "families": configs},
        tables=tables,
        findings=findings_of(table, "families_beside", "families", list(table["number"])),
        warnings=warnings,
        facts={**first.facts, "models": models},
        note=" ".join(notes),
        declared=SECTION.tables,
    )


def size_tables(by_family: pd.DataFrame, sizes: Mapping[str, int]) -> dict[str, pd.DataFrame]:
    """Each number beside the parameter count of its family, and a trend test over families.

    Args:
        by_family: family, kind, number, value and null. sizes: family → parameters of its instruct
            model.

    Returns:
        `family_sizes`, and `size_trend` where three families of different sizes have a number;
        nothing where no size is known.
    """
    columns = ["family", "kind", "number", "parameters", "value", "null"]
    table = by_family[by_family["family"].isin(list(sizes))]
    if not len(table):
        return {}
    table = table.assign(parameters=table["family"].map(sizes))[columns]
    rows = []
    for (kind, number), cells in table.groupby(["kind", "number"], sort=False):
        beyond = cells["value"] - cells["null"].fillna(0.0)
        is_known = beyond.notna()
        if is_known.sum() < LEAST_SIZES or cells["parameters"][is_known].nunique() < LEAST_SIZES:
            continue
        test = scipy_stats.kendalltau(cells["parameters"][is_known], beyond[is_known])
        n = int(is_known.sum())
        head = {"kind": kind, "number": number, "n": n}
        # both orders that are wholly monotone, of n! equally likely ones
        smallest = min(1.0, 2 / math.factorial(n))
        rows.append(
            {**head, "kendall_tau": test.statistic, "p": test.pvalue, "smallest_p": smallest}
        )
    tables = {"family_sizes": table.reset_index(drop=True)}
    if rows:
        trend = pd.DataFrame(rows)
        trend["p_holm"] = np.nan
        is_tested = trend["p"].notna()
        if is_tested.any():
            trend.loc[is_tested, "p_holm"] = adjust_p_values(trend.loc[is_tested, "p"])
        order = ["kind", "number", "n", "kendall_tau", "p", "p_holm", "smallest_p"]
        tables["size_trend"] = trend[order]
    return tables


def _numbers(family: str, result: StudyResult) -> pd.DataFrame:
    """The headlines of one family, with the kind of the fine-tune that each is of."""
    numbers = headlines(result.tables)
    kinds: dict[str, str] = {}
    for table, column in (("models", "model"), ("trained_runs", "run")):
        if table in result.tables:
            rows = result.tables[table]
            kinds |= dict(zip(rows[column], rows["kind"], strict=True))
    numbers["kind"] = [kinds.get(model, "harmful") for model in numbers["model"]]
    numbers.insert(0, "family", family)
    return numbers


class FamiliesBeside(MadeElsewhere):
    """Several families side by side; `run_study` makes it of a configuration with `families`."""

    name = "families_beside"
    title = "Does it hold in several families?"
    section = SECTION
    how = "it sums up the results of several families; give families instead of family"
