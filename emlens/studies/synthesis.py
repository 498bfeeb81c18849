"""The last stage: every number beside itself over seeds, and the best training configuration, with
what choosing by a forecast costs.

It computes nothing of its own from models: it reads the tables of the parts before it. With one
seed nothing can be laid side by side, and with fewer than 8 runs no choosing is judged; both are
said.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from emlens.foundation.files import one_line
from emlens.models import FineTune
from emlens.probes.ranking import LEAST_RUNS, rank_configurations
from emlens.probes.run_forecasts import forecast_runs
from emlens.results.columns import Measure
from emlens.results.sections import Plot, Section
from emlens.results.study_result import Finding, Part, p_text
from emlens.results.tables import Table
from emlens.results.vocabulary import measures, word
from emlens.results.wording import counted, noun_for
from emlens.studies.headlines import (
    HEADLINE,
    SIDE_BY_SIDE,
    averaged,
    findings_of,
    headlines,
    side_by_side,
)
from emlens.studies.material import Material
from emlens.studies.run_predictors import LOSS, RunPredictors, run_predictors
from emlens.studies.study import Study, StudyContext

SECTION = Section(
    method=(
        "Each number of the parts above is averaged over the seeds of one recipe and schedule;"
        " the interval is a t interval over seeds, wide with few of them,"
        " and the range shows how far seeds lie apart. Whether it lies beyond its null is read from"
        " the difference of both in each seed; seeds share prompts and questions, so the spread of"
        " the null’s draws (or of the number’s own interval over questions) is added to that"
        " between seeds. Harmful and benign fine-tunes of one group stand"
        " apart. Choosing is judged by regret, how much better the best run was:"
        " alignment outside the domain is forecast from training loss,"
        " steps and alignment inside the domain, learnt from one half of the runs (of recipes and"
        " schedules, where there are 8), and the best forecast in the other half is taken,"
        " over many halves. It is compared with taking the lowest loss, taking any run,"
        " and the same procedure on shuffled scores."
        " Which predictors forecast a run (the loss, the overlap of shifts, activations before"
        " training; alone and together, by ridge and by a forest) is asked with whole recipes or"
        " fine-tunes held out, beside the mean of the other runs and the loss alone."
        " The best of them is chosen inside each fold, and only that choice is tested:"
        " its p is of the whole procedure on scores that were shuffled between recipes."
    ),
    reference=(
        "Stages after arXiv 2606.20814."
        " Nested selection: Varma and Simon (2006), doi:10.1186/1471-2105-7-91."
    ),
    tables={
        "numbers": Table(
            "One row per fine-tune and number, with its own interval and its null.",
            [*HEADLINE, "group kind seed"],
        ),
        "over_seeds": Table(
            "One row per number and group of runs that differ in their seed alone:"
            " mean, t interval, spread, range, mean null; beyond: value − null.",
            ["group kind", *SIDE_BY_SIDE],
        ),
        "configurations": Table(
            "One row per run and way to choose: forecast from the other runs, what was observed."
            " No ranking: see choice.",
            ["run by forecast observed"],
        ),
        "predictors": Table(
            "One row per set of predictors and estimator, and one for the choice inside the folds:"
            " R² against the mean of the other runs, the same against the loss alone, its null on"
            " shuffled scores. Only the choice is tested; rows above it describe.",
            [
                "predictor estimator",
                Measure(word("r2"), null="null_mean"),
                *measures("over_loss"),
                "null_mean null_q95 p n units",
            ],
        ),
        "choice": Table(
            "One row per way to choose: its regret among runs not seen, that of any run,"
            " the gain over the lowest loss, p against shuffled scores.",
            [
                "by",
                Measure(word("regret"), null="null"),
                "null",
                *measures("gain spearman"),
                "p",
            ],
            optional=["n splits"],
        ),
    },
    plots=(
        Plot(
            "forest",
            "predictors",
            "predictor",
            "r2",
            "What forecasts a run",
            "R² against the mean of the other runs, with 95 % intervals over units;"
            " dotted: its mean on shuffled scores.",
            colour="estimator",
            null="null_mean",
            hover=("over_loss", "over_loss_low", "over_loss_high", "p", "n"),
        ),
        Plot(
            "forest",
            "over_seeds",
            "group",
            "mean",
            "Over seeds",
            "Mean with a 95 % t interval over seeds; dotted: the mean null.",
            colour="kind",
            facet="number",
            null="null",
            hover=(
                "beyond",
                "beyond_low",
                "beyond_high",
                "sd",
                "lowest",
                "highest",
                "n",
                "null_is",
            ),
        ),
        Plot(
            "points",
            "configurations",
            "forecast",
            "observed",
            "Forecast and observed alignment of each run",
            "Each run forecast from the others; without information such forecasts fall as the"
            " observed score rises.",
            colour="by",
            hover=("run",),
        ),
    ),
)


class Synthesis(Study):
    """Lays the numbers of the parts before it side by side over seeds."""

    name = "synthesis"
    title = "What holds over seeds, and what does choosing a configuration cost?"
    section = SECTION
    runs_on_captures = True
    cost = 1

    def left_out(self, context: StudyContext) -> str | None:
        if context.config.study == self.name:
            return "it sums up the parts before it; run study full"
        return None

    def run(self, context: StudyContext) -> Part:
        tables: dict[str, pd.DataFrame] = {}
        for earlier in context.parts.values():
            tables |= earlier.tables
        part = Part()
        part.tables["numbers"] = _with_seeds(headlines(tables), context.material)
        _lay_over_seeds(part)
        if "trained_runs" in tables:
            _judge_choosing(part, tables["trained_runs"], tables, context.config.seed)
        else:
            part.warnings.append("no runs were trained here, so no configuration is chosen")
        return part


def _with_seeds(numbers: pd.DataFrame, material: Material) -> pd.DataFrame:
    """The numbers with group, kind and seed of the fine-tune that each is of."""
    specs = material.family.specs if material.has_models else {}
    groups, kinds, seeds = [], [], []
    for name in numbers["model"]:
        spec = specs.get(name, FineTune(""))
        groups.append(spec.group or name)
        kinds.append("benign" if spec.benign else "harmful")
        seeds.append(spec.seed)
    return numbers.assign(group=groups, kind=kinds, seed=seeds)


def _lay_over_seeds(part: Part) -> None:
    """The table over seeds and its findings; a warning where no group has several seeds."""
    numbers = part.tables["numbers"]
    part.warnings += _shared_seeds(numbers)
    by_seed = averaged(numbers, ["group", "kind", "seed"])
    if len(by_seed):
        seeds = by_seed.groupby(["number", "group", "kind"])["seed"].transform("size")
        by_seed = by_seed[seeds > 1]
    table = side_by_side(by_seed, ["group", "kind"])
    part.tables["over_seeds"] = table
    if not len(table):
        part.warnings.append(
            "no group of fine-tunes has several seeds: nothing can be laid side by side,"
            " and single runs do not hold up"
        )
        return
    labels = table["group"] + " (" + table["kind"] + "), " + table["number"]
    part.findings += findings_of(table, Synthesis.name, "seeds", list(labels))


def _shared_seeds(numbers: pd.DataFrame) -> list[str]:
    """Warnings of fine-tunes of one group that have one seed."""
    warnings = []
    for (group, kind, seed), rows in numbers.groupby(["group", "kind", "seed"], sort=False):
        names = rows["model"].unique()
        if len(names) > 1:
            examples = ", ".join(one_line(str(name), 40) for name in names[:4])
            warnings.append(
                f"{kind} fine-tunes of group {one_line(str(group))!r} share seed {seed}"
                f" ({examples}): they are averaged, not counted as seeds"
            )
    return warnings


def _judge_choosing(
    part: Part, runs: pd.DataFrame, tables: Mapping[str, pd.DataFrame], seed: int
) -> None:
    """Which predictors forecast a run, and what choosing a configuration by a forecast costs; a
    warning where that cannot be judged.
    """
    harmful = runs[runs["kind"] == "harmful"]
    if len(harmful) < LEAST_RUNS:
        part.warnings.append(
            f"{counted(len(harmful), 'run')} {noun_for(len(harmful), 'is', 'are')} too few to"
            f" choose a configuration; {LEAST_RUNS} are needed"
        )
        return
    if harmful["loss"].isna().any() or harmful["loss"].nunique() < 2:
        part.warnings.append("the runs do not differ in their loss: no configuration is chosen")
        return
    predictors = run_predictors(harmful, tables)
    part.warnings += predictors.missing
    best = _compare_predictors(part, predictors, seed)
    _cost_of_choosing(part, predictors, best, seed)


def _compare_predictors(part: Part, predictors: RunPredictors, seed: int) -> tuple[str, str] | None:
    """Table and finding of the sets of predictors; the best set and estimator, None where nothing
    beats the mean of the other runs or nothing can be judged.
    """
    n_units, units = predictors.n_units, predictors.units
    if n_units < LEAST_RUNS:
        part.warnings.append(
            f"what forecasts a run cannot be judged: {len(predictors.runs)} runs are {n_units}"
            f" {units}, whose seeds are held out together; {LEAST_RUNS} are needed"
        )
        return None
    forecasts = forecast_runs(
        predictors.runs,
        target="others",
        sets=predictors.sets,
        units="unit",
        loss=LOSS if LOSS in predictors.sets else None,
        seed=seed,
    )
    part.tables["predictors"] = forecasts.table
    row = forecasts.table.iloc[-1]
    skill = (
        f"R² {row['r2']:.2f} [{row['r2_low']:.2f}, {row['r2_high']:.2f}],"
        f" p {p_text(float(row['p']))} on shuffled scores"
    )
    if forecasts.best is None:
        sentence = (
            f"Nothing that is known before the evaluation ({', '.join(predictors.sets)}) is shown"
            f" to forecast the alignment of {len(predictors.runs)} runs better than the mean of the"
            f" other runs does, with {n_units} {units} held out whole: chosen inside the folds,"
            f" {skill}. No predictor is named best."
        )
        part.findings.append(Finding(Synthesis.name, sentence, "not shown"))
        return None
    name, estimator = forecasts.best
    sentence = (
        f"The alignment of {len(predictors.runs)} runs is forecast better than by the mean of the"
        f" other runs, with {n_units} {units} held out whole: predictors chosen inside the folds"
        f" reach {skill} ({_against_loss(row)}). Over all runs, {name} by {estimator}"
        " is chosen."
    )
    part.findings.append(Finding(Synthesis.name, sentence, "shown"))
    return forecasts.best


def _against_loss(row: "pd.Series[Any]") -> str:
    """R² against the loss alone, or why there is none."""
    if pd.isna(row["over_loss"]):
        return "the loss is the only predictor"
    return (
        f"against the loss alone {row['over_loss']:.2f} [{row['over_loss_low']:.2f},"
        f" {row['over_loss_high']:.2f}]"
    )


def _cost_of_choosing(
    part: Part, predictors: RunPredictors, best: tuple[str, str] | None, seed: int
) -> None:
    """What choosing a configuration by a forecast costs in runs that it was not learnt from."""
    runs = predictors.runs
    features = list(dict.fromkeys(name for names in predictors.sets.values() for name in names))
    for name in ("steps", "own"):
        if runs[name].notna().all() and runs[name].nunique() > 1:
            features.append(name)
    # a unit is left out whole, so that runs that differ in their seed alone do not inform each
    # other
    clusters = "unit" if predictors.n_units >= LEAST_RUNS else None
    if clusters is None:
        part.warnings.append(
            f"{predictors.n_units} configurations: both halves hold seeds of one,"
            " so what choosing costs is that of a further seed"
        )
    ranking = rank_configurations(
        runs,
        target="others",
        features=features,
        loss="loss",
        clusters=clusters,
        permutations=99,
        seed=seed,
    )
    part.tables["configurations"] = ranking.table
    part.tables["choice"] = ranking.choices
    cost = ranking.choices.set_index("by").loc["linear"]
    sentence = (
        f"Choosing a configuration by a forecast from {', '.join(features)} costs"
        f" {cost['regret']:.1f} [{cost['regret_low']:.1f}, {cost['regret_high']:.1f}] points of"
        " alignment in the half of the runs that it was not learnt from, taking any run"
        f" {cost['null']:.1f}."
    )
    if best is None:
        sentence += " No configuration is named best: no forecast of them is shown to hold."
    else:
        means = runs.groupby("unit")["others"].mean()
        sentence += (
            f" Of those measured, {means.idxmax()} has the highest mean alignment outside the"
            f" domain, {means.max():.1f}; it was found on these scores, so expect less of it."
        )
    part.findings.append(Finding(Synthesis.name, sentence, "undecided"))
