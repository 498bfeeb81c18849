"""Peak memory of a capture into a store: many prompts against few, each in a process of its own.

The model is tiny, so that what grows with the prompts is not hidden behind its weights; the prompts
themselves, which the caller holds, are part of what is measured. Both sets have the same lengths,
as often as it takes: a longer prompt would make a larger batch, which is another question.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.records import record

FEW, MANY = 2_000, 20_000
GOAL = 1.05


def child(count: int, period: int, target: str) -> None:
    """Capture and read one site back; print the peak resident memory in bytes, before and after."""
    import resource

    from benchmarks import capture_speed
    from emlens.activations import capture

    model = capture_speed.build(layers=2, width=32, words=2000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    acts = capture(
        model,
        capture_speed.prompts(count=count, words=2000, period=period),
        store=target,
        progress=False,
    )
    rows = len(acts["resid_post.1"])
    print(
        json.dumps(
            {
                "rows": rows,
                "before": before * 1024,
                "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    )


def peak(count: int, period: int, work: Path) -> dict[str, int]:
    code = (
        "from benchmarks.capture_memory import child;"
        f" child({count}, {period}, {str(work / str(count))!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    found: dict[str, int] = json.loads(done.stdout)
    return found


def measure(work: Path, few: int, many: int) -> dict[str, Any]:
    small, large = peak(few, few, work), peak(many, few, work)
    return {
        "prompts": [few, many],
        "peak_bytes": [small["peak"], large["peak"]],
        "bytes_before_the_capture": [small["before"], large["before"]],
        "ratio": large["peak"] / small["peak"],
        "bytes_a_further_prompt": (large["peak"] - small["peak"]) / (many - few),
        "goal": GOAL,
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name), FEW, MANY)
    print(
        f"\npeak memory of a capture of {MANY} prompts over one of {FEW}:"
        f" {found['ratio']:.3f} (goal {GOAL})"
    )
    record("capture_memory", [0], found)
