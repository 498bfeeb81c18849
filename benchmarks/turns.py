"""Cases that take turns on one device: seconds of each in every round, their ratio with its
interval, and the memory that a call reaches.
"""

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from scipy.stats import t

Case = Callable[[], object]
CPU: Final = torch.device("cpu")


def wait(device: torch.device) -> None:
    """Until the device has done what it was given: its kernels run beside the program."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(run: Case, device: torch.device = CPU) -> float:
    """Wall seconds of a call, until the device has done all of it."""
    wait(device)
    started = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - started


def take_turns(
    cases: Mapping[str, Case],
    rounds: int,
    device: torch.device = CPU,
    deadline: float = math.inf,
) -> dict[str, list[float]]:
    """Seconds of each case in every round; in each, the order is drawn anew, so that no case always
    follows the same other.

    Args:
        deadline: of `time.monotonic`; no round begins that would end after it if it took as long as
            the longest so far. The first always runs.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    order, pick = list(cases), random.Random(0)
    longest = 0.0
    for number in range(rounds):
        began = time.monotonic()
        if number and began + longest > deadline:
            break
        pick.shuffle(order)
        for name in order:
            seconds[name].append(seconds_of(cases[name], device))
        longest = max(longest, time.monotonic() - began)
    return seconds


def compared(
    cases: Mapping[str, Case],
    rounds: int,
    device: torch.device = CPU,
    deadline: float = math.inf,
    ours: str = "emlens",
    plain: str = "plain",
) -> dict[str, Any]:
    """Peak memory of each case, in a call that warms it up; then seconds, and their ratio."""
    peaks = {name: peak_of(run, device) for name, run in cases.items()}
    seconds = take_turns(cases, rounds, device, deadline)
    return {**ratio_of(seconds[ours], seconds[plain]), "seconds": seconds, "peak_bytes": peaks}


def ratio_of(ours: Sequence[float], plain: Sequence[float]) -> dict[str, Any]:
    """Median ratio over rounds, and the 95 % interval of their mean."""
    ratios = [a / b for a, b in zip(ours, plain, strict=True)]
    return {"ratio": statistics.median(ratios), **over_rounds(ratios)}


def over_rounds(ratios: Sequence[float]) -> dict[str, Any]:
    """Mean of ratios and its 95 % interval (Student's t over rounds); one round gives none."""
    mean = float(np.mean(ratios))
    interval: dict[str, float | None] = {"low": None, "high": None}
    if len(ratios) > 1:
        error = float(np.std(ratios, ddof=1)) / math.sqrt(len(ratios))
        half = float(t.ppf(0.975, len(ratios) - 1)) * error
        interval = {"low": mean - half, "high": mean + half}
    return {"ratios": list(ratios), "mean": mean, **interval}


def peak_of(run: Case, device: torch.device = CPU) -> int | None:
    """Most bytes of tensors on the device during a call; None where it does not count them."""
    if device.type != "cuda":
        run()
        return None
    wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    wait(device)
    return torch.cuda.max_memory_allocated(device)
