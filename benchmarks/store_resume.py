"""SIGKILL a capture into a store at random moments and capture again: the same bytes as an
undisturbed run?

Each trial runs in a forked process, on one thread. The killed directory must also never pass for a
finished store.
"""

import multiprocessing
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import capture_speed
from benchmarks.records import record
from emlens.activations import ActivationStore, CaptureSpec, batch_layout, capture
from emlens.data import PromptSet
from emlens.foundation.errors import EmlensError
from emlens.models.hooked import HookedModel

KILLS = 25


def content(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def run(model: HookedModel, asked: PromptSet, target: Path, shard_rows: int) -> None:
    torch.set_num_threads(1)
    batch_layout.SHARD_ROWS = shard_rows
    capture(
        model,
        asked,
        spec=CaptureSpec(positions=["last_prompt", "mean_prompt", "all"], batch_tokens=512),
        store=target,
        progress=False,
    )


def measure(
    work: Path, kills: int, *, count: int = 400, shard_rows: int = 16, seed: int = 0
) -> dict[str, Any]:
    model = capture_speed.build(layers=2, width=32, words=200)
    asked = capture_speed.prompts(count=count, words=200)
    context = multiprocessing.get_context("fork")

    def start(target: Path) -> Any:
        process = context.Process(target=run, args=(model, asked, target, shard_rows))
        process.start()
        return process

    started = time.monotonic()
    first = start(work / "whole")
    first.join()
    length = time.monotonic() - started
    expected = content(work / "whole")
    shards = sum(name.startswith("shard-") and name.endswith(".json") for name in expected)
    pick = random.Random(seed)
    found = {
        "kills": kills,
        "kills_before_the_end": 0,
        "kills_with_shards_standing": 0,
        "kills_while_a_file_was_written": 0,
    }
    found |= {"same_bytes": 0, "passed_for_finished": 0}
    for number in range(kills):
        target = work / f"killed-{number}"
        process = start(target)
        # by shards rather than by the clock, so that a busy machine spreads the kills as well
        after = pick.randrange(shards)
        while process.is_alive() and len(list(target.glob("shard-*.json"))) < after:
            time.sleep(length / shards / 50)
        time.sleep(pick.uniform(0, length / shards))
        if process.is_alive():
            process.kill()
        process.join()
        in_time = process.exitcode == -signal.SIGKILL
        found["kills_before_the_end"] += in_time
        found["kills_with_shards_standing"] += in_time and bool(list(target.glob("shard-*.json")))
        found["kills_while_a_file_was_written"] += in_time and bool(list(target.glob(".*.part")))
        if in_time and not (target / "manifest.json").exists():
            try:
                ActivationStore.open(target)
                found["passed_for_finished"] += 1
            except EmlensError:
                pass
        again = start(target)
        again.join()
        found["same_bytes"] += again.exitcode == 0 and content(target) == expected
    return {**found, "undisturbed_seconds": length, "shards": shards}


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name), KILLS)
    print(f"\na capture into a store, resumed after SIGKILL: {found}")
    record("store_resume", [0], found)
