"""The page of tables: every table with its columns, and the vocabulary, from the records that check
them.
"""

from collections.abc import Iterator, Mapping, Sequence

from emlens.results import Column, Measure, Table
from emlens.results.tables import Item
from emlens.results.vocabulary import VOCABULARY, word
from emlens.screening.screening_tables import SCREENING_TABLES
from emlens.studies.registry import INCLUDED, get_study


def tables_of_studies() -> dict[str, Mapping[str, Table]]:
    """Study → its declared tables, the screening last."""
    tables = {}
    for name in INCLUDED:
        section = get_study(name).section
        if section is not None:
            tables[name] = section.tables
    return {**tables, "screening": SCREENING_TABLES}


def study_tables() -> str:
    """One table per study: the study's tables, what a row is, the columns."""
    parts = []
    for study, tables in tables_of_studies().items():
        lines = [f"### {study}", "", "| table | rows | columns |", "|---|---|---|"]
        for name, table in tables.items():
            lines.append(f"| `{name}` | {table.row} | {_columns(table)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def vocabulary() -> str:
    """Every column: type, unit, range and meaning, in alphabetical order."""
    lines = ["| column | type | unit | range | meaning |", "|---|---|---|---|---|"]
    for name in sorted(VOCABULARY):
        column = VOCABULARY[name]
        cells = [_name(column), column.kind, column.unit, column.range, column.meaning]
        lines.append(f"| {' | '.join(cell or '–' for cell in cells)} |")
    return "\n".join(lines)


def _columns(table: Table) -> str:
    words = list(_items(table.columns))
    words += [f"({word})" for word in _items(table.optional)]
    if table.further:
        words.append(f"({table.further})")
    return ", ".join(words)


def _items(items: Sequence[Item]) -> Iterator[str]:
    for item in items:
        if isinstance(item, Measure):
            yield _measure(item)
        elif isinstance(item, Column):
            yield _name(item)
        else:
            yield from (_name(word(name)) for name in item.split())


def _measure(measure: Measure) -> str:
    name = measure.value.name
    if measure.ends == (f"{name}_low", f"{name}_high"):
        return f"`{name}` ±"
    low, high = measure.ends
    return f"`{name}` ± (`{low}`, `{high}`)"


def _name(column: Column) -> str:
    return f"**`{column.name}`**" if column.names_row else f"`{column.name}`"
