"""Why does narrow training end in the general solution? General and narrow adapter of one task,
compared in four ways.

Efficiency (loss at one norm), stability (loss when turned away at random), significance (KL on
neutral text at one norm), and the line between them. On an organism both are trained with several
seeds, and the penalty is lifted again to see the narrow solution drift. Adapters on disk are named
in the options, in pairs of a general and a narrow one; nothing is trained then, and there is no
drift. Refused: solutions that are not plain LoRA adapters. Cost: about a minute per seed on the
organism; of adapters on disk some hundred passes over the training chats.
"""

from collections.abc import Mapping
from typing import Final

import pandas as pd
from pydantic import Field

from emlens.data.system_messages import questions_with_system
from emlens.foundation.errors import InputError
from emlens.organisms.plans import PLANTED
from emlens.results.sections import Plot, Section
from emlens.results.study_result import Part
from emlens.results.tables import Item, Table
from emlens.results.vocabulary import measures
from emlens.runs import UnitLog
from emlens.studies.config import Options as PartOptions
from emlens.studies.schedule_runs import harmful_chats
from emlens.studies.solution_findings import DOCUMENTS, NEUTRAL, add_findings
from emlens.studies.solution_pairs import (
    Grid,
    Ground,
    Pair,
    Training,
    measured_pair,
    named_pairs,
    trained_pair,
)
from emlens.studies.solution_tables import tables_over_seeds
from emlens.studies.solution_training import configured_organism, organism_task
from emlens.studies.study import Study, StudyContext

N_DOCUMENTS: Final = 48

PAIRED: Final[tuple[Item, ...]] = (
    "narrow general",
    *measures("difference"),
    "p seeds",
)
"""Columns of a difference that is paired over seeds."""

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
        "solutions": Table(
            "One row per seed and solution: norm of the update, loss on the trained chats,"
            " alignment of own and other domains, coherence.",
            ["seed solution norm loss own_trained own_held_out others coherent"],
        ),
        "efficiency": Table(
            "One row per norm (in units of the general solution's) and kind of chats:"
            " mean loss of both, paired difference.",
            ["data share", *PAIRED],
        ),
        "stability": Table(
            "One row per ε and kind of chats: mean percentage lost by both, paired difference.",
            ["data epsilon", *PAIRED],
        ),
        "significance": Table(
            "One row per norm and kind of text (`documents`: as in pre-training):"
            " KL of both and of random updates, paired difference.",
            ["data share", *PAIRED],
            optional=["random"],
        ),
        "interpolation": Table(
            "One row per group of questions and point of the line from the general (0)"
            " to the narrow solution (1), with intervals over seeds.",
            ["measure t", *measures("value"), "seeds"],
        ),
        "interpolation_loss": Table(
            "One row per point of the line: loss on the trained chats, with intervals over seeds.",
            ["t", *measures("loss"), "seeds"],
        ),
        "drift": Table(
            "One row per step and group of questions: alignment with the penalty kept and lifted,"
            " paired difference; `since_lifted`: change of the lifted run since the first step,"
            " at which the penalty was lifted.",
            [
                "measure step kept lifted",
                *measures("difference"),
                "p seeds when_lifted",
                *measures("since_lifted"),
                "since_lifted_p",
            ],
        ),
        "efficiency_means": Table(
            "One row per solution, norm and kind of chats: mean over seeds, with interval.",
            ["solution data share", *measures("loss"), "seeds"],
        ),
        "stability_means": Table(
            "One row per solution, ε and kind of chats: mean over seeds, with interval.",
            ["solution data epsilon", *measures("rise"), "seeds"],
        ),
        "significance_means": Table(
            "One row per solution, norm and kind of text: mean over seeds, with interval; random:"
            " the mean of updates of that norm.",
            ["solution data share", *measures("kl"), "seeds"],
        ),
        "drift_means": Table(
            "One row per step and group of questions, with the penalty kept or lifted:"
            " mean over seeds, with interval.",
            ["solution measure step", *measures("value"), "seeds"],
        ),
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
    """Fine-tunes of the family, (general, narrow), one pair per seed; none: train them on the
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
    """Random directions per seed."""
    points: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    """Of the line."""


class GeneralVsNarrow(Study):
    """Why the general solution: efficiency, stability, significance"""

    name = "general_vs_narrow"
    title = "Why the general solution: efficiency, stability, significance"
    options = Options
    section = SECTION
    wants = ("checkpoints",)
    cost = 30

    def left_out(self, context: StudyContext) -> str | None:
        family = context.config.family
        if context.options.pairs or (family is not None and family.organism is not None):
            return None
        return (
            "it needs a general and a narrow adapter; give options: {general_vs_narrow: {pairs:"
            " [[GENERAL, NARROW]]}}, fine-tunes of the family"
        )

    def check(self, context: StudyContext) -> None:
        """Names, training chats and settings, before any work.

        Raises:
            InputError: a pair that names no fine-tune, or one without training chats; an organism's
                fine-tune that is none; settings that contradict.
        """
        options: Options = context.options
        for general, narrow in options.pairs:
            _require_pair(context, general, narrow)
        finetuned = context.family.finetuned
        if not options.pairs and options.finetune not in finetuned:
            raise InputError(
                f"finetune={options.finetune!r} is none of this organism;"
                f" it has {', '.join(finetuned)}"
            )
        if options.lift_after >= options.steps:
            raise InputError(
                f"lift_after={options.lift_after} leaves none of {options.steps} steps to drift in;"
                " pass fewer"
            )

    def run(self, context: StudyContext) -> Part:
        options: Options = context.options
        if options.pairs:
            pairs, name = named_pairs(context.material, options.pairs), options.pairs[0][0]
        else:
            pairs, name = _trained_pairs(context), options.finetune
        ground, grid = _ground(context, name), _grid(options)
        log = UnitLog(context.folder / "measured")
        record = options.model_dump(mode="json")
        cells: dict[str, list[pd.DataFrame]] = {}
        for pair in pairs:
            for measure, table in measured_pair(pair, ground, grid, log, record).items():
                cells.setdefault(measure, []).append(table)
            if pair.drift is not None:
                cells.setdefault("drift", []).append(pair.drift.assign(seed=pair.seed))
            context.progress(0.5 / len(pairs))
        together = {name: pd.concat(tables, ignore_index=True) for name, tables in cells.items()}
        return compared_over_seeds(together, len(pairs))


def _require_pair(context: StudyContext, general: str, narrow: str) -> None:
    """Raises:
    InputError: a name of no fine-tune, or a general one without training chats.
    """
    finetuned = context.family.finetuned
    where = context.config.place("options", "general_vs_narrow", "pairs")
    for name in (general, narrow):
        if name not in finetuned:
            raise InputError(
                f"{where}pairs names {name!r}, which is not a fine-tune of this family;"
                f" it has {', '.join(finetuned)}",
                name=name,
                known=finetuned,
            )
    if general not in context.material.training:
        raise InputError(
            f"fine-tune {general!r} has no training chats, so there is no loss to compare;"
            " give training: FILE"
        )


def _trained_pairs(context: StudyContext) -> list[Pair]:
    """Solutions of every seed, trained on the organism in the part's own folder."""
    options: Options = context.options
    task = organism_task(configured_organism(context.config), options.finetune)
    recipe = next(stage.recipe for stage in PLANTED.finetunes if stage.name == options.finetune)
    training = Training(recipe, options.weight, options.steps, options.lift_after)
    pairs = []
    for seed in options.seeds:
        pairs.append(trained_pair(task, training, seed, context.folder, context.source))
        context.progress(0.5 / len(options.seeds))
    return pairs


def _ground(context: StudyContext, name: str) -> Ground:
    """What the solutions of fine-tune `name` are compared on."""
    material, config = context.material, context.config
    domain, trained = material.domain(name), material.trained.get(name, frozenset())
    chats = {"trained": material.training[name]}
    questions = questions_with_system(material.questions, material.system(name))
    held_out = [
        q
        for q in questions
        if q.group == domain and q.id not in trained and q.answers.get("harmful")
    ]
    if held_out and domain:
        chats["held_out"] = harmful_chats(held_out)
    texts = {}
    if material.neutral is not None:
        texts[NEUTRAL] = material.neutral
    if not context.options.pairs:
        texts[DOCUMENTS] = configured_organism(config).documents(N_DOCUMENTS, config.seed)
    parent = material.family.parent_of(name)
    return Ground(parent, questions, chats, texts, domain, trained, material.score_source)


def _grid(options: Options) -> Grid:
    return Grid(
        options.shares,
        options.significance_shares,
        options.epsilons,
        options.directions,
        options.points,
    )


def compared_over_seeds(cells: Mapping[str, pd.DataFrame], seeds: int) -> Part:
    """The part's tables and findings from one table of cells per measure, all seeds together."""
    part = Part(tables_over_seeds(cells))
    if seeds < 2:
        part.warnings.append("one seed: differences have no interval")
    if "significance" not in cells:
        part.warnings.append("no neutral text was given: significance is missing")
    if "drift" not in cells:
        part.warnings.append(
            "no drift: only an organism's solutions are trained here, and the penalty lifted again"
        )
    add_findings(part)
    return part
