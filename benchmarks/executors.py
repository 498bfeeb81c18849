"""One process, ranks and Ray actors capture the same bytes; ranks killed at random moments lose and
double nothing.

The results are compared first. Times are of whole calls in processes that have imported the
libraries, loading and planning included; ranks and actors share the cores of one machine here, so
they show what sharing costs, not what it gains.
"""

import json
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.records import record, show
from emlens.activations import CaptureSpec, capture, capture_over
from emlens.data import PromptSet
from emlens.models import HookedModel, load_model
from emlens.organisms.loading import ASSETS
from emlens.runs import LocalExecutor, RankExecutor, RayExecutor

RANKS = 4
KILLS = 25
ROUNDS = 5


@dataclass(frozen=True)
class Task:
    """A capture that every process understands: a model on disk, how many prompts, rows of a
    shard.
    """

    model: Path
    rows: int = 1200
    shard_rows: int = 64

    def load(self) -> HookedModel:
        from emlens.activations import batch_layout

        batch_layout.SHARD_ROWS = (
            self.shard_rows
        )  # small shards: many units, and kills in many places
        return load_model(self.model, dtype="float32", device="cpu")

    def prompts(self) -> PromptSet:
        pick = random.Random(0)
        return PromptSet.from_questions(
            [
                " ".join(
                    pick.choices(["why", "is", "water", "the", "a", "how"], k=pick.randint(3, 60))
                )
                for _ in range(self.rows)
            ]
        )

    @property
    def options(self) -> dict[str, Any]:
        spec = CaptureSpec(positions=["last_prompt", "mean_prompt"], batch_tokens=512)
        return {"spec": spec, "progress": False}


def _rank(task: Task, store: Path, rank: int, count: int, run: str) -> None:
    capture_over(
        RankExecutor(rank, count, run=run),
        task.load,
        task.prompts(),
        store,
        threads=1,
        **task.options,
    )


def _alone(task: Task, store: Path) -> None:
    import torch

    torch.set_num_threads(1)
    capture(task.load(), task.prompts(), store=store, **task.options)


def _local(task: Task, store: Path) -> None:
    capture_over(LocalExecutor(), task.load, task.prompts(), store, threads=1, **task.options)


def _start(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    context = get_context("forkserver")
    context.set_forkserver_preload(
        ["emlens.activations", "transformers.models.qwen2.modeling_qwen2"]
    )
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def _start_ranks(task: Task, store: Path, count: int, run: str = "benchmark") -> list[BaseProcess]:
    return [_start(_rank, task, store, rank, count, run) for rank in range(count)]


def _joined(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.join()
        if process.exitcode != 0:
            raise SystemExit(
                f"a worker ended with exit code {process.exitcode}; not timing what failed"
            )


def bytes_of(store: Path) -> dict[str, bytes]:
    """Contents of a store, without the records of who captured it."""
    return {path.name: path.read_bytes() for path in store.iterdir() if path.name != "units"}


def rows_answered(store: Path) -> int:
    records = [
        json.loads(path.read_text()) for path in (store / "units" / "answers").glob("*.json")
    ]
    return sum(
        found["result"]["rows"] for found in records if not found["name"].startswith("finish")
    )


def timings(task: Task, work: Path, ranks: int, rounds: int, ray: bool) -> pd.DataFrame:
    """Seconds of each way, interleaved; every store is compared with the first before its time
    counts.
    """

    def by_ray(store: Path) -> None:
        capture_over(RayExecutor(2), task.load, task.prompts(), store, threads=1, **task.options)

    ways: dict[str, Callable[[Path], None]] = {
        "capture(store=), one process": lambda store: _joined([_start(_alone, task, store)]),
        "LocalExecutor": lambda store: _joined([_start(_local, task, store)]),
        f"RankExecutor, {ranks} ranks": lambda store: _joined(_start_ranks(task, store, ranks)),
    }
    if ray:
        ways["RayExecutor, 2 actors, starting a cluster"] = by_ray
    expected: dict[str, bytes] | None = None
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            store = work / f"{number}-{len(seconds[name])}-{list(ways).index(name)}"
            started = time.perf_counter()
            way(store)
            took = time.perf_counter() - started
            found = bytes_of(store)
            expected = expected or found
            if found != expected:
                raise SystemExit(
                    f"{name}: other bytes than one process; not timing different results"
                )
            if number:  # the first round warms up
                seconds[name].append(took)
    first = float(np.median(next(iter(seconds.values()))))
    return pd.DataFrame(
        [
            {
                "case": name,
                "median_s": np.median(s),
                "min_s": min(s),
                "max_s": max(s),
                "ratio_to_capture": np.median(s) / first,
            }
            for name, s in seconds.items()
        ]
    )


def killed(task: Task, work: Path, ranks: int, kills: int, seed: int = 0) -> dict[str, float]:
    """SIGKILL one rank of several at a random moment; the others must finish with the bytes of an
    undisturbed capture.

    A kill that comes after the end kills nobody and is counted apart; so is one that left a claim
    to be taken over.
    """
    _joined([_start(_alone, task, work / "whole")])
    expected = bytes_of(work / "whole")
    started = time.perf_counter()
    _joined(_start_ranks(task, work / "ranks", ranks))
    length = time.perf_counter() - started
    pick = random.Random(seed)
    same = in_time = taken_over = rows_right = 0
    for number in range(kills):
        store = work / f"killed-{number}"
        processes = _start_ranks(task, store, ranks)
        time.sleep(pick.uniform(0.1, 0.95) * length)
        victim = processes.pop(pick.randrange(ranks))
        in_time += victim.is_alive()
        victim.kill()
        victim.join()
        _joined(processes)
        same += bytes_of(store) == expected
        rows_right += rows_answered(store) == task.rows
        taken_over += any((store / "units" / "claims").glob("*.failed.json"))
    return {
        "ranks": ranks,
        "kills": kills,
        "kills_before_the_end": in_time,
        "units_taken_over": taken_over,
        "same_bytes": same,
        "every_row_once": rows_right,
        "undisturbed_seconds": length,
    }


def main() -> None:
    task = Task(ASSETS / "planted" / "instruct")
    with tempfile.TemporaryDirectory() as name:
        table = timings(task, Path(name), RANKS, ROUNDS, ray=True)
    with tempfile.TemporaryDirectory() as name:
        kills = killed(task, Path(name), RANKS, KILLS)
    show("capture over executors: the same bytes", table)
    print(f"\na rank killed by SIGKILL: {kills}")
    record(
        "executors", [0], {"rows": task.rows, "timings": table.to_dict("records"), "killed": kills}
    )
