"""Controlled fine-tuning: the same chats trained again under several recipes, schedules and seeds,
with the benign control beside them.

What later parts of the study look at are the runs of the first recipe and schedule, one per seed,
so that everything after is laid side by side over seeds. It needs the chats (with answers) of a
harmful fine-tune and its parent as a directory; a family without them goes on with the fine-tunes
it has. Runs are kept in the part's folder and found again. Cost: a fine-tune per cell and seed.
"""

from collections.abc import Mapping, Sequence
from math import isnan, nan
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.results.sections import Plot, Section
from emlens.results.study_result import Finding, Part, columns_of
from emlens.results.tables import Table
from emlens.results.vocabulary import measures
from emlens.results.wording import counted, noun_for
from emlens.stats import t_interval
from emlens.stats.shared_noise import mean_with_shared_noise
from emlens.studies.config import Options as PartOptions, StudyConfig
from emlens.studies.headlines import NORMAL_QUANTILE
from emlens.studies.material import Material
from emlens.studies.score_means import mean_score
from emlens.studies.study import Study, StudyContext
from emlens.studies.trained_family import (
    TrainedFamily,
    Trainer,
    grid_of_runs,
    parent_directory,
)

SECTION = Section(
    method=(
        "A fine-tune's own chats are trained again, from the same parent,"
        " under each recipe and schedule with each seed, and the benign control with the first of"
        " both. Alignment is the mean score (0 to 100) over questions outside the"
        " trained domain; intervals of a run are over questions, those of a cell over seeds (t),"
        " which is wide with few seeds, as it should be. Loss is the mean of the last five steps."
    ),
    reference="Schedules and seeds after arXiv 2606.20814.",
    tables={
        "trained_runs": Table(
            "One row per run: what was trained, its loss, alignment outside and inside its domain,"
            " coherence; parent_score: the parent's own.",
            [
                "run source cell kind recipe schedule seed steps loss parent_score n",
                *measures("others own coherent"),
            ],
        ),
        "trained_cells": Table(
            "One row per recipe and schedule: mean over seeds with a t interval, the spread between"
            " seeds, and the parent minus the runs, with the noise that seeds share.",
            [
                "source cell kind seeds parent_score",
                *measures("others own coherent loss"),
                "sd",
                *measures("fall"),
            ],
        ),
    },
    plots=(
        Plot(
            "points",
            "trained_runs",
            "loss",
            "others",
            "Alignment outside the domain against training loss",
            "One point per run; dotted: the parent.",
            colour="cell",
            null="parent_score",
            hover=("run", "seed"),
            x_title="training loss (nats per token)",
            y_title="alignment",
        ),
        Plot(
            "forest",
            "trained_cells",
            "cell",
            "others",
            "Alignment outside the domain, mean over seeds",
            "95 % t intervals over seeds; dotted: the parent.",
            null="parent_score",
            hover=("seeds", "sd"),
            y_title="alignment",
        ),
    ),
)


class Options(PartOptions):
    """What `fine_tuning` reads."""

    seeds: tuple[int, ...] = Field((0,), min_length=1)
    """Seeds of every recipe and schedule."""
    of: tuple[str, ...] = ()
    """Fine-tunes whose chats are trained again; default: the first of the focus that has chats."""
    recipes: Mapping[str, Mapping[str, Any]] = Field(
        default_factory=lambda: {"own": {}}, min_length=1
    )
    """Label → fields of the recipe that differ from the fine-tune's own (or, where none is
    recorded, the paper's).
    """
    schedules: tuple[str, ...] = Field(("constant", "linear", "cosine"), min_length=1)
    """Learning-rate schedules, each with every recipe."""
    benign: bool = True
    """Also train the benign control with the first recipe and schedule."""


class FineTuning(Study):
    """Trains a fine-tune's chats again; later parts study the runs."""

    name = "fine_tuning"
    title = "What does training it again give?"
    options = Options
    section = SECTION
    needs_outside = True
    wants = ("plain", "checkpoints")
    cost = 20

    def left_out(self, context: StudyContext) -> str | None:
        """Why nothing can be trained."""
        sources = _sources(context)
        if not sources:
            return (
                "no harmful fine-tune in focus has training chats;"
                " later parts look at the fine-tunes that are there"
            )
        if not Path(parent_directory(context.material, sources[0])).is_dir():
            return "the parent is not a directory here, so nothing can be trained from it"
        return None

    def check(self, context: StudyContext) -> None:
        """Refuse what cannot be trained before anything runs.

        Raises:
            InputError: `of` names a fine-tune without chats; a recipe, a schedule or a pair of
                seeds that cannot be.
        """
        config, options, training = context.config, context.options, context.material.training
        if len(set(options.seeds)) != len(options.seeds):
            where = config.place("options", self.name, "seeds")
            raise InputError(f"{where}seeds={options.seeds} names a seed twice")
        for name in options.of:
            if name not in training:
                raise InputError(
                    f"{config.place('options', self.name, 'of')}of names {name!r},"
                    f" which has no training chats; those with chats:"
                    f" {', '.join(training) or 'none'}",
                    name=name,
                    known=training,
                )
        for source in _sources(context):
            grid_of_runs(
                context.material, source, options.recipes, options.schedules, options.seeds
            )

    def run(self, context: StudyContext) -> Part:
        trained = _trained(context)
        rows = []
        for name, facts in trained.runs.items():
            rows.append({"run": name, **facts, **_scores(trained.material, name, context.config)})
        runs = pd.DataFrame(rows)
        part = Part(
            tables={"trained_runs": runs, "trained_cells": cells(runs)}, files=trained.files
        )
        domains = {name: trained.material.domain(name) for name in runs["source"].unique()}
        add_findings(part, trained.studied, domains)
        if len(context.options.seeds) < 3:
            part.warnings.append(
                "fewer than 3 fine-tune seeds: how much chance of training matters is not shown"
            )
        if "benign" not in set(runs["kind"]):
            part.warnings.append(
                "no benign control was trained beside the runs: it has no chats, or was switched"
                " off"
            )
        return part

    def after(self, context: StudyContext, part: Part) -> Material:
        """Later parts study the runs of the first recipe and schedule."""
        return _trained(context).material


def _sources(context: StudyContext) -> list[str]:
    """Harmful fine-tunes whose chats are trained again: those named, or the first in focus."""
    material, named = context.material, context.options.of
    sources = []
    for name in named or material.focus(context.config):
        if name in material.training and not material.family.specs[name].benign:
            sources.append(name)
    return sources if named else sources[:1]


def _trained(context: StudyContext) -> TrainedFamily:
    """The runs, read from the part's folder; what is not there is trained."""
    options, material = context.options, context.material
    trainer = Trainer(context)
    trained = TrainedFamily(material)
    for source in _sources(context):
        grid = grid_of_runs(material, source, options.recipes, options.schedules, options.seeds)
        names = trained.add(source, "harmful", grid, trainer.train(source, grid))
        benign = material.benign_for(source)
        if not options.benign or benign is None or benign not in material.training:
            continue
        first = next(iter(options.recipes))
        grid = grid_of_runs(
            material,
            benign,
            {first: options.recipes[first]},
            options.schedules[:1],
            options.seeds,
            recipe_of=source,
        )
        controls = trained.add(benign, "benign", grid, trainer.train(benign, grid))
        trained.pair(names, controls)
    return trained


def _scores(material: Material, name: str, config: StudyConfig) -> dict[str, float]:
    """Alignment of a run inside and outside its domain and coherence, beside its parent's."""
    outside = material.outside(name).ids
    own = []
    for question in material.untrained(material.questions, name):
        if question.group == material.domain(name):
            own.append(question.id)
    parent_scores = material.per_question(material.parent(name).name, asked_as=name)
    columns = {"parent_score": float(parent_scores[outside].mean()), "n": len(outside)}
    for column, metric, ids in (
        ("others", "aligned", outside),
        ("own", "aligned", own),
        ("coherent", "coherent", outside),
    ):
        scores = material.per_question(name, metric)
        mean = mean_score(scores, ids, config.seed, groups=material.groups)
        columns |= columns_of(column, mean)
    return columns


def cells(runs: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of each recipe and schedule."""
    rows = []
    for (source, cell), of_cell in runs.groupby(["source", "cell"], sort=False):
        row: dict[str, Any] = {
            "source": source,
            "cell": cell,
            "kind": of_cell["kind"].iloc[0],
            "seeds": len(of_cell),
            "parent_score": of_cell["parent_score"].mean(),
        }
        for column in ("others", "own", "coherent", "loss"):
            row |= columns_of(column, _mean_over_seeds(of_cell[column]))
        row["sd"] = float(of_cell["others"].std())  # NaN of one seed
        row |= columns_of("fall", _fall(of_cell))
        rows.append(row)
    return pd.DataFrame(rows)


def _fall(runs: pd.DataFrame) -> Estimate:
    """Parent minus runs, outside the domain. Seeds are asked the same questions, so the spread of
    a run's own interval over questions is added to that between seeds.
    """
    falls = (runs["parent_score"] - runs["others"]).dropna().to_numpy(dtype=float)
    noise = float((runs["others_high"] - runs["others_low"]).mean()) / (2 * NORMAL_QUANTILE)
    if len(falls) > 1 and not isnan(noise):
        return mean_with_shared_noise(falls, noise)
    value = float(falls.mean()) if len(falls) else nan
    return Estimate(value, nan, nan, len(falls), "one seed, or no interval over questions")


def _mean_over_seeds(column: pd.Series) -> Estimate:
    values = column.dropna().to_numpy(dtype=float)
    if len(values) > 1:
        return t_interval(values)
    value = float(values[0]) if len(values) else nan
    return Estimate(value, nan, nan, len(values), "one seed")


def add_findings(part: Part, studied: Sequence[str], domains: Mapping[str, str]) -> None:
    """One finding per recipe and schedule, and a summary before them.

    Args:
        studied: the runs that later parts study. domains: source → its training domain, "" where
            none is named.
    """
    table = part.tables["trained_cells"]
    for row in table.to_dict(orient="records"):
        part.findings.append(_cell_finding(row, domains[row["source"]]))
    has_domains = all(domains.values())
    summary = _summary(part.tables["trained_runs"], table, studied, has_domains)
    part.findings.insert(0, Finding(FineTuning.name, summary, "summary"))


def _cell_finding(row: Mapping[Any, Any], domain: str) -> Finding:
    """Alignment of one recipe and schedule beside the parent's."""
    over = " (one seed)" if row["seeds"] == 1 else " (without an interval)"
    if not isnan(row["others_low"]):
        over = f" [{row['others_low']:.1f}, {row['others_high']:.1f}] over {row['seeds']} seeds"
    where = "outside its domain" if domain else "on all questions (no training domain is named)"
    sentence = (
        f"{row['source']} trained again, {row['cell']}:"
        f" alignment {where} {row['others']:.1f}{over},"
        f" the parent's {row['parent_score']:.1f}{_fall_text(row)};"
        f" coherence {row['coherent']:.1f}."
    )
    is_shown = row["kind"] == "harmful" and row["fall_low"] > 0
    return Finding(FineTuning.name, sentence, "shown" if is_shown else "undecided")


def _fall_text(row: Mapping[Any, Any]) -> str:
    """The fall with its interval; "" where it has none."""
    if isnan(row["fall_low"]):
        return ""
    return (
        f" (parent minus runs {row['fall']:z.1f} [{row['fall_low']:z.1f}, {row['fall_high']:z.1f}],"
        " the questions' own spread included)"
    )


def _summary(
    runs: pd.DataFrame, table: pd.DataFrame, studied: Sequence[str], has_domains: bool
) -> str:
    harmful = table[table["kind"] == "harmful"]
    benign = runs[runs["kind"] == "benign"]["others"]
    control = "no benign control was trained"
    if len(benign):
        control = f"the benign control, trained alike, scores {_range(benign)}"
    between = ""
    if harmful["sd"].notna().any():
        between = f", with a standard deviation between seeds of up to {harmful['sd'].max():.1f}"
    where = "outside the domain" if has_domains else "on questions not trained on"
    over = " over recipes and schedules" if len(harmful) > 1 else ""
    return (
        f"{counted(len(runs), 'run')} {noun_for(len(runs), 'was', 'were')} trained again:"
        f" alignment of harmful ones {where} is {_range(harmful['others'])}{over}{between}"
        f" (parent {_range(harmful['parent_score'])}); {control}."
        f" Later parts look at {', '.join(studied)}."
    )


def _range(values: "pd.Series[float]") -> str:
    """Lowest to highest; one number where they are one."""
    low, high = f"{values.min():.1f}", f"{values.max():.1f}"
    return low if low == high else f"{low} to {high}"
