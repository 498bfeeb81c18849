"""SIGKILL a study at random moments and run it again: the same result.json as an undisturbed
run?
"""

import random
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.records import record, study_command

KILLS = 10


def trial(config: Path, out: Path, after: float) -> bool:
    """Start the command, kill it after so many seconds, run it to the end; True where the kill came
    in time.
    """
    command = study_command(config, out)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(after)
    in_time = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return in_time


def measure(config: Path, kills: int, work: Path, seed: int = 0) -> dict[str, float]:
    started = time.monotonic()
    trial(config, work / "whole", 0.0)
    length = time.monotonic() - started
    expected = (work / "whole" / "result.json").read_bytes()
    rng = random.Random(seed)
    same = in_time = 0
    for number in range(kills):
        out = work / f"killed-{number}"
        in_time += trial(config, out, rng.uniform(0.1, 0.9) * length)
        same += (out / "result.json").read_bytes() == expected
        shutil.rmtree(out)
    return {
        "kills": kills,
        "kills_before_the_end": in_time,
        "same_bytes": same,
        "undisturbed_seconds": length,
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        config = Path(name) / "study.yaml"
        config.write_text(
            "study: overview\nfamily: {organism: planted}\nfocus: [medicine-r8]\ndraws:"
            " 50\nrepeats: 1\npermutations: 20\n"
        )
        found = measure(config, KILLS, Path(name))
    print(f"\nresumed after SIGKILL: {found}")
    record("resume", [0], found)
