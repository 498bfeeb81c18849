"""What became of an attempt at a unit of work."""

from enum import Enum


class Outcome(Enum):
    """What became of an attempt."""

    DONE = "done"
    """This attempt did it."""
    DONE_BEFORE = "done before"
    """Its result was there already."""
    FAILED = "failed"
    """This attempt raised an error; others may follow."""
    HELD = "held"
    """Another worker holds it, or did a moment ago."""
    GIVEN_UP = "given up"
    """It failed as often as allowed."""

    @property
    def has_result(self) -> bool:
        return self in (Outcome.DONE, Outcome.DONE_BEFORE)
