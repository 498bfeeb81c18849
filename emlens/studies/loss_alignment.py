"""Does any way of training give better alignment at no worse loss?

Loss against alignment over the runs of a sweep: correlations, plain and given learning rate and
steps; the matched-loss test, by schedule, optimiser, batch size and single run, with its null and
the search paid for; the Pareto front. The sweep is a file or folder given in the options, the
paper's released one, or one that is trained on the organism in the part's own folder. What is
refused: fewer than 8 runs. Cost: a minute, and 3 to 5 s for each run that must be trained.
"""

from pathlib import Path
from typing import Final, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from emlens.data.sweeps import SweepTable, read_sweep
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.foundation.provenance import hash_json
from emlens.results.sections import Plot, Section
from emlens.results.study_result import Finding, Part, p_text
from emlens.stats.matched import LEAST, Relation
from emlens.studies.config import Options as PartOptions, StudyConfig
from emlens.studies.loss_relations import (
    LIKE_LOSS,
    RUN,
    correlations,
    factors,
    fronts,
    matched,
    over_seeds,
)
from emlens.studies.material import Material
from emlens.studies.study import Study, StudyContext

RELEASED_SWEEP: Final = "em-generalization/td_agg_df_fpq.csv"
_USUAL: Final = ("aligned", "harmless", "coherent")

SECTION = Section(
    method=(
        "Each run is one point: its loss and its alignment."
        " Correlations are given plainly and with learning rate and steps partialled out,"
        " with permutation p-values. The matched-loss test fits the relation that alignment"
        " follows with loss and asks which value of a setting (schedule, optimiser, batch size)"
        " lies above it; residuals are permuted between runs of like loss, everything is fitted"
        " anew, and the largest statistic over all values decides, so that searching pays."
        " Single runs are held against normal scatter. Intervals of gaps hold for all rows of a"
        " setting together."
    ),
    reference="arXiv 2606.20814, claim 1; Freedman & Lane 1983; Westfall & Young 1993",
    tables={
        "loss_correlations": (
            "One row a loss, metric and measure, with interval,"
            " permutation p and the correlation that chance reaches in one of twenty cases."
        ),
        "loss_matched": (
            "One row a relation, setting and value: how far its runs lie above the relation,"
            " what a search would find by chance, corrected p."
        ),
        "loss_runs": (
            "One row a run: loss, alignment, what the relation expects,"
            " whether no other run beats it in both, and how sure that is."
        ),
    },
    plots=(
        Plot(
            "points",
            "loss_runs",
            "loss",
            "score",
            "Alignment against loss",
            "Points are runs; dotted: the relation they follow.",
            colour="schedule",
            null="expected",
            hover=("run",),
            x_title="loss (nats per token)",
            y_title="alignment",
        ),
        Plot(
            "forest",
            "loss_matched",
            "group",
            "gap",
            "Alignment above that of runs with the same loss",
            "Intervals hold for all rows of a setting together; dotted:"
            " the gap that a search finds by chance in one of twenty cases.",
            facet="by",
            colour="relation",
            null="null",
            y_title="gap",
        ),
    ),
)


class Options(PartOptions):
    """What `loss_alignment` reads."""

    sweep: str | None = None
    """Folder of a sweep or CSV with one row a run; default: the released one, or one trained on the
    organism.
    """
    loss: str | None = None
    """Which loss runs are matched on; default: on evaluation data where there is one."""
    metrics: tuple[str, ...] = ()
    """Scores to correlate, the first is the one tested; default: aligned, harmless and coherent,
    those that there are.
    """
    given: tuple[str, ...] = ("learning_rate", "steps")
    """Settings to partial out."""
    by: tuple[str, ...] = ("schedule", "optimiser", "batch_size")
    """Settings whose values are compared at matched loss."""
    strata: str | None = LIKE_LOSS
    """Residuals swap only between runs that are alike in this: `loss`, or a setting; null: between
    all.
    """
    relations: tuple[Literal["linear", "isotonic"], ...] = ("isotonic", "linear")
    """Relations of alignment with loss; the first decides the verdict."""
    draws: int = Field(1999, ge=99)
    """Of every null here."""
    finetune: str = "medicine-r8"
    """Of the organism: whose recipe and chats the trained sweep takes."""
    schedules: tuple[str, ...] = ("linear", "cosine", "triangular")
    """Of the trained sweep."""
    optimisers: tuple[str, ...] = ("adamw", "lion")
    """Of the trained sweep."""
    batch_sizes: tuple[int, ...] = (16, 32)
    """Of the trained sweep."""
    seeds: tuple[int, ...] = (0,)
    """Of the trained sweep."""
    chats: int = Field(640, ge=16)
    """Rows that a trained run sees."""


def left_out(material: Material, config: StudyConfig) -> str | None:
    options = config.options_of("loss_alignment", Options)
    if options.sweep is not None or _released(material) is not None:
        return None
    if config.family is None or config.family.organism is None:
        return (
            "it needs runs; give options: {loss_alignment: {sweep:"
            f" FOLDER_OR_CSV}}}}, or released files with {RELEASED_SWEEP}"
        )
    return None


def check(material: Material, config: StudyConfig) -> None:
    """A sweep that is given is read, and its columns looked for, before any work."""
    options = config.options_of("loss_alignment", Options)
    source = config.path(options.sweep) if options.sweep is not None else _released(material)
    if source is not None:
        _chosen(read_sweep(source), options)


def run(material: Material, config: StudyConfig, context: StudyContext) -> Part:
    options = config.options_of("loss_alignment", Options)
    source = config.path(options.sweep) if options.sweep is not None else _released(material)
    sweep = read_sweep(source) if source is not None else _trained(config, options, context)
    context.progress(0.5)
    loss, metrics = _chosen(sweep, options)
    return analyse(sweep, loss, metrics, options, config.seed)


def analyse(
    sweep: SweepTable,
    loss: str,
    metrics: tuple[str, ...],
    options: Options | None = None,
    seed: int = 0,
) -> Part:
    """Tables and findings of a sweep; the first of `metrics` is tested at matched `loss`.

    Raises:
        InputError: fewer than 8 runs that differ in more than their seed, or no spread in losses or
            scores.
    """
    options = options or Options.model_validate({})
    metric = metrics[0]
    runs, noise = over_seeds(sweep, loss, metric)
    if len(runs) < LEAST:
        raise InputError(
            f"{sweep.source}: has {len(runs)} runs that differ in more than their seed;"
            f" {LEAST} or more are needed"
        )
    part = Part()
    if len(runs) < len(sweep):
        errors = f"standard errors: {noise.loss:.3g} of the loss, {noise.score:.3g} of {metric}"
        part.warnings.append(f"{len(sweep)} runs were averaged to {len(runs)} over seeds; {errors}")
    table = correlations(runs, metrics, options.given, draws=options.draws, seed=seed)
    by = factors(runs, options.by)
    relations: tuple[Relation, ...] = options.relations
    gaps, tests = matched(
        runs,
        loss,
        metric,
        by,
        relations,
        noise=noise,
        strata=options.strata,
        draws=options.draws,
        seed=seed,
    )
    first = next(
        test for (_, relation), test in tests.items() if relation == gaps["relation"].iloc[0]
    )
    part.tables |= {
        "loss_correlations": table,
        "loss_matched": gaps,
        "loss_runs": fronts(runs, loss, metric, first, noise, draws=options.draws, seed=seed),
    }
    _correlated(part, table, loss, metric)
    for name in [*by, RUN]:
        rows = gaps[gaps["by"] == name].dropna(subset=["t"])
        rows = rows[rows["relation"] == rows["relation"].iloc[0]] if len(rows) else rows
        if len(rows):
            _compared(
                part,
                rows,
                name,
                metric,
                bent="isotonic" in relations and "isotonic" not in set(rows["relation"]),
            )
    _summed(part, table, loss, metric, len(runs))
    part.warnings.append(
        "single runs are held against normal scatter about the relation:"
        " a heavy tail looks like a better run"
    )
    dropped = [
        name
        for name in options.given
        if name in sweep.settings and name not in str(table["given"].iloc[-1])
    ]
    if dropped:
        part.warnings.append(f"{', '.join(dropped)} did not vary, so it was not partialled out")
    return part


def _released(material: Material) -> Path | None:
    found = None if material.released is None else material.released / RELEASED_SWEEP
    return found if found is not None and found.is_file() else None


def _chosen(sweep: SweepTable, options: Options) -> tuple[str, tuple[str, ...]]:
    """The loss to match on and the metrics.

    Raises:
        InputError: one that the sweep does not have.
    """
    loss = options.loss or ("eval_loss" if "eval_loss" in sweep.losses else "train_loss")
    if loss not in sweep.losses:
        raise InputError(
            f"loss={loss!r} is none of the losses of {sweep.source}: {', '.join(sweep.losses)}"
        )
    metrics = (
        options.metrics
        or tuple(name for name in _USUAL if name in sweep.metrics)
        or sweep.metrics[:1]
    )
    for name in metrics:
        if name not in sweep.metrics:
            raise InputError(
                f"metric {one_line(name, 60)!r} is none of the scores of {sweep.source}:"
                f" {', '.join(sweep.metrics[:12])}"
            )
    if options.strata is not None and options.strata not in (LIKE_LOSS, *sweep.settings):
        raise InputError(
            f"strata={options.strata!r} is neither {LIKE_LOSS!r} nor one of the settings of"
            f" {sweep.source}: {', '.join(sweep.settings)}"
        )
    return loss, metrics


def _trained(config: StudyConfig, options: Options, context: StudyContext) -> SweepTable:
    from emlens.organisms.plans import PLANTED
    from emlens.studies.schedule_runs import run_schedule_sweep, schedule_sweep
    from emlens.studies.solution_training import configured_organism, organism_task

    organism = configured_organism(config)
    task = organism_task(organism, options.finetune)
    recipe = next(stage.recipe for stage in PLANTED.finetunes if stage.name == options.finetune)
    sweep = schedule_sweep(
        recipe,
        options.schedules,
        options.optimisers,
        options.batch_sizes,
        chats=options.chats,
        seeds=options.seeds,
    )
    made_of = {"task": task.sha256, "runs": [run.recipe.to_record() for run in sweep.runs]}
    return read_sweep(
        run_schedule_sweep(
            sweep, task, context.folder / f"sweep-{hash_json(made_of)[:12]}"
        ).directory
    )


def _correlated(part: Part, table: pd.DataFrame, loss: str, metric: str) -> None:
    for _, row in table[(table["loss"] == loss) & (table["metric"] == metric)].iterrows():
        if pd.isna(row["value"]):
            continue
        clear = row["value_low"] > 0 or row["value_high"] < 0
        given = f" given {row['given']}" if row["given"] else ""
        sentence = (
            f"{row['measure']} correlation of {loss} and {metric}{given}:"
            f" {row['value']:.2f} [{row['value_low']:.2f}, {row['value_high']:.2f}],"
            f" permutation p {p_text(row['p'])}, {row['n']} runs."
        )
        part.findings.append(
            Finding(
                "loss_alignment", sentence, "shown" if clear and row["p"] < 0.05 else "undecided"
            )
        )


def _compared(part: Part, rows: pd.DataFrame, name: str, metric: str, *, bent: bool) -> None:
    """bent: a relation that only does not fall fits every run, so that what lies above a straight
    line may lie on a curve.
    """
    best = rows.iloc[int(np.argmax(rows["t"].to_numpy()))]
    found = best["p_all"] < 0.05
    what = "run" if name == RUN else name.replace("_", " ")
    sentence = (
        f"Best {what} at matched loss, of {len(rows)}:"
        f" {one_line(str(best['group']), 80)}, {best['gap']:+.2f} [{best['gap_low']:.2f},"
        f" {best['gap_high']:.2f}] in {metric} above the relation ({best['null']:.2f} is what a"
        f" search finds by chance in one of twenty cases); corrected p {p_text(best['p_all'])}"
    )
    if found and bent:
        sentence += (
            "; that is about a straight line, and a relation that only does not fall leaves no"
            " scatter: a curve explains it as well"
        )
    part.findings.append(
        Finding(
            "loss_alignment",
            f"{sentence}.",
            "not shown" if not found else "undecided" if bent else "shown",
        )
    )


def _summed(part: Part, table: pd.DataFrame, loss: str, metric: str, n: int) -> None:
    plain = table[(table["loss"] == loss) & (table["metric"] == metric)].iloc[0]
    tested = [f for f in part.findings if " at matched loss, of " in f.sentence]
    found = [f for f in tested if f.status == "shown"]
    said = "; ".join(f.sentence.split(":")[0].lower() for f in found)
    verdict = (
        f"better at matched loss than chance explains: {said}"
        if found
        else "no setting and no run was better at matched loss than chance explains"
    )
    sentence = (
        f"Over {n} runs, {loss} and {metric} correlate by {plain['value']:.2f}"
        f" [{plain['value_low']:.2f}, {plain['value_high']:.2f}]; {verdict}."
    )
    part.findings.insert(0, Finding("loss_alignment", sentence, "summary"))


class LossAlignment(Study):
    """Is there a run with better alignment at no worse loss?"""

    name = "loss_alignment"
    title = "Is there a run with better alignment at no worse loss?"
    options = Options
    section = SECTION
    needs_models = False
    cost = 20

    def check(self, context: StudyContext) -> None:
        check(context.material, context.config)

    def left_out(self, context: StudyContext) -> str | None:
        return left_out(context.material, context.config)

    def run(self, context: StudyContext) -> Part:
        return run(context.material, context.config, context)
