"""What a section lacks, read off its tables: a control that is missing, a sample that is too small,
one training only.

A study warns of what it knows while it runs; this looks at what the page is made of, so that also a
table from elsewhere, or a part whose author forgot, is not read as more than it is. Says nothing
where nothing is missing.
"""

import re
from collections.abc import Callable, Iterator, Mapping

import pandas as pd

from emlens.report.topics import Section, Tables

FEW_QUESTIONS = 30
"""Below this a mean over questions of 0 to 100 points has an interval wider than most effects."""
FEW_UNITS = 10
"""Below this an interval over units (seeds, runs, prompts) rests on its assumptions."""


def cautions(section: Section, tables: Tables) -> list[str]:
    """Sentences to set above a section's figures."""
    found = list(BY_SECTION[section.name](tables)) if section.name in BY_SECTION else []
    return list(dict.fromkeys([*found, *_plots(section, tables)]))


def _profile(tables: Tables) -> Iterator[str]:
    models = tables.get("models", pd.DataFrame())
    if {"kind", "model", "n_others"} <= set(models.columns):
        if not (models["kind"] == "benign").any():
            yield "There is no benign control: a fall may be what any fine-tuning does."
        tuned = models[models["kind"].isin(["harmful", "benign"])]
        yield from _few(tuned["n_others"], FEW_QUESTIONS, "questions outside the trained domain")
        if len(tuned) and not _repeated(tables, tuned["model"]):
            yield (
                "Every fine-tune was trained once: intervals are over questions,"
                " and say nothing about another seed of training."
            )


def _overlap(tables: Tables) -> Iterator[str]:
    overlap = tables.get("overlap", pd.DataFrame())
    if not {"model", "comparison", "null", "center", "n"} <= set(overlap.columns):
        return
    for comparison, said in (
        ("benign train–evaluation", "the benign control"),
        ("train–neutral text", "the control of neutral text"),
    ):
        yield from _lacking(overlap, overlap["comparison"] == comparison, said)
    yield from _lacking(
        overlap,
        overlap["null"].astype(str).str.startswith("covariance"),
        "the null with the activations’ covariance",
    )
    yield from _few(
        overlap.loc[overlap["comparison"] == "train–evaluation", "n"],
        FEW_QUESTIONS,
        "prompts a side",
    )


def _direction(tables: Tables) -> Iterator[str]:
    arms = tables.get("arms", pd.DataFrame())
    if not {"model", "arm", "kl", "n"} <= set(arms.columns):
        return
    for start, said in (
        ("random", "a random direction"),
        ("benign", "the benign fine-tune’s direction"),
    ):
        yield from _lacking(
            arms, arms["arm"].astype(str).str.startswith(start), f"the arm with {said}"
        )
    yield from _lacking(arms, arms["kl"].notna(), "damage on neutral text")
    yield from _few(arms["n"], FEW_QUESTIONS, "report questions")


def _forecast(tables: Tables) -> Iterator[str]:
    summary = tables.get("forecast", pd.DataFrame())
    if not {"model", "parent", "null_q95", "n"} <= set(summary.columns):
        return
    yield from _lacking(summary, summary["parent"] == "base", "a forecast from the base model")
    yield from _lacking(summary, summary["null_q95"].notna(), "the null of shuffled labels")
    if "held_out" in summary.columns:
        yield from _lacking(
            summary, summary["held_out"] == "domain", "the forecast with domains held out"
        )
    yield from _few(summary["n"], FEW_QUESTIONS, "questions")


BY_SECTION: Mapping[str, Callable[[Tables], Iterator[str]]] = {
    "profile": _profile,
    "overlap": _overlap,
    "direction": _direction,
    "forecast": _forecast,
}


def _plots(section: Section, tables: Tables) -> Iterator[str]:
    """What the figures drawn from records lack."""
    for plot in section.plots:
        table = tables.get(plot.table, pd.DataFrame())
        if plot.y not in table.columns:
            continue
        bare = [
            c
            for c in (f"{plot.y}_low", f"{plot.y}_high")
            if c not in table.columns or table[c].isna().all()
        ]
        unknown = not plot.null or plot.null not in table.columns or table[plot.null].isna().all()
        if bare and unknown:
            yield (
                f"“{plot.title}” shows values with neither interval nor null:"
                " read them as description."
            )
        if "n" in table.columns and pd.api.types.is_numeric_dtype(table["n"]):
            yield from _few(table["n"], FEW_UNITS, f"units behind some value of “{plot.title}”")


def _lacking(table: pd.DataFrame, has: "pd.Series[bool]", said: str) -> Iterator[str]:
    """Models of the table without any such row."""
    names = list(dict.fromkeys(table["model"].astype(str)))
    without = [name for name in names if not has[table["model"].astype(str) == name].any()]
    if without:
        whose = (
            ""
            if len(without) == len(names)
            else f" for {', '.join(without[:4])}{' and others' if len(without) > 4 else ''}"
        )
        yield f"Missing{whose}: {said}."


def _few(counts: pd.Series, least: int, what: str) -> Iterator[str]:
    known = pd.to_numeric(counts, errors="coerce").dropna()
    if len(known) and known.min() < least:
        yield f"Small sample: {known.min():.0f} {what} (fewer than {least})."


def _repeated(tables: Tables, models: pd.Series) -> bool:
    """Whether some fine-tune stands there with several seeds, told by `name@seed`, or the study has
    several families.
    """
    bare = [re.sub(r"@\d+$", "", str(name)) for name in models]
    several = any(
        table[c].nunique() > 1
        for table in tables.values()
        for c in ("seed", "family")
        if c in table.columns
    )
    return several or len(set(bare)) < len(bare)
