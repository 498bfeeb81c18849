"""What a figure was to reach, what was measured, and how a page writes both."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

NOT_REACHED: Final = ", not reached"
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Goal:
    """What a figure was to reach: "≤", "≥" or "<" a number as pages write it; "=" just this number
    or count; "all" of those counted.
    """

    direction: str
    number: str = ""

    def __str__(self) -> str:
        return {"all": "all", "=": self.number}.get(
            self.direction, f"{self.direction} {self.number}"
        )

    def met(self, value: float | tuple[int, int]) -> bool:
        if isinstance(value, tuple):
            return (
                0 < value[0] == value[1]
                if self.direction == "all"
                else str(self) == count(*value).text
            )
        goal = float(self.number)
        return {"≤": value <= goal, "≥": value >= goal, "<": value < goal, "=": value == goal}[
            self.direction
        ]


@dataclass(frozen=True)
class Measured:
    """A measured number, or a count of so many, and how the page writes it."""

    value: float | tuple[int, int]
    text: str


Figure = tuple[str, str, tuple[Goal, ...], Callable[[Any], Measured | tuple[Measured, ...]]]
"""Evidence file, what the figure is, its goals, and how it is read off the values of the file."""


def told(goals: Sequence[Goal], measured: Sequence[Measured]) -> str:
    """The figures of a row as the page writes them, those that miss their goal marked."""
    if not goals:
        return "; ".join(each.text for each in measured)
    return "; ".join(
        each.text + ("" if goal.met(each.value) else NOT_REACHED)
        for goal, each in zip(goals, measured, strict=True)
    )


def number(value: float, form: str, more: str = "") -> Measured:
    """A number in the given form, with more text after it."""
    return Measured(value, f"{value:{form}}{more}")


def count(some: int, of: int) -> Measured:
    """So many of so many."""
    return Measured((some, of), f"{some:,} of {of:,}")


def interval(value: float, ends: Values) -> Measured:
    """A value with the ends `low` and `high` of its interval, where it has one."""
    known = ends["low"] is not None and ends["high"] is not None
    return number(
        value, ".2f", f" [{ends['low']:.2f}, {ends['high']:.2f}]" if known else ", no interval yet"
    )


def of_all(rows: Iterable[Values], some: str, every: str) -> Measured:
    """The sum of one field over the rows, of the sum of another."""
    pairs = [(row[some], row[every]) for row in rows]
    return count(sum(a for a, _ in pairs), sum(b for _, b in pairs))
