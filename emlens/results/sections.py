"""What the report shows of a study, in plain records: the report draws them without knowing the
study.

`Study.section` holds a `Section`; the page shows its method, its plots and its tables. Names refer
to tables of the study and to their columns; a plot whose table is absent is left out and named.
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
class Section:
    """A section of the report; its heading is the title of the study.

    Args:
        method: a paragraph. reference: where the method comes from.
        tables: name → one sentence on what a row is. plots: drawn above the tables, in order.
    """

    method: str
    reference: str
    tables: Mapping[str, str] = field(default_factory=dict)
    plots: tuple[Plot, ...] = ()
