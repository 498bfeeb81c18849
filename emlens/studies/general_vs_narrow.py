"""Why does narrow training end in the general solution? General and narrow adapter of one task,
compared in four ways.

Efficiency (loss at one norm), stability (loss when turned away at random), significance (KL on
neutral text at one norm), and the line between them. On an organism both are trained, several
seeds, and the penalty is lifted again to see the narrow solution drift. Of checkpoints on disk a
general and a narrow adapter are named in the options, in pairs; nothing is trained then, and there
is no drift. Refused: solutions that are no plain LoRA adapters. Cost: about a minute a seed on the
organism; of checkpoints some hundred passes over the training chats.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import pandas as pd
from pydantic import Field

from emlens.data import Prompt, PromptSet
from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.provenance import hash_directory, hash_json
from emlens.interventions.lora import LoraAdapter
from emlens.models import HookedModel
from emlens.results.sections import Plot, Section
from emlens.results.study_result import (
    Finding,
    Part,
    columns_of,
    p_text,
)
from emlens.results.table_files import read_table, text_columns, write_table
from emlens.runs import UnitLog
from emlens.stats import t_interval
from emlens.studies.config import Options as PartOptions, StudyConfig
from emlens.studies.material import Material
from emlens.studies.solution_measures import (
    GENERAL,
    NARROW,
    RANDOM,
    efficiency,
    line,
    paired,
    significance,
    stability,
)
from emlens.studies.study import Study, StudyContext

TABLES: Final = ("efficiency", "stability", "significance", "line", "drift")
NEUTRAL: Final = "neutral"
DOCUMENTS: Final = "documents"
_TEXTS: Final = {NEUTRAL: "neutral text", DOCUMENTS: "text as in pre-training"}
_KEPT: Final = "kept"
_LIFTED: Final = "lifted"
_DOCUMENTS: Final = 48

SECTION = Section(
    method=(
        "A general adapter (trained on the task alone) and a narrow one (with a KL penalty on chats"
        " of other domains) of the same seed are compared as updates of the same weights."
        " Efficiency: loss of both rescaled to one norm."
        " Stability: share of what was gained that is lost when the update is turned by ε in a"
        " random orthogonal direction of the same rank and norm."
        " Significance: KL from the parent on neutral text at one norm, beside random updates of"
        " that norm. The line between both is straight in weights."
        " Drift: training goes on with the penalty kept or lifted; whether a solution drifts is"
        " judged by its own change since then, since the kept one moves too."
        " Differences are paired within seeds, with 95 % t intervals."
    ),
    reference="arXiv 2602.07852",
    tables={
        "solutions": (
            "One row a seed and solution: norm of the update, loss on the trained chats,"
            " alignment of own and other domains, coherence."
        ),
        "efficiency": (
            "One row a norm (in units of the general solution's) and kind of chats:"
            " mean loss of both, paired difference."
        ),
        "stability": (
            "One row an ε and kind of chats: mean percentage lost by both, paired difference."
        ),
        "significance": (
            "One row a norm and kind of text (`documents`: as in pre-training):"
            " KL of both and of random updates, paired difference."
        ),
        "interpolation": (
            "One row a point of the line from the general (0) to the narrow solution (1) and group"
            " of questions, with intervals over seeds."
        ),
        "interpolation_loss": "The same for the loss on the trained chats.",
        "drift": (
            "One row a step and group of questions: alignment with the penalty kept and lifted,"
            " paired difference; `since_lifted`: change of the lifted run since the first step,"
            " at which the penalty was lifted."
        ),
        "efficiency_means": "Each solution's mean over seeds, with interval.",
        "stability_means": "Each solution's mean over seeds, with interval.",
        "significance_means": (
            "Each solution's mean over seeds, with interval; random:"
            " the mean of updates of that norm."
        ),
        "drift_means": "Penalty kept and lifted, each with its mean over seeds and interval.",
    },
    plots=(
        Plot(
            "line",
            "efficiency_means",
            "share",
            "loss",
            "Loss at one norm",
            "Both rescaled; intervals over seeds.",
            colour="solution",
            facet="data",
            x_title="norm, of the general solution's",
            y_title="loss (nats per token)",
        ),
        Plot(
            "line",
            "stability_means",
            "epsilon",
            "rise",
            "Loss regained by a random turn",
            "Per cent of what training had gained.",
            colour="solution",
            facet="data",
            x_title="ε",
            y_title="percent",
        ),
        Plot(
            "line",
            "significance_means",
            "share",
            "kl",
            "Change on neutral text at one norm",
            "Random: updates of the same norm.",
            colour="solution",
            facet="data",
            x_title="norm, of the general solution's",
            y_title="KL (nats per token)",
        ),
        Plot(
            "line",
            "interpolation",
            "t",
            "value",
            "Between the two",
            "0: general, 1: narrow.",
            colour="measure",
            x_title="t",
            y_title="alignment",
        ),
        Plot(
            "line",
            "drift_means",
            "step",
            "value",
            "After the penalty is lifted",
            "Kept: training goes on with it.",
            colour="solution",
            facet="measure",
            y_title="alignment",
        ),
    ),
)


class Options(PartOptions):
    """What `general_vs_narrow` reads."""

    pairs: tuple[tuple[str, str], ...] = ()
    """Fine-tunes of the family, (general, narrow), one pair a seed; none: train them on the
    organism.
    """
    finetune: str = "medicine-r8"
    """Of the organism: whose recipe and chats are trained."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of training."""
    weight: float = Field(0.05, gt=0)
    """λ of the narrow solution's penalty, nats per answer token."""
    steps: int = Field(80, ge=10)
    """Of every solution."""
    lift_after: int = Field(50, ge=1)
    """Step after which the penalty is lifted in a second run."""
    shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    """Norms of the efficiency curve, in units of the general solution's."""
    significance_shares: tuple[float, ...] = (0.25, 0.5, 1.0, 1.5, 2.0)
    """Norms at which change on neutral text is compared."""
    epsilons: tuple[float, ...] = (0.1, 0.2, 0.4, 0.6, 0.8)
    """Of the random turn."""
    directions: int = Field(5, ge=1)
    """Random directions of a seed."""
    points: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    """Of the line."""


@dataclass(frozen=True)
class Pair:
    """A general and a narrow adapter of one seed, and how the narrow one went on from lifting the
    penalty, where that was tried.
    """

    seed: int
    general: Path
    narrow: Path
    drift: pd.DataFrame | None = None


def left_out(material: Material, config: StudyConfig) -> str | None:
    if config.options_of("general_vs_narrow", Options).pairs:
        return None
    if config.family is None or config.family.organism is None:
        return (
            "it needs a general and a narrow adapter; give options: {general_vs_narrow: {pairs:"
            " [[GENERAL, NARROW]]}}, fine-tunes of the family"
        )
    return None


def check(material: Material, config: StudyConfig) -> None:
    """Names, training chats and settings, before any work.

    Raises:
        InputError: a pair that names no fine-tune, or one without training chats; an organism's
            fine-tune that is none; settings that contradict.
    """
    options = config.options_of("general_vs_narrow", Options)
    for names in options.pairs:
        for name in names:
            if name not in material.family.finetuned:
                raise InputError(
                    f"pairs names {name!r}, which is no fine-tune of this family;"
                    f" it has {', '.join(material.family.finetuned)}"
                )
        if names[0] not in material.training:
            raise InputError(
                f"fine-tune {names[0]!r} has no training chats, so there is no loss to compare;"
                " give training: FILE"
            )
    if not options.pairs and options.finetune not in material.family.finetuned:
        raise InputError(
            f"finetune={options.finetune!r} is none of this organism;"
            f" it has {', '.join(material.family.finetuned)}"
        )
    if options.lift_after >= options.steps:
        raise InputError(
            f"lift_after={options.lift_after} leaves none of {options.steps} steps to drift in;"
            " pass fewer"
        )


def run(material: Material, config: StudyConfig, context: StudyContext) -> Part:
    options = config.options_of("general_vs_narrow", Options)
    name = options.pairs[0][0] if options.pairs else options.finetune
    pairs = _given(material, options) if options.pairs else _trained(config, options, context)
    parent = material.family.parent_of(name)
    domain, trained = material.domain(name), material.trained.get(name, frozenset())
    chats = {"trained": material.training[name]}
    held_out = [
        q
        for q in material.questions
        if q.group == domain and q.id not in trained and q.answers.get("harmful")
    ]
    if held_out and domain:
        chats["held_out"] = PromptSet(
            [
                Prompt(f"{q.id}/harmful", q.text, q.group, q.messages(), q.answers["harmful"][0])
                for q in held_out
            ]
        )
    texts = {} if material.neutral is None else {NEUTRAL: material.neutral}
    if not options.pairs:
        from emlens.studies.solution_training import configured_organism

        texts[DOCUMENTS] = configured_organism(config).documents(_DOCUMENTS, config.seed)
    log = UnitLog(context.folder / "measured")
    found: dict[str, list[pd.DataFrame]] = {table: [] for table in TABLES}
    for pair in pairs:
        inputs = {
            "options": options.model_dump(mode="json"),
            "pair": [hash_directory(pair.general), hash_directory(pair.narrow)],
        }
        work = partial(
            _measured, material, parent, pair, chats, texts, domain, trained, options, log.directory
        )
        record = log.run(f"seed-{pair.seed}", inputs, work)
        for table in record["tables"]:
            text = record.get("text", {}).get(table, ())
            found[table].append(
                read_table(log.directory / f"{table}-{pair.seed}.csv", text).assign(seed=pair.seed)
            )
        if pair.drift is not None:
            found["drift"].append(pair.drift.assign(seed=pair.seed))
        context.progress(0.5 / len(pairs))
    return gathered(
        {name: pd.concat(frames, ignore_index=True) for name, frames in found.items() if frames},
        len(pairs),
    )


def _measured(
    material: Material,
    parent: HookedModel,
    pair: Pair,
    chats: dict[str, PromptSet],
    texts: dict[str, PromptSet],
    domain: str,
    trained: frozenset[str],
    options: Options,
    folder: Path,
) -> tuple[dict[str, object], list[Path]]:
    """Every table of one seed, as files."""
    solutions = {GENERAL: LoraAdapter.load(pair.general), NARROW: LoraAdapter.load(pair.narrow)}
    seeds = [1000 * pair.seed + i for i in range(options.directions)]
    tables = {
        "efficiency": efficiency(parent, solutions, chats, options.shares),
        "stability": stability(parent, solutions, chats, options.epsilons, seeds),
        "line": line(
            parent, solutions, material.questions, domain, trained, chats["trained"], options.points
        ),
    }
    if texts:
        tables["significance"] = significance(
            parent, solutions, texts, options.significance_shares, seeds
        )
    paths = [folder / f"{name}-{pair.seed}.csv" for name in tables]
    for path, table in zip(paths, tables.values(), strict=True):
        write_table(path, table)
    return {
        "tables": list(tables),
        "text": {name: text_columns(table) for name, table in tables.items()},
    }, paths


def _given(material: Material, options: Options) -> list[Pair]:
    paths = [[Path(material.family.specs[name].path) for name in names] for names in options.pairs]
    return [Pair(i, general, narrow) for i, (general, narrow) in enumerate(paths)]


def _trained(config: StudyConfig, options: Options, context: StudyContext) -> list[Pair]:
    """General, narrow and lifted runs of every seed in the part's own folder; what stands there is
    not trained again.
    """
    from emlens.organisms.plans import PLANTED
    from emlens.studies.solution_training import configured_organism, organism_task, train_solution

    task = organism_task(configured_organism(config), options.finetune)
    recipe = next(stage.recipe for stage in PLANTED.finetunes if stage.name == options.finetune)
    later = options.steps - options.lift_after
    watch = sorted({options.lift_after + round(later * i / 5) for i in range(6)})
    pairs = []
    for seed in options.seeds:
        seeded = recipe.changed(steps=options.steps, seed=seed)
        made_of = {
            "task": task.sha256,
            "recipe": seeded.to_record(),
            "weight": options.weight,
            "lift_after": options.lift_after,
        }
        folder = context.folder / f"seed-{seed}-{hash_json(made_of)[:12]}"
        runs = {
            GENERAL: {"weight": 0.0},
            _KEPT: {"weight": options.weight, "watch": watch},
            _LIFTED: {"weight": options.weight, "watch": watch, "lift_after": options.lift_after},
        }
        for name, how in runs.items():
            if not (folder / name).is_dir():
                train_solution(task, seeded, out=folder / name, **how)  # type: ignore[arg-type]
        logs = {name: pd.read_csv(folder / name / "training_log.csv") for name in (_KEPT, _LIFTED)}
        drift = pd.concat(
            [log[log["step"].isin(watch)].assign(solution=name) for name, log in logs.items()],
            ignore_index=True,
        )
        pairs.append(Pair(seed, folder / GENERAL, folder / _KEPT, drift))
        context.progress(0.5 / len(options.seeds))
    return pairs


def gathered(raw: dict[str, pd.DataFrame], seeds: int) -> Part:
    """The part's tables and findings from one table of cells for each measure, all seeds
    together.
    """
    part = Part()
    if seeds < 2:
        part.warnings.append("one seed: differences have no interval")
    for name, value, setting in (
        ("efficiency", "loss", "share"),
        ("stability", "rise", "epsilon"),
        ("significance", "kl", "share"),
    ):
        cells = ["data", setting]
        if name not in raw:
            part.warnings.append("no neutral text was given: significance is missing")
            continue
        table = paired(raw[name], value, cells)
        if name == "significance":
            drawn = raw[name][raw[name]["solution"] == RANDOM].groupby(cells)["kl"].mean()
            table = table.assign(**{RANDOM: drawn.to_numpy()})
        part.tables[name] = table
        part.tables[f"{name}_means"] = means(raw[name], value, ["solution", *cells])
    ends = raw["line"][raw["line"]["t"].isin((0.0, 1.0))]
    part.tables["solutions"] = ends.assign(
        solution=[NARROW if t else GENERAL for t in ends["t"]]
    ).drop(columns="t")
    part.tables["interpolation"] = means(
        _long(raw["line"], ["t"], ("own_trained", "own_held_out", "others")),
        "value",
        ["measure", "t"],
    )
    part.tables["interpolation_loss"] = means(raw["line"], "loss", ["t"])
    if "drift" in raw:
        measures = ("own_trained", "own_held_out", "others")
        drift = _long(raw["drift"], ["step", "solution"], measures).assign(
            value=lambda t: 100 * t["value"]
        )
        against = paired(drift, "value", ["measure", "step"], _LIFTED, _KEPT)
        part.tables["drift"] = against.merge(_since_lifted(drift), on=["measure", "step"])
        part.tables["drift_means"] = means(drift, "value", ["solution", "measure", "step"])
    else:
        part.warnings.append(
            "no drift: only an organism's solutions are trained here, and the penalty lifted again"
        )
    _found(part)
    return part


def means(table: pd.DataFrame, value: str, cells: Sequence[str]) -> pd.DataFrame:
    """Mean over seeds in each cell with a 95 % t interval; none with one seed."""
    rows = []
    for key, group in table.dropna(subset=[value]).groupby(list(cells), sort=True):
        head = dict(zip(cells, key if isinstance(key, tuple) else (key,), strict=True))
        values = group[value].to_numpy()
        alone = Estimate(float(values[0]), float("nan"), float("nan"), 1, "one seed")
        rows.append(
            {
                **head,
                **columns_of(value, t_interval(values) if len(values) > 1 else alone),
                "seeds": len(values),
            }
        )
    return pd.DataFrame(rows)


def _long(table: pd.DataFrame, cells: Sequence[str], measures: Sequence[str]) -> pd.DataFrame:
    return table.melt(
        id_vars=[*cells, "seed"], value_vars=list(measures), var_name="measure", value_name="value"
    )


def _since_lifted(drift: pd.DataFrame) -> pd.DataFrame:
    """Paired change of the lifted run from its own first step, at which the penalty was lifted."""
    lifted = drift[drift["solution"] == _LIFTED].drop(columns="solution")
    first = lifted[lifted["step"] == lifted["step"].min()].drop(columns="step")
    start = lifted.drop(columns="value").merge(first, on=["measure", "seed"])
    changes = paired(
        pd.concat([lifted.assign(solution="now"), start.assign(solution="start")]),
        "value",
        ["measure", "step"],
        "now",
        "start",
    )
    ends = {f"difference{end}": f"since_lifted{end}" for end in ("", "_low", "_high")}
    return changes.drop(columns=["now", "seeds"]).rename(
        columns={**ends, "start": "when_lifted", "p": "since_lifted_p"}
    )


def _found(part: Part) -> None:
    """One sentence a measure, at the cell named in it."""
    tables = part.tables
    shown = []
    text = (
        DOCUMENTS
        if "significance" in tables and DOCUMENTS in set(tables["significance"]["data"])
        else NEUTRAL
    )
    wanted = (
        (
            "efficiency",
            {"data": "trained", "share": 1.0},
            "Efficiency: loss on the trained chats at the general solution's norm",
            +1,
        ),
        (
            "stability",
            {"data": "trained", "epsilon": None},
            "Stability: percentage of the gain lost to a random turn",
            +1,
        ),
        (
            "significance",
            {"data": text, "share": 1.0},
            f"Significance: KL on {_TEXTS[text]} at the general solution's norm",
            -1,
        ),
    )
    for name, cell, words, sign in wanted:
        if name not in tables:
            continue
        rows = tables[name]
        for key, value in cell.items():
            at = rows[key].max() if value is None else value
            rows, words = (
                rows[rows[key] == at],
                words + (f" of ε = {at:g}" if value is None else ""),
            )
        if not len(rows):
            continue
        row = rows.iloc[0]
        better = sign * row["difference"] > 0
        clear = bool(row["difference_low"] > 0 or row["difference_high"] < 0)
        random = f", random {row[RANDOM]:.3g}" if RANDOM in rows else ""
        sentence = (
            f"{words}: general {row[GENERAL]:.3g}, narrow {row[NARROW]:.3g}{random};"
            f" narrow − general {_said(row)}, {row['seeds']:.0f} seeds."
        )
        shown.append(name if better and clear else "")
        part.findings.append(
            Finding(
                "general_vs_narrow",
                sentence,
                "shown" if better and clear else "not shown" if clear else "undecided",
            )
        )
    if "drift" in tables:
        rows = tables["drift"]
        first, last = rows["step"].min(), rows["step"].max()
        for measure, words in (
            ("others", "the other domains"),
            ("own_held_out", "the own domain's held-out topics"),
        ):
            for _, row in rows[(rows["measure"] == measure) & (rows["step"] == last)].iterrows():
                sentence = (
                    f"Drift: with the penalty lifted at step {first:.0f},"
                    f" alignment of {words} goes from {row['when_lifted']:.1f} to"
                    f" {row[_LIFTED]:.1f} of 100 by step {last:.0f}:"
                    f" {_said(row, 'since_lifted', 'since_lifted_p')};"
                    f" with it kept it is {row[_KEPT]:.1f} then, lifted − kept {_said(row)}."
                )
                status = (
                    "shown"
                    if row["since_lifted_high"] < 0
                    else "not shown"
                    if row["since_lifted_low"] > 0
                    else "undecided"
                )
                part.findings.append(Finding("general_vs_narrow", sentence, status))
    won = [name for name in shown if name]
    what = f"ahead in {', '.join(won)}" if won else "ahead in none"
    part.findings.insert(
        0,
        Finding(
            "general_vs_narrow",
            f"Of {len(shown)} measures, the general solution is clearly {what}.",
            "summary",
        ),
    )


def _said(row: pd.Series, name: str = "difference", p: str = "p") -> str:
    """A paired difference with its interval and p, where it has them."""
    if pd.isna(row[p]):
        return f"{row[name]:.3g}, without an interval"
    return (
        f"{row[name]:.3g} [{row[f'{name}_low']:.3g}, {row[f'{name}_high']:.3g}],"
        f" paired p {p_text(row[p])}"
    )


class GeneralVsNarrow(Study):
    """Why the general solution: efficiency, stability, significance"""

    name = "general_vs_narrow"
    title = "Why the general solution: efficiency, stability, significance"
    options = Options
    section = SECTION
    cost = 30

    def check(self, context: StudyContext) -> None:
        check(context.material, context.config)

    def left_out(self, context: StudyContext) -> str | None:
        return left_out(context.material, context.config)

    def run(self, context: StudyContext) -> Part:
        return run(context.material, context.config, context)
