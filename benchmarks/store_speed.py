"""Writing a store against writing the same bytes to plain files, and reading one site against
`numpy.memmap`.

The plain files are as durable as the store's: flushed to disk, one a shard. Beside that the ratio
to files left in the page cache, which a power cut would lose. Rows are spread over the shards at
random, as a capture by length leaves them. Checksums are compared at the first read of a site,
which is a figure of its own; later reads are compared.
"""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.records import record, show
from emlens.activations.shards import read_record, shard_path, write_shard
from emlens.activations.store import ActivationStore, write_manifest
from emlens.foundation.seeds import torch_rng

ROUNDS = 9
GOAL = 1.25


class Work:
    """Rows of random activations, written as a store and as plain files."""

    def __init__(self, directory: Path, rows: int, width: int, layers: int, shard_rows: int):
        pick = torch_rng(0, "store speed")
        self.directory, self.rows, self.layers, self.shard_rows = (
            directory,
            rows,
            layers,
            shard_rows,
        )
        self.values = [torch.randn(rows, width, generator=pick) for _ in range(layers)]
        self.order = torch.cat(
            [part.sort().values for part in torch.randperm(rows, generator=pick).split(shard_rows)]
        )
        self.sites = [f"resid_post.{i}" for i in range(layers)]
        starts = range(0, rows, shard_rows)
        self.shards = [
            {
                (site, "last"): value[self.order[start : start + shard_rows]]
                for site, value in zip(self.sites, self.values, strict=True)
            }
            for start in starts
        ]
        self.bytes = rows * width * layers * 4

    def store(self) -> None:
        target = self.directory / "store"
        target.mkdir()
        order = self.order.tolist()
        ids = [f"row-{i}" for i in range(self.rows)]
        for number, values in enumerate(self.shards):
            start = number * self.shard_rows
            write_shard(
                target,
                number,
                values,
                {"ids": [ids[i] for i in order[start : start + self.shard_rows]]},
            )
        sidecars = [
            read_record(shard_path(target, n).with_suffix(".json")) for n in range(len(self.shards))
        ]
        body = {
            "ids": ids,
            "groups": [""] * self.rows,
            "order": order,
            "sites": self.sites,
            "positions": ["last"],
            "provenance": {},
            "shard_rows": [len(next(iter(values.values()))) for values in self.shards],
        }
        write_manifest(target, body, sidecars, None)

    def plain(self, durable: bool) -> None:
        target = self.directory / f"plain-{durable}"
        target.mkdir()
        for number, values in enumerate(self.shards):
            with open(target / f"{number}.bin", "wb", buffering=0) as file:
                for value in values.values():
                    file.write(value.numpy().data)
                if durable:
                    os.fsync(file.fileno())

    def clear(self) -> None:
        for path in self.directory.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
        os.sync()


def timed(
    cases: dict[str, Callable[[], Any]], rounds: int, between: Callable[[], Any] = lambda: None
) -> dict[str, list[float]]:
    """Seconds of every case in every round; a round before them is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        names = list(cases)
        for name in names if number % 2 else reversed(names):
            between()
            started = time.perf_counter()
            cases[name]()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def measure(
    directory: Path,
    *,
    rows: int = 16_384,
    width: int = 2048,
    layers: int = 4,
    shard_rows: int = 1024,
    rounds: int = ROUNDS,
) -> dict[str, Any]:
    work = Work(directory, rows, width, layers, shard_rows)
    writing = timed(
        {
            "store": work.store,
            "plain files, durable": lambda: work.plain(True),
            "plain files, page cache": lambda: work.plain(False),
        },
        rounds,
        work.clear,
    )
    work.clear()
    work.store()
    np.save(directory / "all.npy", torch.stack(work.values).numpy())
    stacked = np.load(directory / "all.npy", mmap_mode="r")
    site = layers // 2
    started = time.perf_counter()
    opened = ActivationStore.open(directory / "store")
    opening = time.perf_counter() - started
    started = time.perf_counter()
    found = opened[f"resid_post.{site}"]
    first = time.perf_counter() - started
    if not np.array_equal(found.numpy(), np.array(stacked[site])):
        raise SystemExit(
            "the store and the memory map hold different values; not timing different results"
        )
    reading = timed(
        {
            "store": lambda: opened[f"resid_post.{site}"],
            "numpy.memmap": lambda: np.array(stacked[site]),
        },
        3 * rounds,
    )
    middle = {
        kind: {name: statistics.median(s) for name, s in cases.items()}
        for kind, cases in (("write", writing), ("read", reading))
    }
    spread = {
        f"{kind} {name}": [min(s), max(s)]
        for kind, cases in (("write", writing), ("read", reading))
        for name, s in cases.items()
    }
    return {
        "bytes": work.bytes,
        "bytes_of_a_site": work.bytes // layers,
        "shards": len(work.shards),
        "rounds": rounds,
        "median_s": middle,
        "min_max_s": spread,
        "open_s": opening,
        "first_read_with_checksum_s": first,
        "write_over_durable_plain_files": (
            middle["write"]["store"] / middle["write"]["plain files, durable"]
        ),
        "write_over_plain_files_in_page_cache": (
            middle["write"]["store"] / middle["write"]["plain files, page cache"]
        ),
        "later_read_over_memmap": middle["read"]["store"] / middle["read"]["numpy.memmap"],
        "goal": GOAL,
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name))
    shown = (
        "write_over_durable_plain_files",
        "write_over_plain_files_in_page_cache",
        "later_read_over_memmap",
    )
    show(
        f"activation store (goal: at most {GOAL})",
        pd.DataFrame([{"ratio": key, "value": found[key]} for key in shown]),
    )
    record("store_speed", [0], found)
