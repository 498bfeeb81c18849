"""The last stage: every number beside itself over seeds, and which training configuration to choose, with what choosing costs.

It computes nothing of its own from models: it reads the tables of the parts before it. With one seed nothing can be laid side by side,
and with fewer than 8 runs no configuration is chosen; both are said.
"""

import pandas as pd

from emlens.probes.ranking import LEAST_RUNS, rank_configurations
from emlens.studies.about import About, Plot
from emlens.studies.config import StudyConfig
from emlens.studies.headlines import headlines, side_by_side
from emlens.studies.material import Material
from emlens.studies.result import Finding, Part
from emlens.studies.running import Desk

COST = 1

ABOUT = About(
    title="What holds over seeds, and which configuration would one choose?",
    method=(
        "Each number of the parts above is averaged over the seeds of one recipe and schedule; the interval is a t interval over seeds, wide with few "
        "of them, and the range shows how far seeds lie apart. A configuration is chosen by forecasting each run's alignment outside the domain from its "
        "training loss, steps and alignment inside the domain, with that run left out (its recipe and schedule, where there are 8); regret is how much "
        "better the best run was. Beside it stand taking the lowest loss, taking any run, and the same procedure on shuffled scores."
    ),
    reference="Stages after arXiv 2606.20814.",
    tables={
        "numbers": "One row a fine-tune and number, with its own interval and its null.",
        "over_seeds": "One row a number and group of runs that differ in their seed alone: mean with t interval, spread, range, mean null.",
        "configurations": "One row a run and way to choose: forecast from the other runs, what was observed. No ranking: see choice.",
        "choice": "One row a way to choose: its regret among runs not seen, that of any run, the gain over the lowest loss, p against shuffled scores.",
    },
    plots=(
        Plot(
            "forest", "over_seeds", "group", "mean", "Over seeds", "Mean with a 95 % t interval over seeds; dotted: the mean null.",
            facet="number", null="null", hover=("sd", "lowest", "highest", "n", "null_is"),
        ),
        Plot(
            "points", "configurations", "forecast", "observed", "Forecast and observed alignment of each run",
            "Each run forecast from the others; without information such forecasts fall as the observed score rises.",
            colour="by", hover=("run",),
        ),
    ),
)  # fmt: skip


def run(material: Material, config: StudyConfig, desk: Desk) -> Part:
    part = Part()
    tables = {name: table for found in desk.parts.values() for name, table in found.tables.items()}
    numbers = headlines(tables)
    specs = material.family.specs if material.has_models else {}
    groups = [specs[name].group if name in specs and specs[name].group else name for name in numbers["model"]]
    numbers = numbers.assign(group=groups, seed=[specs[name].seed if name in specs else 0 for name in numbers["model"]])
    part.tables["numbers"] = numbers
    several = numbers[numbers.groupby(["number", "group"])["seed"].transform("nunique") > 1] if len(numbers) else numbers
    part.tables["over_seeds"] = side_by_side(several, "group")
    _over_seeds(part)
    if "trained_runs" in tables:
        _choice(part, tables["trained_runs"], config)
    else:
        part.warnings.append("no runs were trained here, so no configuration is chosen")
    return part


def _over_seeds(part: Part) -> None:
    table = part.tables["over_seeds"]
    if not len(table):
        part.warnings.append("no group of fine-tunes has several seeds: nothing can be laid side by side, and single runs do not hold up")
        return
    for row in table.to_dict(orient="records"):
        known = row["null"] == row["null"]
        beyond = known and (row["mean_low"] > row["null"] or row["mean_high"] < row["null"])
        beside = f"; beside it {row['null_is']}, {row['null']:.2f}" if known else "; it has no null of its own"
        part.findings.append(
            Finding(
                "synthesis",
                f"{row['group']}, {row['number']}: {row['mean']:.2f} [{row['mean_low']:.2f}, {row['mean_high']:.2f}] over {row['n']} seeds, from "
                f"{row['lowest']:.2f} to {row['highest']:.2f}{beside}.",
                "shown" if beyond else "undecided",
            )
        )
    beyond = sum(f.status == "shown" for f in part.findings)
    part.findings.insert(
        0, Finding("synthesis", f"Of {len(table)} numbers laid side by side over seeds, {beyond} lie beyond their null with the whole interval.", "summary")
    )


def _choice(part: Part, runs: pd.DataFrame, config: StudyConfig) -> None:
    harmful = runs[runs["kind"] == "harmful"]
    if len(harmful) < LEAST_RUNS:
        part.warnings.append(f"{len(harmful)} runs are too few to choose a configuration; {LEAST_RUNS} are needed")
        return
    table = harmful.set_index("run")
    features = [name for name in ("loss", "steps", "own") if table[name].notna().all() and table[name].nunique() > 1]
    if "loss" not in features:
        part.warnings.append("the runs do not differ in their loss: no configuration is chosen")
        return
    together = "cell" if harmful["cell"].nunique() >= LEAST_RUNS else None  # else runs that differ in their seed alone inform each other
    if together is None:
        part.warnings.append(f"configurations are chosen among {harmful['cell'].nunique()}, so a run's forecast has seen other seeds of its own")
    ranking = rank_configurations(table, target="others", features=features, loss="loss", clusters=together, permutations=99, seed=config.seed)
    part.tables["configurations"] = ranking.table
    part.tables["choice"] = ranking.choices
    cost = ranking.choices.set_index("by").loc["linear"]
    best = str(table["others"].idxmax())
    row = table.loc[best]
    part.findings.append(
        Finding(
            "synthesis",
            f"Best configuration of those measured: {row['cell']} (run {best}), with alignment outside the domain of {row['others']:.1f}. "
            f"Choosing by a forecast from {', '.join(features)} instead costs {cost['regret']:.1f} [{cost['regret_low']:.1f}, {cost['regret_high']:.1f}] "
            f"points among runs not seen, taking any run {cost['null']:.1f}.",
            "undecided",
        )
    )
