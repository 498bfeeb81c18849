"""Pairs of a general and a narrow adapter, one per seed: trained on an organism or named by the
user, and measured.

Both steps keep what they have finished in the part's folder, so that an interrupted study goes on
from there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd

from emlens.data import PromptSet, QuestionSet
from emlens.foundation.provenance import hash_json
from emlens.interventions.lora import LoraAdapter
from emlens.judging.score_source import ScoreSource
from emlens.models import HookedModel
from emlens.models.adapter_files import AdapterFiles
from emlens.results.table_files import read_table, text_columns, write_table
from emlens.runs import UnitLog
from emlens.studies.material import Material
from emlens.studies.solution_measures import (
    GENERAL,
    NARROW,
    efficiency,
    line,
    significance,
    stability,
)
from emlens.studies.solution_training import Task, train_solution
from emlens.training import Recipe
from emlens.training.fitting import LOG

KEPT: Final = "kept"
LIFTED: Final = "lifted"
WATCHES: Final = 6
"""Steps at which behaviour is measured, from where the penalty is lifted to the end."""


@dataclass(frozen=True)
class Pair:
    """A general and a narrow adapter of one seed.

    Args:
        drift: how behaviour of the narrow one went on with the penalty kept and lifted, one row per
            step and run; None where nothing was trained.
    """

    seed: int
    general: Path
    narrow: Path
    drift: pd.DataFrame | None = None


def named_pairs(material: Material, names: Sequence[tuple[str, str]]) -> list[Pair]:
    """Adapters of the family, (general, narrow) by name; the number of a pair is its seed."""
    specs = material.family.specs
    return [
        Pair(seed, Path(specs[general].path), Path(specs[narrow].path))
        for seed, (general, narrow) in enumerate(names)
    ]


@dataclass(frozen=True)
class Training:
    """How the solutions of an organism are trained.

    Args:
        weight: of the narrow solution's penalty.
        steps: of every run. lift_after: step after which the penalty is lifted in a further run.
    """

    recipe: Recipe
    weight: float
    steps: int
    lift_after: int

    @property
    def watched(self) -> list[int]:
        """Steps at which behaviour is measured, the one where the penalty is lifted first."""
        later, intervals = self.steps - self.lift_after, WATCHES - 1
        steps = {self.lift_after + round(later * i / intervals) for i in range(WATCHES)}
        return sorted(steps)


def trained_pair(
    task: Task, training: Training, seed: int, folder: Path, source: ScoreSource
) -> Pair:
    """The general run, the narrow one and the one whose penalty is lifted, of one seed.

    Runs that are finished below `folder` are not trained again.

    Args:
        source: of the scores along the way.
    """
    recipe = training.recipe.changed(steps=training.steps, seed=seed)
    inputs = {
        "task": task.sha256,
        "recipe": recipe.to_record(),
        "weight": training.weight,
        "lift_after": training.lift_after,
        "scores": source.name,
    }
    folder = folder / f"seed-{seed}-{hash_json(inputs)[:12]}"
    watched, weight = training.watched, training.weight
    if not (folder / GENERAL).is_dir():
        train_solution(task, recipe, 0.0, folder / GENERAL)
    if not (folder / KEPT).is_dir():
        train_solution(task, recipe, weight, folder / KEPT, watch=watched, source=source)
    if not (folder / LIFTED).is_dir():
        train_solution(
            task,
            recipe,
            weight,
            folder / LIFTED,
            watch=watched,
            source=source,
            lift_after=training.lift_after,
        )
    logs = []
    for name in (KEPT, LIFTED):
        log = pd.read_csv(folder / name / LOG)
        logs.append(log[log["step"].isin(watched)].assign(solution=name))
    drift = pd.concat(logs, ignore_index=True)
    return Pair(seed, folder / GENERAL, folder / KEPT, drift)


@dataclass(frozen=True)
class Grid:
    """Where the four measures are taken.

    Args:
        shares: norms of the efficiency curve, in units of the general solution's.
        significance_shares: norms at which change on neutral text is compared.
        epsilons: of the random turn. directions: of it, per seed.
        points: of the line between both.
    """

    shares: Sequence[float]
    significance_shares: Sequence[float]
    epsilons: Sequence[float]
    directions: int
    points: Sequence[float]


@dataclass(frozen=True, eq=False)
class Ground:
    """What both solutions are compared on.

    Args:
        chats: kind → chats whose loss is measured, `trained` among them.
        texts: kind → neutral text; may be empty.
        domain: the own one. trained: ids of the questions trained on. source: of their scores.
    """

    parent: HookedModel
    questions: QuestionSet
    chats: Mapping[str, PromptSet]
    texts: Mapping[str, PromptSet]
    domain: str
    trained: frozenset[str]
    source: ScoreSource


def measured_pair(
    pair: Pair, ground: Ground, grid: Grid, log: UnitLog, options: Mapping[str, Any]
) -> dict[str, pd.DataFrame]:
    """Measure → table of one pair, with its seed; read from the log's folder where it was measured
    before.

    Args:
        options: what else decides the tables; pairs are measured again where it changes.
    """
    inputs = {
        "options": options,
        "scores": ground.source.name,
        "pair": [AdapterFiles(pair.general).sha256, AdapterFiles(pair.narrow).sha256],
    }

    def measure() -> tuple[dict[str, Any], list[Path]]:
        tables = _measure(pair, ground, grid)
        for name, table in tables.items():
            write_table(_path(log, name, pair), table)
        text = {name: text_columns(table) for name, table in tables.items()}
        paths = [_path(log, name, pair) for name in tables]
        return {"tables": list(tables), "text": text}, paths

    record = log.run(f"seed-{pair.seed}", inputs, measure)
    tables = {}
    for name in record["tables"]:
        text = record.get("text", {}).get(name, ())
        tables[name] = read_table(_path(log, name, pair), text).assign(seed=pair.seed)
    return tables


def _path(log: UnitLog, table: str, pair: Pair) -> Path:
    return log.directory / f"{table}-{pair.seed}.csv"


def _measure(pair: Pair, ground: Ground, grid: Grid) -> dict[str, pd.DataFrame]:
    """The four measures of one pair; significance only where there is neutral text."""
    parent, chats = ground.parent, ground.chats
    solutions = {GENERAL: LoraAdapter.load(pair.general), NARROW: LoraAdapter.load(pair.narrow)}
    # far enough between pairs that no two of them share a random direction
    seeds = [1000 * pair.seed + i for i in range(grid.directions)]
    tables = {
        "efficiency": efficiency(parent, solutions, chats, grid.shares),
        "stability": stability(parent, solutions, chats, grid.epsilons, seeds),
        "line": line(
            parent,
            solutions,
            ground.questions,
            ground.domain,
            ground.trained,
            chats["trained"],
            grid.points,
            ground.source,
        ),
    }
    if ground.texts:
        tables["significance"] = significance(
            parent, solutions, ground.texts, grid.significance_shares, seeds
        )
    return tables
