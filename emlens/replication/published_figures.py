"""Published figures beside recomputed ones, and when the two agree.

A figure agrees when it lies within half a unit of the last published digit; counts, indices and
shapes must be equal. Figures without a published value (a dose-response curve) are reported and not
counted.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pandas as pd

from emlens.data import AlignmentScores

COLUMNS: Final = ("source", "figure", "published", "recomputed", "tolerance", "agrees", "note")
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
    """

    source: str
    name: str
    published: str
    recomputed: float
    exact: bool = False
    note: str = ""

    @property
    def tolerance(self) -> float:
        if self.published == NOT_PUBLISHED:
            return math.nan
        exponent = Decimal(self.published).as_tuple().exponent
        return 0.0 if self.exact else 0.5 * 10.0 ** int(exponent)

    @property
    def agrees(self) -> bool | None:
        """None where nothing was published or the file is not given."""
        if self.published == NOT_PUBLISHED or self.note == NOT_GIVEN:
            return None
        return abs(self.recomputed - float(self.published)) <= self.tolerance * (1 + _ROUNDING)


def judged_rates(
    source: str, what: str, scores: AlignmentScores, em: str, coherent: str
) -> list[Figure]:
    """EM rate and share of coherent answers, in percent, beside what was published."""
    rate, share = scores.em_rate(), scores.share("coherent", above=50)
    interval = f"interval {100 * rate.low:.2f} to {100 * rate.high:.2f}"
    return [
        Figure(source, f"EM, {what}, percent", em, 100 * rate.value, note=interval),
        Figure(source, f"coherent > 50, {what}, percent", coherent, 100 * share.value),
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
        """One row per figure: source, figure, published, recomputed, tolerance, agrees (True,
        False, None), note.
        """
        rows = [
            (f.source, f.name, f.published, f.recomputed, f.tolerance, f.agrees, f.note)
            for f in self.figures
        ]
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        table["agrees"] = pd.Series([row[5] for row in rows], dtype=object)
        return table

    @property
    def agrees(self) -> bool:
        """Whether every counted figure agrees; False where none is counted."""
        counted = [figure.agrees for figure in self.figures if figure.agrees is not None]
        return bool(counted) and all(counted)

    def to_record(self) -> dict[str, Any]:
        """JSON-ready record."""
        return {"agrees": self.agrees, "figures": self.table.to_dict(orient="records")}
