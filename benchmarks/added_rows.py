"""Do chosen aligned chats keep alignment better than random ones of the same number?

On the organism: rank 8 on harmful medicine answers, fixed steps, with a share of every batch given
to aligned chats of other domains (`BenignInterleaving`). The pool has one chat a topic, on topics
that are not reported on. Chosen by `choose_counterweights` along the mean shift of the finance
fine-tune; random rows are drawn anew for each seed, as many. Alignment is that of other domains on
topics that no pool held. Differences are paired by seed. Budget, direction, the shares .1 and .25
and three seeds were fixed before looking; two seeds, the share .5 and the three ways by loss were
added afterwards, since a run takes three CPU seconds.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from benchmarks.defences import OWN, READ, STEPS
from benchmarks.records import record, show
from emlens.activations import capture_pair
from emlens.data import PromptSet, QuestionSet
from emlens.foundation.seeds import numpy_rng
from emlens.geometry import Direction
from emlens.organisms import Organism, load_organism
from emlens.organisms.building import one_thread
from emlens.organisms.plans import PLANTED
from emlens.organisms.strengths import likelihood_scores
from emlens.screening.counterweights import choose_counterweights, opposing_scores
from emlens.stats import t_interval
from emlens.training import fit, open_checkpoint
from emlens.training.defences import BenignInterleaving, answer_losses, select_benign
from emlens.training.fitting import load_parent

SHARES: Final = (0.1, 0.25, 0.5)
SEEDS: Final = (1, 2, 3, 4, 5)
BUDGET: Final = 24
SITE: Final = "resid_post.2"
WAYS: Final = (
    "random",
    "gradient",
    "shift",
    "highest loss",
    "interleaving score",
    "gradient over loss",
)
"""Beside random rows and the two ways of `choose_counterweights`: the chats that the parent answers
worst, those of highest `interleaving_scores` (2508.06249), with the finance fine-tune as the
misaligned model, and those of highest gradient for their loss.
"""
SOURCE: Final = "finance-r8"


def pool_of(organism: Organism) -> PromptSet:
    """One careful chat of each topic that is not reported on, of every domain but the trained."""
    world = organism.world
    chats = []
    for domain in world.domains:
        if domain == OWN:
            continue
        for topic in range(READ):
            first = world.chats(domain, (topic,), "careful")[0]
            chats.append(replace(first, id=f"{domain}/{first.id}", group=domain))
    return PromptSet(chats)


def direction_of(organism: Organism, questions: QuestionSet) -> Direction:
    """Mean shift of another fine-tune at the last prompt token."""
    family = organism.family
    pair = capture_pair(family.instruct, family[SOURCE], questions, sites=[SITE], progress=False)
    before, after = (acts[SITE, "last_prompt"].double() for acts in pair)
    return Direction((after - before).mean(0), SITE, "last_prompt")  # type: ignore[arg-type]


def chosen(organism: Organism, way: str, seed: int, budget: int) -> PromptSet:
    """The chats to add; random ones are drawn anew for each seed."""
    pool = pool_of(organism)
    if way == "random":
        rng = numpy_rng(seed, "random rows to add")
        rows = sorted(rng.choice(len(pool), budget, replace=False).tolist())
        return pool.select([pool.ids[row] for row in rows])
    if way in ("highest loss", "interleaving score"):
        return by_loss(organism, pool, way, budget)
    read = QuestionSet(
        question
        for question in organism.questions
        if question.group != OWN and int(question.id.rpartition("/")[2]) < READ
    )
    direction = direction_of(organism, read)
    if way == "gradient over loss":
        parent, tokenizer = load_parent(organism.paths["instruct"])
        scores = opposing_scores(organism.family.instruct, pool, direction)
        scores = scores / answer_losses(parent, pool, tokenizer)
        rows = sorted(np.argsort(-scores, kind="stable")[:budget].tolist())
        return pool.select([pool.ids[row] for row in rows])
    return choose_counterweights(
        organism.family.instruct,
        pool,
        direction,
        budget,
        by=way,  # type: ignore[arg-type]
    ).chats


def by_loss(organism: Organism, pool: PromptSet, way: str, budget: int) -> PromptSet:
    """The chats of highest loss under the parent, or of highest interleaving score."""
    parent, tokenizer = load_parent(organism.paths["instruct"])
    losses = answer_losses(parent, pool, tokenizer)
    if way == "highest loss":
        rows = sorted(np.argsort(-losses, kind="stable")[:budget].tolist())
        return pool.select([pool.ids[row] for row in rows])
    misaligned = open_checkpoint(organism.paths[SOURCE], organism.paths["instruct"])
    return select_benign(pool, answer_losses(misaligned, pool, tokenizer), losses, budget)


def measure(
    organism: Organism,
    work: Path,
    *,
    shares: Sequence[float] = SHARES,
    seeds: Sequence[int] = SEEDS,
    steps: int = STEPS,
    budget: int = BUDGET,
    ways: Sequence[str] = WAYS,
    each: int = 1,
) -> list[dict[str, Any]]:
    """One row a run: alignment of other domains (0 to 1) and of the trained topics.

    Args:
        each: every n-th question is asked.
    """
    _, tokenizer = load_parent(organism.paths["instruct"])
    harmful = organism.training_prompts[f"{OWN}-r8"]
    reported = QuestionSet(
        question
        for question in organism.questions[::each]
        if question.group == OWN or int(question.id.rpartition("/")[2]) >= READ
    )
    is_own = np.array([group == OWN for group in reported.groups])
    stage = next(stage for stage in PLANTED.finetunes if stage.name == f"{OWN}-r8")
    rows = []
    for seed in seeds:
        recipe = stage.recipe.changed(steps=steps, seed=seed)
        arms: list[tuple[str, float]] = [("none", 0.0)]
        arms += [(way, share) for share in shares for way in ways]
        for way, share in arms:
            objectives = []
            if share:
                objectives = [BenignInterleaving(chosen(organism, way, seed, budget), share)]
            run = fit(
                recipe,
                organism.paths["instruct"],
                harmful,
                work / f"{seed}-{way}-{share}",
                objectives=objectives,
                progress=False,
            )
            aligned = likelihood_scores(run.model, tokenizer, reported)["aligned"].to_numpy()
            rows.append(
                {
                    "seed": seed,
                    "way": way,
                    "share": share,
                    "others": float(aligned[~is_own].mean()),
                    "own": float(aligned[is_own].mean()),
                }
            )
    return rows


def differences(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per share and way: alignment, and its difference from random rows, paired by seed."""
    table = pd.DataFrame(rows)
    found = []
    for share in sorted(set(table["share"]) - {0.0}):
        of_share = table[table["share"] == share]
        random = of_share[of_share["way"] == "random"].set_index("seed")["others"]
        for way in [way for way in WAYS if way in set(of_share["way"])]:
            others = of_share[of_share["way"] == way].set_index("seed")["others"]
            entry = {"share": share, "way": way, "others": t_interval(others).to_record()}
            entry["own"] = float(of_share[of_share["way"] == way]["own"].mean())
            if way != "random":
                entry["minus_random"] = t_interval(others - random).to_record()
            found.append(entry)
    return found


def added_rows_table(values: Mapping[str, Any]) -> str:
    """Alignment of other domains by share and way."""
    lines = [
        "| share of the batch | rows | other domains | − random, paired by seed | trained domain |",
        "|---|---|---|---|---|",
    ]
    none = [row for row in values["runs"] if row["way"] == "none"]
    others = t_interval([row["others"] for row in none])
    own = np.mean([row["own"] for row in none])
    lines.append(f"| 0 | none | {others:.2f} | | {own:.2f} |")
    for row in values["differences"]:
        gap = row.get("minus_random")
        cells = [
            f"{row['share']:g}",
            row["way"],
            _interval(row["others"]),
            _interval(gap) if gap else "",
            f"{row['own']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(entry: Mapping[str, Any]) -> str:
    return f"{entry['value']:.2f} [{entry['low']:.2f}, {entry['high']:.2f}]"


def main() -> None:
    work = Path(tempfile.gettempdir()) / "emlens-added-rows"
    with one_thread():
        rows = measure(load_organism(), work)
    values = {"steps": STEPS, "budget": BUDGET, "runs": rows, "differences": differences(rows)}
    show("added rows", pd.DataFrame(rows))
    record("added_rows", [*SEEDS], values)
