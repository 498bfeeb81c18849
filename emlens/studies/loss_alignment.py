"""Does any way of training give better alignment at no worse loss?

Loss against alignment over the runs of a sweep: correlations, plain and given learning rate and
steps; the matched-loss test, by schedule, optimiser, batch size and single run, with its null and
the search paid for; the Pareto front. The sweep is a file or folder given in the options, the
paper's released one, or one that is trained on the organism in the part's own folder. What is
refused: fewer than 8 runs. Cost: a minute, and 3 to 5 s for each run that must be trained.
"""

from pathlib import Path
from typing import Final, Literal

import pandas as pd
from pydantic import Field

from emlens.data.sweeps import SweepTable, read_sweep
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.foundation.provenance import hash_json
from emlens.organisms.plans import PLANTED
from emlens.results.sections import Plot, Section
from emlens.results.study_result import Part
from emlens.results.tables import Table
from emlens.results.vocabulary import measures
from emlens.stats.matched import LEAST
from emlens.studies.config import Options as PartOptions
from emlens.studies.loss_findings import (
    add_correlation_findings,
    add_matched_findings,
    add_summary,
)
from emlens.studies.loss_relations import (
    LIKE_LOSS,
    MatchedOptions,
    correlations,
    factors,
    fronts,
    matched,
    over_seeds,
)
from emlens.studies.schedule_runs import run_schedule_sweep, schedule_sweep
from emlens.studies.solution_training import configured_organism, organism_task
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
        " again, and the largest statistic over all values decides, so that searching pays."
        " Single runs are compared with normal scatter. Intervals of gaps hold for all rows of a"
        " setting together."
    ),
    reference="arXiv 2606.20814, claim 1; Freedman & Lane 1983; Westfall & Young 1993",
    tables={
        "loss_correlations": Table(
            "One row per loss, metric and measure, with interval, permutation p"
            " and the correlation that chance reaches in one of twenty cases.",
            ["loss_name metric measure given", *measures("value"), "n p null_q95"],
        ),
        "loss_matched": Table(
            "One row per relation, setting and value: how far its runs lie above the relation,"
            " what a search would find by chance, corrected p.",
            ["by relation group n loss", *measures("gap"), "null_q95 statistic p p_all"],
        ),
        "loss_runs": Table(
            "One row per run: loss, alignment, what the relation expects,"
            " whether no other run beats it in both, and how sure that is.",
            ["run loss score expected front membership membership_null"],
            further="settings of the run",
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
            null="null_q95",
            y_title="gap",
        ),
    ),
)


NO_SCHEDULE: Final = "not said"
"""Of runs whose sweep names no schedule."""


class Options(PartOptions):
    """What `loss_alignment` reads."""

    sweep: str | None = None
    """Folder of a sweep, or CSV with one row per run; default: the released one, or one trained on
    the organism.
    """
    loss: str | None = None
    """Which loss runs are matched on; default: on evaluation data where there is one."""
    metrics: tuple[str, ...] = ()
    """Scores to correlate, the first is the one tested; default: aligned, harmless and coherent,
    as far as the sweep has them.
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


class LossAlignment(Study):
    """Is there a run with better alignment at no worse loss?"""

    name = "loss_alignment"
    title = "Is there a run with better alignment at no worse loss?"
    options = Options
    section = SECTION
    needs_models = False
    cost = 20

    def left_out(self, context: StudyContext) -> str | None:
        family = context.config.family
        if _source(context) is not None:
            return None
        if family is not None and family.organism is not None:
            return context.source.can("checkpoints")  # runs are trained here, and then scored
        return (
            "it needs runs; give options: {loss_alignment: {sweep:"
            f" FOLDER_OR_CSV}}}}, or released files with {RELEASED_SWEEP}"
        )

    def check(self, context: StudyContext) -> None:
        """A sweep that is given is read, and its columns looked for, before any work."""
        source = _source(context)
        if source is not None:
            columns_to_compare(read_sweep(source), context.options)

    def run(self, context: StudyContext) -> Part:
        source = _source(context)
        sweep = _trained(context) if source is None else read_sweep(source)
        context.progress(0.5)
        loss, metrics = columns_to_compare(sweep, context.options)
        return analyse(sweep, loss, metrics, context.options, context.config.seed)


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
    draws = options.draws
    table = correlations(runs, metrics, options.given, draws=draws, seed=seed)
    settings = factors(runs, options.by)
    matching = MatchedOptions(options.relations, options.strata, draws, seed)
    gaps, tests = matched(runs, loss, metric, settings, matching, noise)
    first_relation = gaps["relation"].iloc[0]
    first = next(test for (_, relation), test in tests.items() if relation == first_relation)
    part.tables["loss_correlations"] = table
    part.tables["loss_matched"] = gaps
    places = fronts(runs, loss, metric, first, noise, draws=draws, seed=seed)
    if "schedule" not in places:  # the figure tells schedules apart
        places = places.assign(schedule=NO_SCHEDULE)
    part.tables["loss_runs"] = places
    add_correlation_findings(part, loss, metric)
    add_matched_findings(part, settings, metric, options.relations)
    add_summary(part, loss, metric, len(runs))
    if len(runs) < len(sweep):
        part.warnings.append(
            f"{len(sweep)} runs were averaged to {len(runs)} over seeds;"
            f" standard errors: {noise.loss:.3g} of the loss, {noise.score:.3g} of {metric}"
        )
    part.warnings += _reading_warnings(sweep, table, options)
    return part


def _reading_warnings(sweep: SweepTable, table: pd.DataFrame, options: Options) -> list[str]:
    """How to read the tables, and which settings could not be partialled out of `table`."""
    warnings = [
        "single runs are compared with normal scatter about the relation:"
        " a heavy tail looks like a better run"
    ]
    partialled_out = str(table["given"].iloc[-1])
    constant = [
        name for name in options.given if name in sweep.settings and name not in partialled_out
    ]
    if constant:
        warnings.append(f"{', '.join(constant)} did not vary, so it was not partialled out")
    return warnings


def _source(context: StudyContext) -> Path | None:
    """Where the sweep is read: what the options name, else the released one; None if trained."""
    options: Options = context.options
    if options.sweep is not None:
        return Path(context.config.path(options.sweep))
    released = context.material.released
    if released is None or not (released / RELEASED_SWEEP).is_file():
        return None
    return released / RELEASED_SWEEP


def columns_to_compare(sweep: SweepTable, options: Options) -> tuple[str, tuple[str, ...]]:
    """The loss to match on and the metrics.

    Raises:
        InputError: one that the sweep does not have.
    """
    loss = options.loss
    if not loss:
        loss = "eval_loss" if "eval_loss" in sweep.losses else "train_loss"
    if loss not in sweep.losses:
        raise InputError(
            f"loss={loss!r} is none of the losses of {sweep.source}: {', '.join(sweep.losses)}"
        )
    metrics = _metrics_of(sweep, options)
    if options.strata is not None and options.strata not in (LIKE_LOSS, *sweep.settings):
        raise InputError(
            f"strata={options.strata!r} is neither {LIKE_LOSS!r} nor one of the settings of"
            f" {sweep.source}: {', '.join(sweep.settings)}"
        )
    return loss, metrics


def _metrics_of(sweep: SweepTable, options: Options) -> tuple[str, ...]:
    """The metrics that the options name; else the usual ones, or the first that there is."""
    usual = tuple(name for name in _USUAL if name in sweep.metrics)
    metrics = options.metrics or usual or sweep.metrics[:1]
    for name in metrics:
        if name not in sweep.metrics:
            raise InputError(
                f"metric {one_line(name, 60)!r} is none of the scores of {sweep.source}:"
                f" {', '.join(sweep.metrics[:12])}"
            )
    return metrics


def _trained(context: StudyContext) -> SweepTable:
    """A sweep that is trained on the organism, in the part's folder; finished runs are reused."""
    options: Options = context.options
    task = organism_task(configured_organism(context.config), options.finetune)
    recipe = next(stage.recipe for stage in PLANTED.finetunes if stage.name == options.finetune)
    sweep = schedule_sweep(
        recipe,
        options.schedules,
        options.optimisers,
        options.batch_sizes,
        chats=options.chats,
        seeds=options.seeds,
    )
    inputs = {
        "task": task.sha256,
        "runs": [run.recipe.to_record() for run in sweep.runs],
        "scores": context.source.name,
    }
    folder = context.folder / f"sweep-{hash_json(inputs)[:12]}"
    return read_sweep(run_schedule_sweep(sweep, task, folder, source=context.source).directory)
