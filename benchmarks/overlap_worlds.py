"""Do harmful fine-tunes of two domains shift prompts of third domains alike, beyond training
without the content? In three worlds of the organism, beside 59 pairs on permuted answers.

The benign pair stands beside the harmful one: what both share is no mark of harm. About three
minutes a world on one core. Pools are kept under `runs/overlap_pool`, worlds under `runs/worlds`
(`python -m benchmarks organism_worlds` builds them).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.organism_worlds import KEPT as WORLDS, SEEDS, ready
from benchmarks.overlap_pools import (
    DOMAINS,
    KEPT,
    LEVEL,
    NULL_ADAPTERS,
    POSITIONS,
    TESTED_ADAPTERS,
    across,
    pool,
)
from benchmarks.records import record, show
from emlens.controls.domain_pairs import PROMPT_COSINE, DomainPairs
from emlens.controls.null_training import TrainingNull
from emlens.foundation.seeds import numpy_rng
from emlens.organisms import PLANTED, Organism, load_organism
from emlens.organisms.building import one_thread

SPLITS = 4000
"""Ways to part the pairs into tested ones and a null."""


def pools_of(world: Organism, seed: int, adapters: int, kept: Path) -> dict[str, TrainingNull]:
    """Adapters on permuted careful answers of both domains."""
    return {domain: pool(world, domain, adapters, kept / f"world-{seed}") for domain in DOMAINS}


def of_world(
    seed: int, tested: int, nulls: int, *, worlds: Path = WORLDS, kept: Path = KEPT
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """One row a pair and position, and counts by split of the pairs."""
    world = load_organism(directory=ready(seed, PLANTED, worlds))
    pools = pools_of(world, seed, tested + nulls, kept)
    first, second = (pools[domain] for domain in DOMAINS)
    rows = [{"world": seed, **row} for row in across(world, pools, tested)]
    return rows, called_by_split(first, second, tested, SPLITS, seed)


def called_by_split(
    first: TrainingNull, second: TrainingNull, tested: int, splits: int, seed: int
) -> np.ndarray:
    """How many pairs are called shared where other pairs are the tested ones.

    Returns:
        Counts (split, position): every split parts the pairs anew, the same way at all positions.
    """
    cells = DomainPairs.of(first, second).cells
    cells = cells[cells["statistic"] == PROMPT_COSINE]
    values = cells.pivot_table(index="pair", columns="position", values="value")[list(POSITIONS)]
    rng = numpy_rng(seed, "splits of the pairs")
    counts = np.empty((splits, len(POSITIONS)), dtype=int)
    for split in range(splits):
        shuffled = values.to_numpy()[rng.permutation(len(values))]
        null = np.sort(shuffled[tested:], axis=0)
        # p = (1 + as large) / (1 + pairs) is at most the level for so many as large
        as_large = int(LEVEL * (1 + len(null))) - 1
        counts[split] = (shuffled[:tested] > null[-1 - as_large]).sum(axis=0)
    return counts


def permuted_called(values: Mapping[str, Any], position: str) -> tuple[int, int]:
    """Pairs on permuted answers that are called shared, over worlds."""
    rows = [
        row for row in values["across"] if row["pair"] == "permuted" and row["position"] == position
    ]
    return sum(row["called"] for row in rows), sum(row["of"] for row in rows)


def across_table(values: Mapping[str, Any]) -> str:
    """Pairs of fine-tunes of two domains on prompts of third domains."""
    lines = [
        "| world | position | pair | centred cosine | permuted pairs, mean and 95 % | p | cosine of"
        " means, p |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in values["across"]:
        if row["pair"] == "permuted":
            continue
        kind = {"r8": "harmful"}.get(row["pair"], row["pair"])
        lines.append(
            f"| {row['world']} | {row['position']} | {kind} | {row['value']:.3f} |"
            f" {row['null_mean']:.3f}, {row['null_q95']:.3f} | {row['p']:.3f} |"
            f" {row['cosine of means']:.3f}, {row['cosine of means, p']:.3f} |"
        )
    return "\n".join(lines)


def level_table(values: Mapping[str, Any]) -> str:
    """Pairs of adapters on permuted answers, tested as if they were fine-tunes."""
    worlds = sorted({row["world"] for row in values["across"]})
    head = ["position", *(f"world {world}" for world in worlds), "all"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for position in dict.fromkeys(row["position"] for row in values["across"]):
        cells = [position]
        for row in values["across"]:
            if row["pair"] == "permuted" and row["position"] == position:
                cells.append(f"{row['called']} of {row['of']}")
        count, of = permuted_called(values, position)
        lines.append("| " + " | ".join([*cells, f"{count} of {of}"]) + " |")
    return "\n".join(lines)


def over_splits(values: Mapping[str, Any]) -> str:
    """What the count of the fixed split is worth, in a sentence."""
    splits = values["splits"]
    count, of = (sum(part) for part in zip(*_both_positions(values), strict=True))
    return (
        f"{count} of {of} in all. Over {splits['splits']:,} other splits of the same pairs it is"
        f" {splits['mean']:.1f} in the mean, and {count} or more in {splits['at_least']:.1%}."
    )


def _both_positions(values: Mapping[str, Any]) -> list[tuple[int, int]]:
    positions = dict.fromkeys(row["position"] for row in values["across"])
    return [permuted_called(values, position) for position in positions]


def main(seeds: Sequence[int] = SEEDS) -> None:
    rows: list[dict[str, Any]] = []
    counts = np.zeros(SPLITS, dtype=int)
    with one_thread():
        for seed in seeds:  # each world is kept as soon as it is there
            of_pairs, by_split = of_world(seed, TESTED_ADAPTERS, NULL_ADAPTERS)
            rows += of_pairs
            counts += by_split.sum(axis=1)
            show(f"overlap across domains, world {seed}", pd.DataFrame(rows))
            called = sum(row["called"] for row in rows if row["pair"] == "permuted")
            splits = {
                "splits": SPLITS,
                "mean": float(counts.mean()),
                "at_least": float((counts >= called).mean()),
            }
            done = seeds[: seeds.index(seed) + 1]
            record("overlap_worlds", [*done], {"across": rows, "level": LEVEL, "splits": splits})
