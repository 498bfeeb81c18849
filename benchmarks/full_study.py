"""`full` on the organism with three fine-tune seeds: how long it takes, and the same bytes after a
kill in the middle.

The package is copied first and runs from the copy, so that edits made meanwhile are in neither run.
"""

import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import emlens
from benchmarks.records import record, study_command

CONFIG = """\
study: full
family: {organism: planted}
focus: [medicine-r8]
draws: 100
repeats: 2
permutations: 99
options:
  fine_tuning: {seeds: [0, 1, 2]}
"""
GOAL_MINUTES = 20


def measure(
    config_text: str, work: Path, seed: int = 0, whole: Callable[[dict[str, Any]], Any] = print
) -> dict[str, Any]:
    """Minutes of an undisturbed run, its report's size, and whether a run killed once in its middle
    ends with the same bytes.
    """
    shutil.copytree(
        Path(emlens.__file__).parent,
        work / "code" / "emlens",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    config = work / "study.yaml"
    config.write_text(config_text)
    environment = {**os.environ, "PYTHONPATH": str(work / "code")}
    started = time.monotonic()
    subprocess.run(
        study_command(config, work / "whole"),
        check=True,
        stdout=subprocess.DEVNULL,
        env=environment,
        cwd=work,
    )
    seconds = time.monotonic() - started
    parts = {path.stem: path.stat().st_mtime for path in (work / "whole" / "units").glob("*.json")}
    found: dict[str, Any] = {
        "minutes": seconds / 60,
        "goal_minutes": GOAL_MINUTES,
        "parts_in_order": sorted(parts, key=lambda name: parts[name]),
        "seconds_after_part": {
            name: round(parts[name] - min(parts.values()))
            for name in sorted(parts, key=lambda n: parts[n])
        },
        "report_bytes": (work / "whole" / "report.html").stat().st_size,
    }
    whole(found)  # stands even if what follows is interrupted
    process = subprocess.Popen(
        study_command(config, work / "killed"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd=work,
    )
    at = random.Random(seed).uniform(0.2, 0.8)
    time.sleep(at * seconds)
    in_time = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(
        study_command(config, work / "killed"),
        check=True,
        stdout=subprocess.DEVNULL,
        env=environment,
        cwd=work,
    )
    same = [(work / name / "result.json").read_bytes() for name in ("whole", "killed")]
    return found | {
        "killed_at_share": at,
        "killed_before_the_end": in_time,
        "same_bytes": same[0] == same[1],
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        found = measure(
            CONFIG, Path(name), whole=lambda partial: record("full_study", [0, 1, 2], partial)
        )
    record("full_study", [0, 1, 2], found)
