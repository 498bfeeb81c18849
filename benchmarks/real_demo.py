"""`emlens real demo`, whole: how long it takes, how much memory, how large its report is, and the
same bytes after a kill.

The command runs as a process of its own and is killed (SIGKILL) once, at a place drawn by seed
between a fifth and four fifths of its time; the same command goes on. Bytes are those of
`result.json` and of every table. Where the machine is shared, CPU seconds are what an idle core
would need at least; both are recorded. Fine-tunes can be put there before, which leaves their
training out.
"""

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.real_studies import page_of, rows_of
from benchmarks.records import record
from emlens.foundation.files import sha256_file
from emlens.real.demonstration import demonstration_members

GOALS: Final = {"minutes": 15, "gigabytes": 6, "megabytes": 12}
MINUTES_AT_HAND: Final = 8
"""Goal where the fine-tunes are at hand."""
COMMAND: Final = (
    sys.executable,
    "-c",
    "from emlens.cli.main import main; main()",
    "real",
    "demo",
    "--quiet",
)


def run(out: Path, kill_after: float | None = None) -> dict[str, float]:
    """One run of the command: seconds, CPU seconds, gigabytes at most; killed where it is asked."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*COMMAND, "--out", str(out)], stdout=subprocess.DEVNULL, env=environment
    )
    if kill_after is not None:
        try:
            process.wait(kill_after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
    code = process.wait()
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"emlens real demo ended with {code}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": time.monotonic() - started,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "gigabytes": after.ru_maxrss * 1024 / 1e9,
        "killed": code != 0,
    }


def left(out: Path) -> dict[str, str]:
    """File → hash, of everything that must be the same in two runs."""
    study = out / "study"
    files = [study / "result.json", *sorted((study / "tables").glob("*.csv"))]
    return {str(path.relative_to(study)): sha256_file(path) for path in files}


def with_fine_tunes(out: Path, family: Path | None) -> None:
    """Put fine-tunes that were trained before where the command looks for its own."""
    if family is None:
        return
    for member in demonstration_members():
        shutil.copytree(family / member.name, out / "finetuned" / member.name)


def seconds_of_parts(out: Path) -> dict[str, int]:
    """Seconds from the end of the first part to the end of each."""
    units = {path.stem: path.stat().st_mtime for path in (out / "study" / "units").glob("*.json")}
    first = min(units.values(), default=0.0)
    return {name: round(at - first) for name, at in sorted(units.items(), key=lambda x: x[1])}


def measure(work: Path, family: Path | None = None, seed: int = 0) -> dict[str, Any]:
    """A run without disturbance, then one in the same folder name that is killed once.

    The folder is the same because the configuration of the study names it.
    """
    out = work / "demo-real"
    with_fine_tunes(out, family)
    whole = run(out)
    values: dict[str, Any] = {
        "fine_tunes_at_hand": family is not None,
        "whole": whole,
        "goals": dict(GOALS),
        "seconds_after_first_part": seconds_of_parts(out),
        "report_megabytes": (out / "study" / "report.html").stat().st_size / 1e6,
        "page": page_of(out / "study"),
        "landmarks": rows_of(out / "study", "overlap_landmarks"),
    }
    record("real_demo", [0], values)  # stands even if what follows is interrupted
    expected = left(out)
    out.rename(work / "undisturbed")
    with_fine_tunes(out, family)
    share = random.Random(seed).uniform(0.2, 0.8)
    first = run(out, share * whole["seconds"])
    again = run(out)
    return values | {
        "killed_at_share": share,
        "killed_before_the_end": first["killed"],
        "resumed": again,
        "same_bytes": left(out) == expected,
        "files_compared": len(expected),
    }


def cost_table(values: Mapping[str, Any]) -> str:
    """Time, memory and size, for the page."""
    whole = values["whole"]
    trained = "fine-tunes at hand" if values["fine_tunes_at_hand"] else "fine-tunes trained too"
    lines = [
        f"| `make demo-real`, {trained} | measured | goal |",
        "|---|---|---|",
        f"| CPU minutes, what an idle core needs at least | {whole['cpu_seconds'] / 60:.1f} |"
        f" ≤ {MINUTES_AT_HAND if values['fine_tunes_at_hand'] else values['goals']['minutes']} |",
        f"| minutes by the clock, on a machine that others used as well |"
        f" {whole['seconds'] / 60:.1f} | – |",
        f"| memory of a process at most, GB | {whole['gigabytes']:.1f} |"
        f" ≤ {values['goals']['gigabytes']} |",
        f"| report, MB | {values['report_megabytes']:.1f} | ≤ {values['goals']['megabytes']} |",
    ]
    if "same_bytes" in values:
        same = "yes" if values["same_bytes"] and values["killed_before_the_end"] else "no"
        lines.append(
            f"| killed once and resumed: the same bytes in {values['files_compared']} files |"
            f" {same} | yes |"
        )
    return "\n".join(lines)


def main(work: Path = Path("runs/real_demo"), family: Path | None = None) -> None:
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    values = measure(work, family)
    print(cost_table(values))
    record("real_demo", [0], values)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=Path("runs/real_demo"))
    parser.add_argument("--family", type=Path, help="folder of fine-tunes that are at hand")
    arguments = parser.parse_args()
    main(arguments.work, arguments.family)
