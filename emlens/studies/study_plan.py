"""What a plan of a study says: the cost of every part, and whether it fits.

Where a part goes on only if it finds something, its cost is that of finding it, and `least` is that
of finding nothing.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from emlens.foundation.errors import InputError
from emlens.judging.score_source import Cost
from emlens.models.pass_counts import PassCounts
from emlens.studies.room import Room
from emlens.studies.study import PlannedTraining


@dataclass(frozen=True)
class Least:
    """What a part costs where it finds nothing to go on with.

    Args:
        counts, cost: as in `PartPlan`.
    """

    counts: PassCounts
    cost: Cost


@dataclass(frozen=True)
class PartPlan:
    """The cost of one part.

    Args:
        counts: what models read, sampled answers aside; None where the part is not planned.
        cost: answers, verdicts and requests.
        least: counts and cost where the part finds nothing; None where that changes neither.
        seconds, seconds_low, seconds_high: of passes at the rates of the timed batches, and of
            statistics.
        memory: most bytes in memory while the part runs, weights included.
        disk: bytes that it leaves.
        note: why it is not planned, or what is not in the numbers.
        captures: bytes of its captures, kept for other parts where there is room.
    """

    name: str
    counts: PassCounts | None
    cost: Cost = field(default_factory=Cost)
    seconds: float = 0.0
    seconds_low: float = 0.0
    seconds_high: float = 0.0
    memory: int = 0
    disk: int = 0
    note: str = ""
    least: Least | None = None
    captures: int = 0

    def with_statistics(self, seconds: float) -> "PartPlan":
        """The same with the time of its statistics added."""
        return replace(
            self,
            seconds=self.seconds + seconds,
            seconds_low=self.seconds_low + seconds,
            seconds_high=self.seconds_high + seconds,
        )

    def with_training(
        self, training: PlannedTraining, rates: tuple[float, float, float], held: int
    ) -> "PartPlan":
        """The same with what it trains; a step costs a pass with logits, and a gradient twice that.

        Args:
            held: bytes in memory while nothing runs.
            rates: seconds per token of a pass with logits, from the fastest to the slowest.
        """
        low, middle, high = (3 * training.tokens * rate for rate in rates)
        note = training.uncounted
        if training.runs:
            trained = (
                f"trains {training.runs} adapters ({training.steps:,} steps), in the time alone"
            )
            note = "; ".join(filter(None, (trained, note)))
        return replace(
            self,
            seconds=self.seconds + middle,
            seconds_low=self.seconds_low + low,
            seconds_high=self.seconds_high + high,
            disk=self.disk + training.disk,
            # a part trains before or after it reads
            memory=max(self.memory, held + training.memory),
            note="; ".join(filter(None, (self.note, note))),
        )

    def to_record(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class StudyPlan:
    """The cost of a study: its parts in order, what is left out, and the room that there is."""

    parts: tuple[PartPlan, ...]
    left_out: Mapping[str, str]
    room: Room

    @property
    def memory(self) -> int:
        """Most bytes in memory at any time."""
        return max(part.memory for part in self.parts)

    @property
    def disk(self) -> int:
        return sum(part.disk for part in self.parts)

    @property
    def captures(self) -> int:
        """Bytes of captures that parts share, in a folder that may be deleted."""
        return sum(part.captures for part in self.parts)

    @property
    def requests(self) -> int:
        return sum(part.cost.requests for part in self.parts)

    def check(self, budget: int | None) -> None:
        """Refuse what cannot fit.

        Args:
            budget: of requests.

        Raises:
            InputError: says what is needed, what there is, and what to change.
        """
        needs = (
            ("memory", self.memory, self.room.memory, "fewer layers or quantization"),
            ("disk", self.disk, self.room.disk, "fewer samples, or another --out"),
        )
        for what, needed, free, remedy in needs:
            if free is not None and needed > free:
                raise InputError(
                    f"this study needs about {needed / 1e9:.2f} GB of {what}, and there are"
                    f" {free / 1e9:.2f} GB; pass {remedy}"
                )
        if budget is not None and self.requests > budget:
            raise InputError(
                f"this study asks for {self.requests} requests, and scores: budget allows"
                f" {budget}; raise it, or pass fewer samples"
            )

    def lines(self) -> list[str]:
        """The plan as text: one line for each part, then what holds for all of them."""
        lines = [
            "part                     passes      tokens  answers  requests  time          memory"
        ]
        for part in self.parts:
            if part.counts is None:
                lines.append(f"{part.name:<21} not planned: {part.note}")
                continue
            span = f"{_minutes(part.seconds_low)}–{_minutes(part.seconds_high)}"
            lines.append(
                f"{part.name:<21}{part.counts.passes:>10,}{part.counts.tokens:>12,}"
                f"{part.cost.answers:>9,}{part.cost.requests:>10,}  {span:<12}"
                f"  {part.memory / 1e9:.2f} GB  {part.note}"
            )
            if part.least is not None:
                counts, cost = part.least.counts, part.least.cost
                lines.append(
                    f"{'  where it finds nothing':<24}{counts.passes:>7,}{counts.tokens:>12,}"
                    f"{cost.answers:>9,}{cost.requests:>10,}"
                )
        lines += [f"{name:<21} left out: {reason}" for name, reason in self.left_out.items()]
        free = ""
        if self.room.memory is not None:
            free = f" of {self.room.memory / 1e9:.1f} GB"
        lines.append(
            f"memory at most {self.memory / 1e9:.2f} GB{free}; on disk about"
            f" {self.disk / 1e9:.2f} GB, and {self.captures / 1e9:.2f} GB of captures where there"
            f" is room; {self.requests:,} requests"
        )
        lines.append(
            "passes, tokens, answers and requests are exact, or the most where a part may find"
            " nothing; tokens of sampled answers are an upper limit, and their time is that of"
            " answers of full length; time is from a few timed batches, from the fastest to the"
            " slowest of them"
        )
        return lines

    def to_record(self) -> dict[str, Any]:
        return {
            "parts": [part.to_record() for part in self.parts],
            "left_out": dict(self.left_out),
            "memory": self.memory,
            "disk": self.disk,
            "captures": self.captures,
            "requests": self.requests,
            "room": asdict(self.room),
        }


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
