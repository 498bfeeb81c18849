"""Figures with a goal: faults of a machine, hostile input, two writers, and sizes."""

from collections.abc import Mapping
from typing import Any, Final

from benchmarks.goals import Figure, Goal, Measured, Values, count, number


def _same_bytes(commands: Values, *, studies: bool) -> Measured:
    """Kills that ended with the same bytes, of single commands or of `overview`."""
    rows = [row for name, row in commands.items() if (name == "overview") is studies]
    return count(sum(row["same_bytes"] for row in rows), sum(row["kills"] for row in rows))


def _bombs(values: Values) -> Measured:
    """Bombs that were refused, within the second and within the memory: the fewest of the three."""
    kept = ("refused", "within_a_second", "within_200_MB")
    return count(min(values[name] for name in kept), values["bombs"])


def _unspoiled(kinds: Mapping[str, Any]) -> Measured:
    tries = sum(kind["tries"] for kind in kinds.values())
    return count(tries - sum(kind["faults"] for kind in kinds.values()), tries)


def _ratio(values: Values, step: str) -> Measured:
    return number(values["steps"][step]["peak_ratio"], ".2f")


def _alike(calls: Mapping[str, Any]) -> Measured:
    """Calls, repeated and concurrent, that gave what the first one gave."""
    ways = [call[way] for call in calls.values() for way in ("repeated", "concurrent")]
    return count(
        sum(way["same"] for way in ways), sum(way.get("repeats", way.get("calls")) for way in ways)
    )


def _ended(calls: Mapping[str, Any]) -> Measured:
    """Forked children that gave the same or were refused in a line."""
    forks = [call["forked"] for call in calls.values()]
    return count(
        sum(fork["same"] + fork["refused"] for fork in forks), sum(fork["forks"] for fork in forks)
    )


def _most_growth(calls: Mapping[str, Any]) -> tuple[Measured, Measured]:
    """kB a repeat, and files and threads after all of them: the most of any call."""
    growths = [call["repeated"]["growth"] for call in calls.values()]
    left = max(growth["files"] + growth["threads"] for growth in growths)
    return number(max(growth["bytes"] for growth in growths) / 1000, ".0f"), number(left, "d")


FIGURES: Final[tuple[Figure, ...]] = (
    (
        "bombs",
        "generated bombs refused within 1 s and 200 MB above the process",
        (Goal("all"),),
        _bombs,
    ),
    (
        "kills",
        "kills of six commands, and of a whole study, on the organism: same bytes",
        (Goal("all"), Goal("all")),
        lambda v: (
            _same_bytes(v["organism"], studies=False),
            _same_bytes(v["organism"], studies=True),
        ),
    ),
    (
        "two_writers",
        "two writers at once, six kinds: tries with nothing doubled, lost or spoiled",
        (Goal("all"),),
        _unspoiled,
    ),
    (
        "sizes",
        "200,000 answers: peak memory over that of 20,000, `judge`; `rescore`; `score`",
        (Goal("≤", "1.1"), Goal("≤", "1.1"), Goal("≤", "1.1")),
        lambda v: tuple(_ratio(v, step) for step in ("judge", "rescore", "score")),
    ),
    (
        "lasting",
        "calls of a notebook 50 times, in event loops and threads: alike",
        (Goal("all"),),
        _alike,
    ),
    (
        "lasting",
        "the same calls: kB more a repeat; open files and threads more after all",
        (Goal("≤", "100"), Goal("=", "0")),
        _most_growth,
    ),
    (
        "lasting",
        "processes forked while a thread computes: alike, or refused in a line",
        (Goal("all"),),
        _ended,
    ),
)
