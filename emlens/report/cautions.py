"""What a section lacks, read off its tables: a control, a sample that is large enough, seeds.

A study warns of what it knows while it runs. This looks at what the page is made of, so that also a
table from elsewhere, or a part whose author forgot, is not read as more than it is. Where nothing
is missing, nothing is said.
"""

import re
from collections.abc import Callable, Iterator, Mapping

import pandas as pd

from emlens.report.sections import PageSection
from emlens.results import Plot
from emlens.results.columns import Measure
from emlens.results.overlap_labels import BENIGN, TESTED, TRAIN_NEUTRAL
from emlens.results.tables import Table

FEW_QUESTIONS = 30
"""Below this a mean over questions of 0 to 100 points has an interval wider than most effects."""
FEW_UNITS = 10
"""Below this an interval over units (seeds, runs, prompts) rests on its assumptions."""
NULL_COLUMNS = ("null_mean", "null_q95", "null_low", "null_high", "null_sd", "p", "p_holm")
"""Columns that hold a null, or a test against one."""
MOST_NAMED = 4
"""Models that a sentence names."""

Tables = Mapping[str, pd.DataFrame]


def cautions(section: PageSection, tables: Tables) -> list[str]:
    """Sentences to set above a section's figures."""
    sentences: list[str] = []
    if section.name in BY_SECTION:
        sentences += BY_SECTION[section.name](tables)
    for plot in section.records.plots:
        sentences += _plot(plot, tables, section.records.tables)
    return list(dict.fromkeys(sentences))


def _table(tables: Tables, name: str, columns: set[str]) -> pd.DataFrame | None:
    """A table; None where it is absent or lacks a column."""
    if name not in tables or not columns <= set(tables[name].columns):
        return None
    return tables[name]


def _profile(tables: Tables) -> Iterator[str]:
    models = _table(tables, "models", {"kind", "model", "n_others"})
    if models is None:
        return
    if not (models["kind"] == "benign").any():
        yield "There is no benign control: a fall may be what any fine-tuning does."
    fine_tunes = models[models["kind"].isin(["harmful", "benign"])]
    yield from _small(fine_tunes["n_others"], FEW_QUESTIONS, "questions outside the trained domain")
    if len(fine_tunes) and not _has_repeats(tables, fine_tunes["model"]):
        yield (
            "Every fine-tune was trained once: intervals are over questions,"
            " and say nothing about another seed of training."
        )


def _delta_overlap(tables: Tables) -> Iterator[str]:
    overlap = _table(tables, "overlap", {"model", "comparison", "null_kind", "center", "n"})
    if overlap is None:
        return
    comparison, null = overlap["comparison"], overlap["null_kind"].astype(str)
    yield from _missing(overlap, comparison == BENIGN, "the benign control")
    yield from _missing(overlap, comparison == TRAIN_NEUTRAL, "the control of neutral text")
    yield from _missing(
        overlap, null.str.startswith("covariance"), "the null with the activations’ covariance"
    )
    tested = overlap[comparison == TESTED]
    yield from _small(tested["n"], FEW_QUESTIONS, "prompts per side")


def _direction_transfer(tables: Tables) -> Iterator[str]:
    arms = _table(tables, "arms", {"model", "arm", "kl", "n"})
    if arms is None:
        return
    names = arms["arm"].astype(str)
    yield from _missing(arms, names.str.startswith("random"), "the arm with a random direction")
    yield from _missing(
        arms, names.str.startswith("benign"), "the arm with the benign fine-tune’s direction"
    )
    yield from _missing(arms, arms["kl"].notna(), "damage on neutral text")
    yield from _small(arms["n"], FEW_QUESTIONS, "report questions")


def _priors(tables: Tables) -> Iterator[str]:
    summary = _table(tables, "forecast", {"model", "parent", "null_q95", "n"})
    if summary is None:
        return
    yield from _missing(summary, summary["parent"] == "base", "a forecast from the base model")
    yield from _missing(summary, summary["null_q95"].notna(), "the null of shuffled labels")
    if "held_out" in summary.columns:
        yield from _missing(
            summary, summary["held_out"] == "domain", "the forecast with domains held out"
        )
    yield from _small(summary["n"], FEW_QUESTIONS, "questions")


BY_SECTION: Mapping[str, Callable[[Tables], Iterator[str]]] = {
    "profile": _profile,
    "delta_overlap": _delta_overlap,
    "direction_transfer": _direction_transfer,
    "priors": _priors,
}


def _plot(plot: Plot, tables: Tables, declared: Mapping[str, Table]) -> Iterator[str]:
    """What the figures of a generic kind lack.

    Args:
        declared: the section's tables, which say where the interval and the null of a number lie.
    """
    table = _table(tables, plot.table, {plot.y})
    if table is None:
        return
    measure = _measure_of(plot, declared)
    low, high = measure.ends if measure is not None else (f"{plot.y}_low", f"{plot.y}_high")
    nulls = [plot.null, *NULL_COLUMNS]
    if measure is not None:
        nulls.append(measure.null)
    has_interval = _has_values(table, low) and _has_values(table, high)
    if not has_interval and not any(_has_values(table, column) for column in nulls):
        yield (
            f"“{plot.title}” shows values with neither interval nor null: read them as description."
        )
    if "n" in table.columns and pd.api.types.is_numeric_dtype(table["n"]):
        yield from _small(table["n"], FEW_UNITS, f"units for some value of “{plot.title}”")


def _measure_of(plot: Plot, declared: Mapping[str, Table]) -> Measure | None:
    """The number that a plot draws, as its table declares it; None where it declares none."""
    if plot.table not in declared:
        return None
    for measure in declared[plot.table].measures:
        if measure.value.name == plot.y:
            return measure
    return None


def _has_values(table: pd.DataFrame, column: str) -> bool:
    return column in table.columns and bool(table[column].notna().any())


def _missing(table: pd.DataFrame, is_present: "pd.Series[bool]", what: str) -> Iterator[str]:
    """One sentence where some model of the table has no such row."""
    names = table["model"].astype(str)
    having = set(names[is_present])
    without = [name for name in dict.fromkeys(names) if name not in having]
    if not without:
        return
    whose = ""
    if having:
        more = " and others" if len(without) > MOST_NAMED else ""
        whose = f" for {', '.join(without[:MOST_NAMED])}{more}"
    yield f"Missing{whose}: {what}."


def _small(counts: pd.Series, least: int, what: str) -> Iterator[str]:
    """One sentence where a count is below the least."""
    numbers = pd.to_numeric(counts, errors="coerce").dropna()
    if len(numbers) and numbers.min() < least:
        yield f"Small sample: {numbers.min():.0f} {what} (fewer than {least})."


def _has_repeats(tables: Tables, models: pd.Series) -> bool:
    """Whether some fine-tune was trained with several seeds, or the study has several families.

    Seeds are recognised by names such as `name@seed`, or by a column.
    """
    for table in tables.values():
        for column in ("seed", "family"):
            if column in table.columns and table[column].nunique() > 1:
                return True
    names = [re.sub(r"@\d+$", "", str(name)) for name in models]
    return len(set(names)) < len(names)
