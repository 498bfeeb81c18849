"""SIGKILL a training run and a sweep at random moments and call them again: the same bytes as undisturbed ones? About four minutes, most of it imports."""

import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.records import record
from emlens.foundation.files import sha256_file

KILLS = {"run": 6, "sweep": 4}
STEPS = {"run": 60, "sweep": 6}
PROGRAM = """
import sys, warnings
warnings.filterwarnings("ignore")
import torch
torch.set_num_threads(1)
from pathlib import Path
from emlens.organisms import load
from emlens.training import Recipe, Sweep, fit, run_sweep
what, out, steps = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
organism = load()
recipe = Recipe(method="lora", rank=4, alpha=8, target_modules=("q_proj", "down_proj"), learning_rate=1e-3, steps=steps, batch_size=8)
parent, chats = organism.paths["instruct"], organism.training_prompts["medicine-r8"]
(out.parent / (out.name + ".begun")).write_text("")
if what == "run":
    if not out.is_dir():
        fit(recipe.varied(optimiser="sam"), parent, chats, out, keep_every=10, resume_every=3)
else:
    axes = {"optimiser": ["adamw", "lion", "muon"], "schedule": {"linear": {}, "cyclical": {"schedule": "triangular", "cycles": 2, "base_learning_rate": 1e-4}}}
    run_sweep(Sweep(recipe, axes), parent, chats, out, resume_every=2, progress=False)
"""


def contents(directory: Path) -> dict[str, str]:
    """Checksums of what a run or a sweep made; not of claims and answers, which say who worked when."""
    inside = directory / "runs" if (directory / "runs").is_dir() else directory
    tables = [path for path in directory.glob("*.csv") if inside != directory]
    return {str(p.relative_to(directory)): sha256_file(p) for p in [*sorted(inside.rglob("*")), *tables] if p.is_file()}


def start(what: str, out: Path, steps: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", PROGRAM, what, str(out), str(steps)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def trial(what: str, out: Path, steps: int, length: float, rng: random.Random, kills: int) -> tuple[int, float]:
    """Kill `kills` times at random moments of the work (loading apart), then run to the end; kills in time, and steps found standing."""
    begun = out.parent / f"{out.name}.begun"
    in_time, stood = 0, 0.0
    for _ in range(kills):
        begun.unlink(missing_ok=True)
        process = start(what, out, steps)
        while not begun.exists() and process.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.uniform(0.02, 0.95) * length)
        in_time += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = [int(p.name.removeprefix("step-")) for p in out.parent.glob(f".{out.name}.resume/step-*")]
        stood = max(stood, float(max(found, default=0)))
    process = start(what, out, steps)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(errors.decode()[-2000:])
    return in_time, stood


def measure(what: str, kills: int, steps: int, work: Path, seed: int = 0, at_once: int = 2) -> dict[str, Any]:
    """Trials of `at_once` kills each, one after the other on the same directory."""
    whole = work / f"{what}-whole"
    process = start(what, whole, steps)
    begun = work / f"{what}-whole.begun"
    while not begun.exists() and process.poll() is None:
        time.sleep(0.02)
    started = time.monotonic()
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(errors.decode()[-2000:])
    length = time.monotonic() - started
    expected = contents(whole)
    rng = random.Random(seed)
    same = in_time = 0
    stood: list[float] = []
    trials = max(1, kills // at_once)
    for number in range(trials):
        out = work / f"{what}-{number}"
        hit, at = trial(what, out, steps, length, rng, at_once)
        in_time += hit
        stood.append(at)
        same += contents(out) == expected
        shutil.rmtree(out)
    return {
        "trials": trials, "kills": trials * at_once, "kills_before_the_end": in_time, "same_bytes": same, "files": len(expected),
        "undisturbed_seconds": length, "newest_snapshot_steps": stood,
    }  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        found = {what: measure(what, kills, STEPS[what], Path(name)) for what, kills in KILLS.items()}
    print(found)
    record("training_resume", [0], found)
