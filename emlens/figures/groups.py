"""The groups of a table, each with its own colour, symbol and dash."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from emlens.figures.labels import cell_text, label
from emlens.figures.style import CYCLE, DASHES, GREY, SYMBOLS

MOST_NAMES = 20
"""Names in a legend; further ones are drawn in grey."""


@dataclass(frozen=True)
class Group:
    """The rows of one group and how they are drawn.

    Args:
        rows: the part of the table.
        name: for the legend; empty where the table has one group only.
        colour, symbol, dash: its look.
        is_listed: whether the legend has it.
    """

    rows: pd.DataFrame
    name: str
    colour: str
    symbol: str
    dash: str
    is_listed: bool


def groups_of(table: pd.DataFrame, column: str) -> list[Group]:
    """The groups of a table in order of appearance; one group of all rows without a column."""
    if not column:
        return [Group(table, "", CYCLE[0], SYMBOLS[0], DASHES[0], False)]
    keys = table[column].map(str)
    values = dict(zip(keys, table[column], strict=True))
    groups = []
    for i, (key, value) in enumerate(values.items()):
        is_listed = i < MOST_NAMES
        group = Group(
            rows=table[keys == key],
            name=label(cell_text(value)),
            colour=CYCLE[i % len(CYCLE)] if is_listed else GREY,
            symbol=SYMBOLS[i % len(SYMBOLS)],
            dash=DASHES[i % len(DASHES)],
            is_listed=is_listed,
        )
        groups.append(group)
    return groups


def needs_legend(groups: Sequence[Group], null: str) -> bool:
    """Whether there is more than one thing to tell apart."""
    return bool(null) or sum(group.is_listed for group in groups) > 1


def unlisted_note(groups: Sequence[Group]) -> str:
    """What the figure says where the legend does not list all groups."""
    if len(groups) <= MOST_NAMES:
        return ""
    return f"{len(groups) - MOST_NAMES} further groups in grey"
