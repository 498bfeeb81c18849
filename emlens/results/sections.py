"""What the report shows of a study, in plain records: the report draws them without knowing the
study.

`Study.section` holds a `Section`; the page shows its method, its plots and its tables. Names refer
to tables of the study and to their columns; a plot whose table is absent is left out and named.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from emlens.results.tables import Table


@dataclass(frozen=True)
class Plot:
    """One question that figures answer, and how they are drawn from the tables of a result.

    Args:
        kind: `"line"` (y over x with a band), `"points"`, `"forest"` (one row per x, with its
            interval), `"heatmap"` (x by `colour`, cells y), or a kind made for one table, which
            knows its columns (`emlens.figures.registry` lists all).
        table: name of the table that is drawn.
        x, y: columns; the columns `<y>_low` and `<y>_high`, where they are there, are its interval.
        title, caption: plain text.
        colour: column that tells lines or points apart; of a heatmap, its rows.
        facet: column that makes one figure for each of its values; of several columns, separated by
            blanks, one figure for each combination.
        null: column with the value under the null, drawn dotted.
        hover: further columns shown under the pointer.
        x_title, y_title: with units; the column's name where empty.
        tables: further tables that the kind reads, in its order.
        name: its anchor on the page; numbered where empty.
        optional: of a table that only some studies have: without it the page says nothing.
        lead: whether the figure stands at the top of the page, before everything that is folded.
    """

    kind: str
    table: str
    x: str = ""
    y: str = ""
    title: str = ""
    caption: str = ""
    colour: str = ""
    facet: str = ""
    null: str = ""
    hover: tuple[str, ...] = ()
    x_title: str = ""
    y_title: str = ""
    tables: tuple[str, ...] = ()
    name: str = ""
    optional: bool = False
    lead: bool = False


@dataclass(frozen=True)
class Section:
    """A section of the report; its heading is the title of the study.

    Args:
        method: a paragraph. reference: where the method comes from.
        tables: name → what a row is and its columns. plots: drawn above the tables, in order.
    """

    method: str
    reference: str
    tables: Mapping[str, Table] = field(default_factory=dict)
    plots: tuple[Plot, ...] = ()
