"""What each step costs on one card, beside plain transformers in the same run: capture of a
7B-shaped random model, sampling, training, judging and a study of a 1B-shaped one, in bfloat16.

One script of at most ten minutes: each part has a share of the time, and what one leaves is the
next one's. A part for which too little is left is left out, one that does not end is stopped; both
are said. The file is written after every part, so that a card that is taken away early leaves what
was measured. `python -m benchmarks.gpu --tiny` runs the same code on a processor in seconds.
"""

import argparse
import gc
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd
import torch

from benchmarks import gpu_judging, gpu_parts
from benchmarks.gpu_parts import CARD, TINY, Sizes
from benchmarks.records import EVIDENCE, record, show
from emlens.foundation.files import one_line

BUDGET: Final = 560.0
"""Seconds of all parts; imports and the end of a lease take the rest of ten minutes."""


@dataclass(frozen=True)
class Part:
    """A part of the measurement.

    Args:
        run: (sizes, device, deadline of `time.monotonic`) → what was found.
        share: of the time that parts have together.
        least: seconds without which it is not begun, on a card.
    """

    run: Callable[[Sizes, torch.device, float], dict[str, Any]]
    share: float
    least: float


PARTS: Final[Mapping[str, Part]] = {
    "training": Part(gpu_parts.training, 0.15, 30),
    "judging": Part(gpu_judging.judging, 0.1, 20),
    "sampling": Part(gpu_parts.sampling, 0.3, 60),
    "study": Part(gpu_judging.studying, 0.15, 40),
    "capture": Part(gpu_parts.capturing, 0.3, 60),
}
"""Capture is last: its rivals take longest, and it was measured on a processor before."""


class OutOfTimeError(Exception):
    """A part did not end in its time."""


@contextmanager
def stopped_after(seconds: float) -> Iterator[None]:
    """Raise `OutOfTimeError` inside once so many seconds are over."""

    def stop(*_: Any) -> None:
        raise OutOfTimeError(f"it did not end in {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def measure(
    sizes: Sizes,
    device: torch.device,
    keep: Callable[[dict[str, Any]], object],
    budget: float = BUDGET,
    names: Sequence[str] = tuple(PARTS),
    parts: Mapping[str, Part] = PARTS,
) -> dict[str, Any]:
    """All parts, or some.

    Args:
        keep: told everything so far after every part.
        budget: seconds of all of them.
    """
    ends = time.monotonic() + budget
    shares = [parts[name].share for name in names]
    found: dict[str, Any] = {"budget_s": budget, "parts": {}}
    for number, name in enumerate(names):
        left = ends - time.monotonic()
        # of what is left, its share among the parts that are left
        own = left * shares[number] / sum(shares[number:])
        found["parts"][name] = _outcome(parts[name], sizes, device, own, left)
        keep(found)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return found


def _outcome(
    part: Part, sizes: Sizes, device: torch.device, own: float, left: float
) -> dict[str, Any]:
    """What a part found, or why it found nothing.

    Args:
        own: seconds after which it begins no further round. left: those after which it is stopped.
    """
    if left < part.least and device.type == "cuda":
        return {"left_out": f"{left:.0f} s are left, and it takes {part.least:.0f} s or more"}
    began = time.monotonic()
    try:
        with stopped_after(max(0.1, left)):
            values = part.run(sizes, device, began + own)
    # what goes wrong in one part must not take the others' time on the card
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        values = {"failed": f"{type(error).__name__}: {one_line(str(error), 200)}"}
    return {"took_s": time.monotonic() - began, **values}


def table(found: Mapping[str, Any]) -> pd.DataFrame:
    """One row a part: the ratio to the plain way with its interval, or why there is none."""
    rows = []
    for name, part in found["parts"].items():
        row = {"part": name, "took_s": part.get("took_s"), "said": ""}
        for key in ("ratio", "low", "high"):
            row[key] = part.get(key)
        for reason in ("failed", "left_out"):
            row["said"] += part.get(reason, "")
        rows.append(row)
    return pd.DataFrame(rows)


def main(words: Sequence[str] = ()) -> None:
    """Measure on the card of this machine; with `--tiny` on any device, into a file of its own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on a processor")
    parser.add_argument(
        "--out", type=Path, help="the file; docs/evidence/gpu.json if none is given"
    )
    parser.add_argument("--seconds", type=float, default=BUDGET, help="of all parts")
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=tuple(PARTS))
    asked = parser.parse_args(list(words))
    if not asked.tiny and not torch.cuda.is_available():
        print("\ngpu: skipped, torch sees no GPU here")
        return
    if asked.tiny and asked.out is None:
        parser.error("--tiny measures nothing worth keeping: pass --out FILE")
    sizes, device = (TINY, torch.device("cpu")) if asked.tiny else (CARD, torch.device("cuda", 0))
    path = asked.out or EVIDENCE / "gpu.json"
    found = measure(
        sizes, device, lambda values: record("gpu", [0], values, path), asked.seconds, asked.parts
    )
    show("seconds of emlens ÷ seconds of the plain way", table(found))
    if any("failed" in part for part in found["parts"].values()):
        raise SystemExit(1)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
