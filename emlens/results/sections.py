"""What a part of a study says of itself, in plain records: the report draws them without knowing
the part.

A part is one module of this package. Beside `run`, it holds an `About`; the page gives it a section
with its method, its plots and its tables. Names refer to tables of the part and to their columns; a
plot whose table is absent is left out and named.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Plot:
    """One figure from one tidy table.

    Args:
        kind: `"line"` (y over x with a band), `"points"`, `"forest"` (one row an x, with its
            interval) or `"heatmap"` (x by `colour`, cells y).
        table: name of the table. x, y: columns; the columns `<y>_low` and `<y>_high`, where they
            stand, are its interval.
        colour: column that tells lines or points apart; of a heatmap, its rows. facet: one figure
            for each of its values.
        null: column with the value under the null, drawn dotted. hover: further columns shown under
            the pointer.
        title, caption: plain text. x_title, y_title: with units; the column's name where empty.
    """

    kind: Literal["line", "points", "forest", "heatmap"]
    table: str
    x: str
    y: str
    title: str
    caption: str
    colour: str = ""
    facet: str = ""
    null: str = ""
    hover: tuple[str, ...] = ()
    x_title: str = ""
    y_title: str = ""


@dataclass(frozen=True)
class About:
    """A section of the report.

    Args:
        title: the question it answers. method: a paragraph. reference: where the method comes from.
        tables: name → one sentence on what a row is. plots: drawn above the tables, in order.
    """

    title: str
    method: str
    reference: str
    tables: Mapping[str, str] = field(default_factory=dict)
    plots: tuple[Plot, ...] = ()
