"""Published figures beside recomputed ones, and when the two agree.

A figure agrees when it lies within half a unit of the last published digit; counts, indices and
shapes must be equal. A figure that cannot come out of the released files alone is *explained*: the
reason is printed, with how far off it may be for that reason. Figures without a published value (a
dose-response curve) are reported and not counted.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pandas as pd

from emlens.data import AlignmentScores

COLUMNS: Final = (
    "source",
    "figure",
    "function",
    "published",
    "recomputed",
    "tolerance",
    "agrees",
    "explained",
    "note",
)
NOT_GIVEN: Final = "not given"
NOT_PUBLISHED: Final = "—"
_ROUNDING = 1e-9  # of a tolerance: what decimal text loses when read as float64


@dataclass(frozen=True)
class Figure:
    """One figure: what was published and what the files give.

    Args:
        source: the released file.
        name: of the figure.
        published: as printed; "—" where nothing was.
        recomputed: what the file gives.
        exact: a count, index or shape, which must be equal; others may differ by half a unit in the
            last published digit.
        note: shown beside it.
        function: the public functions that gave it.
        within: the tolerance, where it is not half a unit of the last published digit.
        reason: why the files cannot give the published value; "" where they can.
        reason_covers: the largest difference that the reason accounts for.
    """

    source: str
    name: str
    published: str
    recomputed: float
    exact: bool = False
    note: str = ""
    function: str = ""
    within: float | None = None
    reason: str = ""
    reason_covers: float = 0.0

    @property
    def tolerance(self) -> float:
        if self.published == NOT_PUBLISHED:
            return math.nan
        if self.within is not None:
            return self.within
        exponent = Decimal(self.published).as_tuple().exponent
        return 0.0 if self.exact else 0.5 * 10.0 ** int(exponent)

    @property
    def agrees(self) -> bool | None:
        """None where nothing was published or the file is not given."""
        if self.published == NOT_PUBLISHED or self.note == NOT_GIVEN:
            return None
        return self._difference <= self.tolerance * (1 + _ROUNDING)

    @property
    def _difference(self) -> float:
        return abs(self.recomputed - float(self.published))

    @property
    def explained(self) -> str:
        """Why it does not agree; "" where it agrees, and where no reason accounts for as much."""
        if self.agrees is not False or not self._difference <= self.reason_covers:
            return ""
        return self.reason


def judged_rates(
    source: str, what: str, scores: AlignmentScores, em: str, coherent: str
) -> list[Figure]:
    """EM rate and share of coherent answers, in percent, beside what was published."""
    rate, share = scores.em_rate(), scores.share("coherent", above=50)
    interval = f"interval {100 * rate.low:.2f} to {100 * rate.high:.2f}"
    return [
        Figure(
            source,
            f"EM, {what}, percent",
            em,
            100 * rate.value,
            note=interval,
            function="AlignmentScores.em_rate",
        ),
        Figure(
            source,
            f"coherent > 50, {what}, percent",
            coherent,
            100 * share.value,
            function="AlignmentScores.share",
        ),
    ]


@dataclass(frozen=True)
class Group:
    """Figures that are computed together.

    Args:
        files: that must exist, below the folder of released files.
        compute: the figures, from that folder.
    """

    files: Sequence[str]
    compute: Callable[[Path], list[Figure]]


@dataclass(frozen=True)
class Replication:
    """All figures in the order in which they were recomputed."""

    figures: tuple[Figure, ...]

    @property
    def table(self) -> pd.DataFrame:
        """One row per figure: source, figure, function, published, recomputed, tolerance, agrees
        (True, False, None), explained, note.
        """
        rows = [
            (
                f.source,
                f.name,
                f.function,
                f.published,
                f.recomputed,
                f.tolerance,
                f.agrees,
                f.explained,
                f.note,
            )
            for f in self.figures
        ]
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        table["agrees"] = pd.Series([figure.agrees for figure in self.figures], dtype=object)
        return table

    @property
    def summary(self) -> pd.DataFrame:
        """One row per file: figures counted, agreeing, explained and off."""
        counted = self.table[self.table["agrees"].notna()]
        agrees = counted["agrees"].astype(bool)
        explained = counted["explained"] != ""
        columns = {"agree": agrees, "explained": explained, "off": ~agrees & ~explained}
        flags = pd.DataFrame({"source": counted["source"], "figures": 1, **columns})
        return flags.groupby("source", sort=False).sum().astype(int).reset_index()

    @property
    def agrees(self) -> bool:
        """Whether every counted figure agrees or is explained; False where none is counted."""
        counted = [figure for figure in self.figures if figure.agrees is not None]
        return bool(counted) and all(bool(f.agrees or f.explained) for f in counted)

    def to_record(self) -> dict[str, Any]:
        """JSON-ready record."""
        return {"agrees": self.agrees, "figures": self.table.to_dict(orient="records")}
