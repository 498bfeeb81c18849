"""Do harmful fine-tunes of two domains shift prompts of third domains alike, beyond training
without the content? In three worlds of the organism, beside 59 pairs on permuted answers.

The benign pair stands beside the harmful one: what both share is no mark of harm. About three
minutes a world on one core. Pools are kept under `runs/overlap_pool`, worlds under `runs/worlds`
(`python -m benchmarks organism_worlds` builds them).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.organism_worlds import KEPT as WORLDS, SEEDS, ready
from benchmarks.overlap_pools import (
    DOMAINS,
    KEPT,
    LEVEL,
    NULL_ADAPTERS,
    TESTED_ADAPTERS,
    across,
    pool,
)
from benchmarks.records import record, show
from emlens.organisms import PLANTED, load_organism
from emlens.organisms.building import one_thread


def of_world(
    seed: int, tested: int, nulls: int, *, worlds: Path = WORLDS, kept: Path = KEPT
) -> list[dict[str, Any]]:
    """One row a pair and position."""
    world = load_organism(directory=ready(seed, PLANTED, worlds))
    pools = {
        domain: pool(world, domain, tested + nulls, kept / f"world-{seed}") for domain in DOMAINS
    }
    return [{"world": seed, **row} for row in across(world, pools, tested)]


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


def main(seeds: Sequence[int] = SEEDS) -> None:
    rows: list[dict[str, Any]] = []
    with one_thread():
        for seed in seeds:  # each world is kept as soon as it is there
            rows += of_world(seed, TESTED_ADAPTERS, NULL_ADAPTERS)
            show(f"overlap across domains, world {seed}", pd.DataFrame(rows))
            record(
                "overlap_worlds",
                [*seeds[: seeds.index(seed) + 1]],
                {"across": rows, "level": LEVEL},
            )
