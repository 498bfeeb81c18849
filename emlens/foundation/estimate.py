"""A number with its uncertainty: what every statistic in emlens returns."""

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Estimate:
    """A value with an interval.

    Args:
        value: the point estimate; `nan` where the quantity is undefined (then `method` says why).
        low, high: ends of the interval; `nan` where none can be given.
        n: number of independent units (questions, seeds, ...) behind the value.
        method: how value and interval were made, in words, with the level of the interval.
    """

    value: float
    low: float
    high: float
    n: int
    method: str

    def __float__(self) -> float:
        return float(self.value)

    def __format__(self, spec: str) -> str:
        spec = spec or ".3g"
        if math.isnan(self.value):
            return "undefined"
        if math.isnan(self.low) or math.isnan(self.high):
            return format(self.value, spec)
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    def __str__(self) -> str:
        return format(self, "")

    @property
    def defined(self) -> bool:
        return not math.isnan(self.value)

    def to_record(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def undefined(cls, reason: str, n: int = 0) -> "Estimate":
        """An estimate that does not exist, with the reason as its method."""
        return cls(math.nan, math.nan, math.nan, n, f"undefined: {reason}")
