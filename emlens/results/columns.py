"""What a column of a table means: its type, its unit, its range, and what it is compared with."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any, Literal

from emlens.foundation.estimate import Estimate

Kind = Literal["text", "integer", "number", "flag"]
KIND_NAMES: Mapping[str, str] = {
    "text": "text",
    "integer": "an integer",
    "number": "a number",
    "flag": "True or False",
}


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        name: as it is in the table.
        kind: `"text"`, `"integer"`, `"number"` or `"flag"` (True or False). Numbers and integers
            may be missing, unless the column names the row.
        meaning: in a few words.
        unit: of a number; empty where it has none.
        low, high: the range of the values, both ends included.
        names_row: whether the column says what the row is about (a model, a layer, a setting),
            rather than what was measured. Rows of two results are matched by these columns.
    """

    name: str
    kind: Kind
    meaning: str
    unit: str = ""
    low: float = -inf
    high: float = inf
    names_row: bool = False

    @property
    def range(self) -> str:
        """The range in words; empty where there is none."""
        if self.low > -inf and self.high < inf:
            return f"{self.low:g} to {self.high:g}"
        if self.low > -inf:
            return f"≥ {self.low:g}"
        if self.high < inf:
            return f"≤ {self.high:g}"
        return ""

    def to_record(self) -> dict[str, Any]:
        """The column as JSON; fields that have their default are left out."""
        record: dict[str, Any] = {"name": self.name, "kind": self.kind, "meaning": self.meaning}
        if self.unit:
            record["unit"] = self.unit
        # JSON has no infinity: an end that is missing is none
        record |= {end: x for end, x in (("low", self.low), ("high", self.high)) if isfinite(x)}
        if self.names_row:
            record["names_row"] = True
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Column":
        fields = ("name", "kind", "meaning", "unit", "low", "high", "names_row")
        return cls(**{name: record[name] for name in fields if name in record})


@dataclass(frozen=True)
class Measure:
    """A number with its interval: three columns, `x`, `x_low` and `x_high`.

    The ends of an interval may lie outside the range of the number: a bootstrap-t interval of a
    mean score does where the scores are few.

    Args:
        value: the column of the number.
        low, high: names of the columns of its interval; by default `x_low` and `x_high`.
        null: name of the column with the value under its null; empty where it has none.
    """

    value: Column
    low: str = ""
    high: str = ""
    null: str = ""

    @property
    def ends(self) -> tuple[str, str]:
        """The names of the columns of the interval."""
        name = self.value.name
        return self.low or f"{name}_low", self.high or f"{name}_high"

    @property
    def columns(self) -> tuple[Column, Column, Column]:
        """The number and the two ends of its interval."""
        low, high = self.ends
        name, unit = self.value.name, self.value.unit
        return (
            self.value,
            Column(low, "number", f"lower end of the interval of `{name}`", unit),
            Column(high, "number", f"upper end of the interval of `{name}`", unit),
        )

    def to_record(self) -> dict[str, Any]:
        """The number's column as JSON, with the names of the columns beside it."""
        return {**self.value.to_record(), "interval": list(self.ends), "null": self.null}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Measure":
        low, high = record["interval"]
        return cls(Column.from_record(record), low, high, record["null"])

    def cells(self, estimate: Estimate) -> dict[str, float]:
        """The cells of a row that holds this estimate."""
        low, high = self.ends
        return {self.value.name: estimate.value, low: estimate.low, high: estimate.high}
