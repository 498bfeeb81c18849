"""SIGKILL a training run and a sweep at random moments and call them again: the same bytes as
undisturbed ones?

Each attempt is a forked process, so imports cost nothing. About two minutes on one core.
"""

import os
import random
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers.trainer  # noqa: F401, so that forked processes have it

from benchmarks.records import record
from emlens.foundation.files import sha256_file
from emlens.organisms import load_organism
from emlens.training import Recipe, Saving, Sweep, fit, run_sweep

TRIALS = {"run": 13, "sweep": 6}
KILLS = 2
"""In each trial, one after the other in the same directory."""
STEPS = {"run": 40, "sweep": 6}


def work(what: str, out: Path, steps: int) -> None:
    """What is killed: one run with SAM, a snapshot every third step and kept adapters; or a sweep
    of six runs with snapshots.
    """
    torch.set_num_threads(1)
    organism = load_organism()
    recipe = Recipe(
        method="lora",
        rank=4,
        alpha=8,
        target_modules=("q_proj", "down_proj"),
        learning_rate=1e-3,
        steps=steps,
        batch_size=8,
    )
    parent, chats = organism.paths["instruct"], organism.training_prompts["medicine-r8"]
    if what == "run":
        if not out.is_dir():
            saving = Saving(keep_every=10, resume_every=3)
            sam = recipe.varied(optimiser="sam")
            fit(sam, parent, chats, out, saving=saving, device="cpu")
        return
    cyclical = {"schedule": "triangular", "cycles": 2, "base_learning_rate": 1e-4}
    sweep = Sweep(
        recipe,
        {"optimiser": ["adamw", "lion", "muon"], "schedule": {"linear": {}, "cyclical": cyclical}},
    )
    saving = Saving(resume_every=2)
    run_sweep(sweep, parent, chats, out, saving=saving, device="cpu", progress=False)


def start(task: Callable[[], None]) -> int:
    """Fork a process that does the task and leaves."""
    child = os.fork()
    if child == 0:
        code = 0
        try:
            task()
        except BaseException:
            traceback.print_exc()
            code = 1
        os._exit(code)
    return child


def contents(directory: Path) -> dict[str, str]:
    """Checksums of what a run or a sweep made; not of claims and answers, which say who worked
    when.
    """
    inside = directory / "runs" if (directory / "runs").is_dir() else directory
    tables = [path for path in directory.glob("*.csv") if inside != directory]
    return {
        str(p.relative_to(directory)): sha256_file(p)
        for p in [*sorted(inside.rglob("*")), *tables]
        if p.is_file()
    }


def snapshots(out: Path) -> int:
    """Snapshots from which an unfinished run, the run itself or one of a sweep, would go on."""
    return len([*out.parent.glob(f".{out.name}.resume/step-*"), *out.glob("runs/.*.resume/step-*")])


def measure(what: str, trials: int, steps: int, work_in: Path, seed: int = 0) -> dict[str, Any]:
    """Kill `KILLS` attempts at random moments, let one finish, compare; as often as `trials`."""
    whole = work_in / f"{what}-whole"
    started = time.monotonic()
    done = os.waitpid(start(lambda: work(what, whole, steps)), 0)[1]
    length = time.monotonic() - started
    if done:
        raise SystemExit(f"the undisturbed {what} failed")
    expected = contents(whole)
    rng = random.Random(seed)
    same = in_time = inside = 0
    for number in range(trials):
        out = work_in / f"{what}-{number}"
        for _ in range(KILLS):
            child = start(lambda out=out: work(what, out, steps))
            time.sleep(rng.uniform(0.05, 0.95) * length)
            in_time += os.waitpid(child, os.WNOHANG) == (0, 0)
            try:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            except (ProcessLookupError, ChildProcessError):
                pass
            inside += snapshots(out) > 0
        if os.waitpid(start(lambda out=out: work(what, out, steps)), 0)[1]:
            raise SystemExit(f"{what} {number} failed when it was called again")
        same += contents(out) == expected
        shutil.rmtree(out)
    return {
        "trials": trials,
        "kills": trials * KILLS,
        "kills_before_the_end": in_time,
        "kills_that_left_a_snapshot": inside,
        "same_bytes": same,
        "files": len(expected),
        "undisturbed_seconds": length,
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        found = {
            what: measure(what, trials, STEPS[what], Path(name)) for what, trials in TRIALS.items()
        }
    print(found)
    record("training_resume", [0], found)
