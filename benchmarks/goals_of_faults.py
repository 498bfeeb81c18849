"""Figures with a goal: faults of a machine, hostile input, two writers, and sizes."""

from collections.abc import Mapping
from typing import Any, Final

from benchmarks.goals import Figure, Goal, Measured, Values, count


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
)
