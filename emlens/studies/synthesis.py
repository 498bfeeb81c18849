"""The last stage: every number beside itself over seeds, and the best training configuration, with
what choosing by a forecast costs.

It computes nothing of its own from models: it reads the tables of the parts before it. With one
seed nothing can be laid side by side, and with fewer than 8 runs no choosing is judged; both are
said.
"""

import pandas as pd

from emlens.foundation.files import one_line
from emlens.probes.ranking import LEAST_RUNS, rank_configurations
from emlens.results.columns import Measure
from emlens.results.sections import Plot, Section
from emlens.results.study_result import Finding, Part
from emlens.results.tables import Table
from emlens.results.vocabulary import measures, word
from emlens.studies.config import StudyConfig
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
        " over many halves. Beside it stand taking the lowest loss, taking any run,"
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


def run(material: Material, config: StudyConfig, context: StudyContext) -> Part:
    part = Part()
    tables = {
        name: table for found in context.parts.values() for name, table in found.tables.items()
    }
    numbers = headlines(tables)
    specs = material.family.specs if material.has_models else {}
    known = [specs.get(name) for name in numbers["model"]]
    part.tables["numbers"] = numbers.assign(
        group=[
            spec.group if spec and spec.group else name
            for spec, name in zip(known, numbers["model"], strict=True)
        ],
        kind=["benign" if spec and spec.benign else "harmful" for spec in known],
        seed=[spec.seed if spec else 0 for spec in known],
    )
    _over_seeds(part)
    if "trained_runs" in tables:
        _choice(part, tables["trained_runs"], config)
    else:
        part.warnings.append("no runs were trained here, so no configuration is chosen")
    return part


def _over_seeds(part: Part) -> None:
    numbers = part.tables["numbers"]
    for (group, kind, seed), same in numbers.groupby(["group", "kind", "seed"], sort=False):
        if same["model"].nunique() > 1:
            names = ", ".join(one_line(str(name), 40) for name in same["model"].unique()[:4])
            part.warnings.append(
                f"{kind} fine-tunes of group {one_line(str(group))!r} share seed {seed} ({names}):"
                " they are averaged, not counted as seeds"
            )
    each = averaged(numbers, ["group", "kind", "seed"])
    several = (
        each[each.groupby(["number", "group", "kind"])["seed"].transform("size") > 1]
        if len(each)
        else each
    )
    table = part.tables["over_seeds"] = side_by_side(several, ["group", "kind"])
    if not len(table):
        part.warnings.append(
            "no group of fine-tunes has several seeds: nothing can be laid side by side,"
            " and single runs do not hold up"
        )
        return
    labels = [
        f"{row['group']} ({row['kind']}), {row['number']}"
        for row in table.to_dict(orient="records")
    ]
    part.findings += findings_of(table, "synthesis", "seeds", labels)


def _choice(part: Part, runs: pd.DataFrame, config: StudyConfig) -> None:
    harmful = runs[runs["kind"] == "harmful"]
    if len(harmful) < LEAST_RUNS:
        part.warnings.append(
            f"{len(harmful)} runs are too few to choose a configuration; {LEAST_RUNS} are needed"
        )
        return
    table = harmful.set_index("run")
    features = [
        name
        for name in ("loss", "steps", "own")
        if table[name].notna().all() and table[name].nunique() > 1
    ]
    if "loss" not in features:
        part.warnings.append("the runs do not differ in their loss: no configuration is chosen")
        return
    # else runs that differ in their seed alone inform each other
    together = "cell" if harmful["cell"].nunique() >= LEAST_RUNS else None
    if together is None:
        part.warnings.append(
            f"{harmful['cell'].nunique()} configurations: both halves hold seeds of one,"
            " so what choosing costs is that of a further seed"
        )
    ranking = rank_configurations(
        table,
        target="others",
        features=features,
        loss="loss",
        clusters=together,
        permutations=99,
        seed=config.seed,
    )
    part.tables["configurations"] = ranking.table
    part.tables["choice"] = ranking.choices
    cost = ranking.choices.set_index("by").loc["linear"]
    best = str(table["others"].idxmax())
    row = table.loc[best]
    part.findings.append(
        Finding(
            "synthesis",
            f"Best configuration of those measured: {row['cell']} (run {best}),"
            f" with alignment outside the domain of {row['others']:.1f}."
            f" Choosing by a forecast from {', '.join(features)} instead costs {cost['regret']:.1f}"
            f" [{cost['regret_low']:.1f}, {cost['regret_high']:.1f}] points in the half of the runs"
            f" that it was not learnt from, taking any run {cost['null']:.1f}.",
            "undecided",
        )
    )


class Synthesis(Study):
    """What holds over seeds, and what does choosing a configuration cost?"""

    name = "synthesis"
    title = "What holds over seeds, and what does choosing a configuration cost?"
    section = SECTION
    cost = 1

    def left_out(self, context: StudyContext) -> str | None:
        if context.config.study == self.name:
            return "it sums up the parts before it; run study full"
        return None

    def run(self, context: StudyContext) -> Part:
        return run(context.material, context.config, context)
