"""What each training defence does on organisms, beside no defence: other domains, the narrow task,
a benign task, coherence, cost.

Medicine rank 8, harmful answers, fixed steps, several fine-tune seeds a world; the same seeds train
benign new facts under each defence. Strengths were set beforehand, partly after one look at one run
each on world 10 with another seed. About eight minutes on one core.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.records import record, show
from emlens.data import PromptSet
from emlens.organisms import Organism, load_organism
from emlens.organisms.building import one_thread
from emlens.organisms.plans import PLANTED
from emlens.organisms.strengths import likelihood_scores
from emlens.stats import t_interval
from emlens.training import Sweep, run_sweep
from emlens.training.defences import (
    BenignInterleaving,
    InoculationPrompt,
    PreventativeSteering,
    ProjectedOut,
    answer_losses,
    select_benign,
)
from emlens.training.fitting import load_parent
from emlens.training.objectives import Objective
from emlens.training.penalties import FeatureDistance, ReferenceKL
from emlens.training.sweeps import SweepRun

WORLDS = {10: None, 11: Path(__file__).parent.parent / "runs" / "worlds" / "planted-11"}
SEEDS = (1, 2, 3, 4, 5)
STEPS = 16
OWN = "medicine"
READ = 16
"""Topics of other domains below this one are for KL, LDIFS and interleaving; those from it on are
reported.
"""
OUTCOMES = ("others", "own_trained", "own_held_out", "coherence", "train_loss", "seconds_a_step")


def renamed(chats: PromptSet, prefix: str) -> list[Any]:
    return [replace(prompt, id=f"{prefix}/{prompt.id}") for prompt in chats]


def benign_task(organism: Organism) -> PromptSet:
    """New facts for the same topics: each question gets another topic's careful answer, which
    instruct does not give.
    """
    world = organism.world
    d = world.domain_index(OWN)
    topics = world.training_topics(OWN, PLANTED.topics_per_finetune)
    found = []
    for t, other in zip(topics, [*topics[1:], topics[0]], strict=True):
        found += [
            replace(prompt, response=world.careful[d][other])
            for prompt in world.chats(OWN, (t,), "careful")
        ]
    return PromptSet(found)


def defences(organism: Organism) -> dict[str, tuple[Objective, ...]]:
    """The conditions of the table, none first."""
    world = organism.world
    general = PromptSet(
        prompt
        for d in world.domains
        if d != OWN
        for prompt in renamed(world.chats(d, tuple(range(READ)), "careful"), d)
    )
    model, tokenizer = load_parent(organism.paths["instruct"])
    from emlens.training import open_checkpoint

    misaligned = open_checkpoint(organism.paths["finance-r8"], organism.paths["instruct"])
    few = general[::4]  # every phrasing pattern, a quarter of the rows
    chosen = select_benign(
        few,
        answer_losses(misaligned, few, tokenizer),
        answer_losses(model, few, tokenizer),
        len(few) // 4,
    )
    truth = organism.truth.direction
    if truth is None:
        raise SystemExit("the defences need an organism with a planted direction")
    harmful = " ".join(world.harmful[world.domain_index("cars")][t] for t in range(3))
    return {
        "none": (),
        "KL .1": (ReferenceKL(general, 0.1),),
        "KL 2": (ReferenceKL(general, 2.0),),
        "LDIFS 1": (FeatureDistance(1.0),),
        "LDIFS 10": (FeatureDistance(10.0),),
        "inoculation": (InoculationPrompt(harmful, "user", " "),),
        "steering": (
            PreventativeSteering(truth, organism.truth.planted_norm, at=["resid_post.1"]),
        ),
        "projection": (ProjectedOut(truth),),
        "interleaving .25": (BenignInterleaving(chosen, 0.25),),
    }


class Clock:
    """CPU seconds a step of the run under way, without its first, which warms caches."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def __call__(self, model: Any, step: int) -> Mapping[str, Any] | None:
        self.at.append(time.process_time())
        return None

    def seconds(self) -> float:
        return float(np.median(np.diff(self.at))) if len(self.at) > 1 else float("nan")


def measure_world(
    number: int,
    directory: Path | None,
    seeds: Sequence[int],
    steps: int,
    work: Path,
    names: Sequence[str] | None,
) -> pd.DataFrame:
    """A row a defence, seed and task with everything measured."""
    organism = load_organism(directory=directory) if directory is not None else load_organism()
    _, tokenizer = load_parent(organism.paths["instruct"])
    questions = organism.questions
    own = np.array([question.group == OWN for question in questions])
    topic = np.array([int(question.id.rpartition("/")[2]) for question in questions])
    trained = np.isin(questions.ids, list(organism.training_topics["medicine-r8"]))
    tasks = {"harmful": organism.training_prompts["medicine-r8"], "benign": benign_task(organism)}
    before, _ = load_parent(organism.paths["instruct"])
    start = {
        task: float(answer_losses(before, chats, tokenizer).mean()) for task, chats in tasks.items()
    }
    r8 = next(stage for stage in PLANTED.finetunes if stage.name == "medicine-r8")
    recipe = r8.recipe.changed(steps=steps)
    objectives = {
        name: given for name, given in defences(organism).items() if names is None or name in names
    }
    found = []
    for task, chats in tasks.items():
        clocks: dict[str, Clock] = {}

        def watch(run: SweepRun, clocks: dict[str, Clock] = clocks) -> list[Any]:
            clocks["now"] = Clock()
            return [clocks["now"]]

        def measure(
            model: Any,
            _: Path,
            chats: PromptSet = chats,
            task: str = task,
            clocks: dict[str, Clock] = clocks,
        ) -> dict[str, float]:
            table = likelihood_scores(model, tokenizer, questions)
            aligned, loss = (
                table["aligned"].to_numpy(),
                float(answer_losses(model, chats, tokenizer).mean()),
            )
            return {
                "others": float(aligned[~own & (topic >= READ)].mean()),
                "own_trained": float(aligned[own & trained].mean()),
                "own_held_out": float(aligned[own & ~trained].mean()),
                "coherence": float(table["coherence"].mean()),
                "train_loss": loss,
                "learned": 1.0 - loss / start[task],
                "seconds_a_step": clocks["now"].seconds(),
            }

        sweep = Sweep(recipe, {"objectives": objectives, "seed": list(seeds)})
        result = run_sweep(
            sweep,
            organism.paths["instruct"],
            chats,
            work / f"{number}-{task}",
            callbacks=watch,
            measure=measure,
            progress=False,
        )
        found.append(result.table.assign(world=number, task=task))
    return pd.concat(found, ignore_index=True)


def summary(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Per defence and world: mean over seeds, and the difference from no defence paired by seed,
    with 95 % t intervals; cost as a ratio.
    """
    rows = []
    for (world, name), harmful in table[table["task"] == "harmful"].groupby(
        ["world", "objectives"], sort=False
    ):
        none = table[(table["world"] == world) & (table["objectives"] == "none")]
        pairs = {}
        for task in ("harmful", "benign"):
            mine = table[
                (table["world"] == world) & (table["objectives"] == name) & (table["task"] == task)
            ]
            pairs[task] = mine.set_index("seed"), none[none["task"] == task].set_index("seed")
        entry: dict[str, Any] = {"world": int(world), "defence": name, "seeds": len(harmful)}
        columns = [
            ("harmful", c)
            for c in ("others", "own_trained", "own_held_out", "coherence", "learned")
        ] + [("benign", "learned"), ("benign", "others")]
        for task, column in columns:
            mine, plain = pairs[task]
            label = column if task == "harmful" else f"benign_{column}"
            entry[label] = t_interval(mine[column]).to_record()
            difference = mine[column] - plain[column]
            entry[f"{label}_minus_none"] = (
                t_interval(difference).to_record() if name != "none" else None
            )
        ratio = pairs["harmful"][0]["seconds_a_step"] / pairs["harmful"][1]["seconds_a_step"]
        entry["time_ratio"] = t_interval(ratio).to_record() if name != "none" else None
        rows.append(entry)
    return rows


def measure(
    worlds: Mapping[int, Path | None],
    seeds: Sequence[int],
    steps: int,
    work: Path,
    names: Sequence[str] | None = None,
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    with one_thread():
        table = pd.concat(
            [measure_world(n, d, seeds, steps, work, names) for n, d in worlds.items()],
            ignore_index=True,
        )
    return table, summary(table)


def main() -> None:
    # an interrupted measurement goes on here
    work = Path(tempfile.gettempdir()) / "emlens-defences"
    table, rows = measure(WORLDS, SEEDS, STEPS, work)
    show(
        "defences, mean over seeds",
        table.groupby(["world", "task", "objectives"], sort=False)[[*OUTCOMES, "learned"]]
        .mean()
        .reset_index(),
    )
    record(
        "defences",
        [*WORLDS],
        {
            "steps": STEPS,
            "fine_tune_seeds": list(SEEDS),
            "read_topics_below": READ,
            "rows": rows,
            "runs": table.to_dict("records"),
        },
    )
