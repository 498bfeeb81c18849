"""The last stage: every number beside itself over seeds, and the best training configuration, with
what choosing by a forecast costs.

It computes nothing of its own from models: it reads the tables of the parts before it. With one
seed nothing can be laid side by side, and with fewer than 8 runs no choosing is judged; both are
said.
"""

import pandas as pd

from emlens.foundation.files import one_line
from emlens.models import FineTune
from emlens.probes.ranking import LEAST_RUNS, rank_configurations
from emlens.results.columns import Measure
from emlens.results.sections import Plot, Section
from emlens.results.study_result import Finding, Part
from emlens.results.tables import Table
from emlens.results.vocabulary import measures, word
from emlens.studies.headlines import (
    HEADLINE,
    SIDE_BY_SIDE,
    averaged,
    findings_of,
    headlines,
    side_by_side,
)
from emlens.studies.material import Material
from emlens.studies.study import Study, StudyContext

SECTION = Section(
    method=(
        "Each number of the parts above is averaged over the seeds of one recipe and schedule;"
        " the interval is a t interval over seeds, wide with few of them,"
        " and the range shows how far seeds lie apart. Whether it lies beyond its null is read from"
        " the difference of both in each seed. Harmful and benign fine-tunes of one group stand"
        " apart. Choosing is judged by regret, how much better the best run was:"
        " alignment outside the domain is forecast from training loss,"
        " steps and alignment inside the domain, learnt from one half of the runs (of recipes and"
        " schedules, where there are 8), and the best forecast in the other half is taken,"
        " over many halves. It is compared with taking the lowest loss, taking any run,"
        " and the same procedure on shuffled scores."
    ),
    reference="Stages after arXiv 2606.20814.",
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
            optional=["n"],
        ),
    },
    plots=(
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
            _judge_choosing(part, tables["trained_runs"], context.config.seed)
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


def _judge_choosing(part: Part, runs: pd.DataFrame, seed: int) -> None:
    """What choosing a configuration by a forecast costs; a warning where that cannot be judged."""
    harmful = runs[runs["kind"] == "harmful"]
    if len(harmful) < LEAST_RUNS:
        part.warnings.append(
            f"{len(harmful)} runs are too few to choose a configuration; {LEAST_RUNS} are needed"
        )
        return
    table = harmful.set_index("run")
    features = []
    for name in ("loss", "steps", "own"):
        if table[name].notna().all() and table[name].nunique() > 1:
            features.append(name)
    if "loss" not in features:
        part.warnings.append("the runs do not differ in their loss: no configuration is chosen")
        return
    cells = harmful["cell"].nunique()
    # a cell is left out whole, so that runs that differ in their seed alone do not inform each
    # other
    clusters = "cell" if cells >= LEAST_RUNS else None
    if clusters is None:
        part.warnings.append(
            f"{cells} configurations: both halves hold seeds of one,"
            " so what choosing costs is that of a further seed"
        )
    ranking = rank_configurations(
        table,
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
    best = str(table["others"].idxmax())
    best_run = table.loc[best]
    sentence = (
        f"Best configuration of those measured: {best_run['cell']} (run {best}),"
        f" with alignment outside the domain of {best_run['others']:.1f}."
        f" Choosing by a forecast from {', '.join(features)} instead costs {cost['regret']:.1f}"
        f" [{cost['regret_low']:.1f}, {cost['regret_high']:.1f}] points in the half of the runs"
        f" that it was not learnt from, taking any run {cost['null']:.1f}."
    )
    part.findings.append(Finding(Synthesis.name, sentence, "undecided"))
