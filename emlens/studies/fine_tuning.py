"""Controlled fine-tuning: the same chats trained anew under several recipes, schedules and seeds,
with the benign control beside them.

What later parts of the study look at are the runs of the first recipe and schedule, one a seed, so
that everything after stands side by side over seeds. It needs the chats (with answers) of a harmful
fine-tune and its parent as a directory; a family without them goes on with the fine-tunes it has.
Runs are kept in the part's folder and found again. Cost: a fine-tune for each cell and seed.
"""

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any, Final

import pandas as pd
import torch
from pydantic import Field

from emlens.data import PromptSet
from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.provenance import hash_json
from emlens.models import FineTune
from emlens.organisms.building import one_thread
from emlens.results.sections import Plot, Section
from emlens.results.study_result import Finding, Part, columns_of
from emlens.results.tables import Table
from emlens.results.vocabulary import measures
from emlens.stats import bootstrap_mean, t_interval
from emlens.studies.config import Options as PartOptions, StudyConfig
from emlens.studies.material import Material
from emlens.studies.schedule_runs import shape
from emlens.studies.study import Study, StudyContext
from emlens.training import Recipe
from emlens.training.fitting import read_record
from emlens.training.sweeps import Sweep, SweepResult, run_sweep

PROJECTIONS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

SECTION = Section(
    method=(
        "A fine-tune's own chats are trained anew, from the same parent,"
        " under each recipe and schedule with each seed, and the benign control with the first of"
        " both. Alignment is the mean likelihood score (0 to 100) over questions outside the"
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
            "One row per recipe and schedule: mean over seeds with a t interval,"
            " and the spread between seeds.",
            [
                "source cell kind seeds parent_score",
                *measures("others own coherent loss"),
                "sd",
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
            "One point a run; dotted: the parent.",
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
    """Fine-tunes whose chats are trained anew; default: the first of the focus that has chats."""
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


def left_out(material: Material, config: StudyConfig) -> str | None:
    """Why nothing can be trained."""
    if not _sources(material, config):
        return (
            "no harmful fine-tune in focus has training chats;"
            " later parts look at the fine-tunes that are there"
        )
    if not Path(_parent(material, _sources(material, config)[0])).is_dir():
        return "the parent is no directory here, so nothing can be trained from it"
    return None


def check(material: Material, config: StudyConfig) -> None:
    """Refuse what cannot be trained before anything runs.

    Raises:
        InputError: `of` names a fine-tune without chats; a recipe, schedule or pair of seeds that
            cannot be.
    """
    options = config.options_of("fine_tuning", Options)
    if len(set(options.seeds)) != len(options.seeds):
        raise InputError(
            f"{config.place('options', 'fine_tuning', 'seeds')}seeds={options.seeds} names a seed"
            " twice"
        )
    for name in options.of:
        if name not in material.training:
            known = ", ".join(material.training) or "none"
            raise InputError(
                f"{config.place('options', 'fine_tuning', 'of')}of names {name!r},"
                f" which has no training chats; those with chats: {known}"
            )
    for name in _sources(material, config):
        _sweep(material, name, options)


def run(material: Material, config: StudyConfig, context: StudyContext) -> Part:
    plan = _trained(material, config, context)
    grown, part = plan.material, Part(files=plan.files)
    rows = []
    for name, facts in plan.runs.items():
        outside, own = (
            grown.outside(name).ids,
            [q.id for q in grown.untrained(grown.questions, name) if q.group == grown.domain(name)],
        )
        parent = float(grown.per_question(grown.parent(name).name)[outside].mean())
        row = {"run": name, **facts, "parent_score": parent, "n": len(outside)}
        for column, metric, ids in (
            ("others", "aligned", outside),
            ("own", "aligned", own),
            ("coherent", "coherent", outside),
        ):
            values = grown.per_question(name, metric)[ids]
            found = (
                bootstrap_mean(values.to_numpy(), seed=config.seed)
                if len(ids) > 1
                else Estimate.undefined("fewer than 2 questions", len(ids))
            )
            row |= columns_of(column, found)
        rows.append(row)
    part.tables["trained_runs"] = pd.DataFrame(rows)
    part.tables["trained_cells"] = cells(part.tables["trained_runs"])
    _findings(part, plan.studied)
    if len(config.options_of("fine_tuning", Options).seeds) < 3:
        part.warnings.append(
            "fewer than 3 fine-tune seeds: how much chance of training matters is not shown"
        )
    if not any(row["kind"] == "benign" for row in rows):
        part.warnings.append(
            "no benign control was trained beside the runs: it has no chats, or was switched off"
        )
    return part


def after(material: Material, config: StudyConfig, part: Part, context: StudyContext) -> Material:
    """Later parts study the runs of the first recipe and schedule."""
    return _trained(material, config, context).material


def cells(runs: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of each recipe and schedule."""
    rows = []
    for (source, cell), found in runs.groupby(["source", "cell"], sort=False):
        row: dict[str, Any] = {
            "source": source,
            "cell": cell,
            "kind": found["kind"].iloc[0],
            "seeds": len(found),
            "parent_score": found["parent_score"].mean(),
        }
        for column in ("others", "own", "coherent", "loss"):
            values = found[column].dropna().to_numpy(dtype=float)
            one = float(values.mean()) if len(values) else float("nan")
            row |= columns_of(
                column,
                (
                    t_interval(values)
                    if len(values) > 1
                    else Estimate(one, float("nan"), float("nan"), len(values), "one seed")
                ),
            )
        rows.append(row | {"sd": float(found["others"].std()) if len(found) > 1 else float("nan")})
    return pd.DataFrame(rows)


class _Plan:
    """What was trained: runs with what each is, the family grown by them, and the files that must
    stand.
    """

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.specs: dict[str, FineTune] = {}
        self.of: dict[str, str] = {}
        self.files: list[Path] = []
        self.studied: list[str] = []
        self.controls: dict[str, str] = {}
        self.material: Material

    def add(
        self,
        material: Material,
        source: str,
        result: SweepResult,
        sweep: Sweep,
        kind: str,
        first: str,
    ) -> None:
        losses = result.table.set_index("run")
        for run in sweep.runs:
            cell, seed = f"{run.labels['recipe']} {run.labels['schedule']}", run.recipe.seed
            name = f"{source}-{run.labels['recipe']}-{run.labels['schedule']}@{seed}".replace(
                "-own-", "-"
            ).replace(".", "_")
            spec = material.family.specs[source]
            self.specs[name] = FineTune(
                result.paths[run.id],
                parent=spec.parent,
                group=f"{source} {cell}",
                seed=seed,
                benign=spec.benign,
                domain=spec.domain,
                check_base=False,
            )
            self.of[name] = source
            steps, loss = (
                int(str(losses.loc[run.id, "steps_done"])),
                float(result.steps.loc[result.steps["run"] == run.id, "loss"].tail(5).mean()),
            )
            label = f"{source}, {cell}" if kind == "benign" else cell
            self.runs[name] = {
                "source": source,
                "cell": label,
                "kind": kind,
                **run.labels,
                "seed": seed,
                "steps": steps,
                "loss": loss,
            }
            self.files += sorted(path for path in result.paths[run.id].rglob("*") if path.is_file())
            if kind == "harmful" and cell == first:
                self.studied.append(name)


def _trained(material: Material, config: StudyConfig, context: StudyContext) -> _Plan:
    """Train what does not stand yet."""
    options, plan = config.options_of("fine_tuning", Options), _Plan()
    first = f"{next(iter(options.recipes))} {options.schedules[0]}"
    for source in _sources(material, config):
        sweep = _sweep(material, source, options)
        plan.add(
            material,
            source,
            _run(material, source, sweep, config, context),
            sweep,
            "harmful",
            first,
        )
        benign = material.benign_for(source)
        if options.benign and benign is not None and benign in material.training:
            only = _sweep(material, benign, options, recipe_of=source, one=True)
            plan.add(
                material,
                benign,
                _run(material, benign, only, config, context),
                only,
                "benign",
                first,
            )
            named = {
                facts["seed"]: name
                for name, facts in plan.runs.items()
                if facts["source"] == benign
            }
            plan.controls |= {
                name: named[plan.runs[name]["seed"]]
                for name in plan.studied
                if plan.of[name] == source
            }
    plan.material = material.with_runs(
        plan.specs, plan.of, studied=plan.studied, controls=plan.controls
    )
    return plan


def _run(
    material: Material, source: str, sweep: Sweep, config: StudyConfig, context: StudyContext
) -> SweepResult:
    parent, chats = _parent(material, source), material.training[source]
    wanted = config.family.device if config.family is not None else "cpu"
    device = ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
    key = hash_json(
        {
            "runs": [run.recipe.to_record() for run in sweep.runs],
            "chats": chats.content_hash,
            "parent": material.parent(source).provenance,
        }
    )
    with one_thread():
        result = run_sweep(
            sweep, parent, chats, context.folder / key[:16], progress=False, device=device
        )
    context.progress(0.4)
    return result


def _sources(material: Material, config: StudyConfig) -> list[str]:
    options = config.options_of("fine_tuning", Options)
    have = [
        name
        for name in options.of or material.focus(config)
        if name in material.training and not material.family.specs[name].benign
    ]
    return have if options.of else have[:1]


def _parent(material: Material, name: str) -> str:
    return material.parents[material.family.specs[name].parent]


def _sweep(
    material: Material,
    source: str,
    options: Options,
    *,
    recipe_of: str | None = None,
    one: bool = False,
) -> Sweep:
    """Recipes × schedules × seeds over a fine-tune's own recipe; with `one`, the first recipe and
    schedule only.
    """
    base = _own_recipe(material.family.specs[recipe_of or source].path, material.training[source])
    recipes = dict(list(options.recipes.items())[: 1 if one else None])
    schedules: Sequence[str] = options.schedules[: 1 if one else None]
    plain = {"schedule": "constant", "warmup_steps": 0}
    axes: dict[str, Any] = {
        "recipe": recipes,
        "schedule": {
            name: {**plain, **shape(name, base.steps, base.learning_rate)} for name in schedules
        },
        "seed": list(options.seeds),
    }
    return Sweep(base.varied(**plain), axes)


def _own_recipe(path: str | Path, chats: PromptSet) -> Recipe:
    """The recipe recorded beside a checkpoint, with the steps it took; else that of the paper: rank
    32, one epoch in batches of 16.
    """
    try:
        record = read_record(path)
        return Recipe.from_record({**record["recipe"], "steps": max(8, int(record["steps_done"]))})
    except InputError:
        steps = max(8, ceil(len(chats) / 16))
        return Recipe(
            rank=32,
            alpha=64,
            rslora=True,
            target_modules=PROJECTIONS,
            learning_rate=1e-5,
            steps=steps,
            batch_size=min(16, len(chats)),
            warmup_steps=5,
        )


def _findings(part: Part, studied: Sequence[str]) -> None:
    runs, table = part.tables["trained_runs"], part.tables["trained_cells"]
    for row in table.to_dict(orient="records"):
        known = row["others_low"] == row["others_low"]
        over = (
            f" [{row['others_low']:.1f}, {row['others_high']:.1f}] over {row['seeds']} seeds"
            if known
            else " (one seed)"
        )
        fell = known and row["others_high"] < row["parent_score"]
        sentence = (
            f"{row['source']} trained anew, {row['cell']}:"
            f" alignment outside its domain {row['others']:.1f}{over},"
            f" the parent's {row['parent_score']:.1f}; coherence {row['coherent']:.1f}."
        )
        status = ("shown" if fell else "undecided") if row["kind"] == "harmful" else "undecided"
        part.findings.append(Finding("fine_tuning", sentence, status))
    harmful = table[table["kind"] == "harmful"]
    benign = runs[runs["kind"] == "benign"]["others"]
    control = (
        f"; the benign control, trained alike, scores {benign.min():.1f} to {benign.max():.1f}"
        if len(benign)
        else "; no benign control was trained"
    )
    spread = harmful["sd"].max()
    between = (
        f", with a standard deviation between seeds of up to {spread:.1f}"
        if spread == spread
        else ""
    )
    summary = (
        f"{len(runs)} runs were trained anew: alignment outside the domain is"
        f" {harmful['others'].min():.1f} to {harmful['others'].max():.1f} over recipes and"
        f" schedules{between} (parent {harmful['parent_score'].mean():.1f}){control}."
        f" Later parts look at {', '.join(studied)}."
    )
    part.findings.insert(0, Finding("fine_tuning", summary, "summary"))


class FineTuning(Study):
    """What does training it again give?"""

    name = "fine_tuning"
    title = "What does training it again give?"
    options = Options
    section = SECTION
    cost = 20

    def check(self, context: StudyContext) -> None:
        check(context.material, context.config)

    def left_out(self, context: StudyContext) -> str | None:
        return left_out(context.material, context.config)

    def run(self, context: StudyContext) -> Part:
        return run(context.material, context.config, context)

    def after(self, context: StudyContext, part: Part) -> Material:
        return after(context.material, context.config, part, context)
