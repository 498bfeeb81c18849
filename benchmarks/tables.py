"""Tables of the documentation, drawn from the evidence files: `python -m benchmarks tables`, and
after every measurement.

A page holds `<!-- table: NAME -->`, the table, and `<!-- end of table -->`; what lies between is
written anew. Nothing is measured here, and nothing else of a page is touched.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import pandas as pd
import yaml

from benchmarks.evidence_tables import DOCS, figures_table, files_table
from benchmarks.real_objections import objections_table
from benchmarks.records import EVIDENCE
from benchmarks.reference import reference
from benchmarks.reference_pages import reference_of
from benchmarks.table_columns import study_tables, vocabulary
from emlens.foundation.files import read_json, write_text

_BLOCK = re.compile(
    r"(?<=<!-- table: )(?P<name>[\w.]+)( -->\n\n?)(?P<body>.*?)(\n?<!-- end of table -->)",
    re.DOTALL,
)


def _of(name: str) -> str:
    """Table `module.function` of the module's own evidence file."""
    module, _, function = name.partition(".")
    values = read_json(EVIDENCE / f"{module}.json")["values"]
    given = {
        "planted_directions.goals_table": "goals",
        "organism_directions.worlds_table": "over_worlds",
        "interval_coverage.coverage_table": "rows",
    }
    if name in given:
        values = values[given[name]]
        values = values if name.startswith("interval") else pd.DataFrame(values)
    return str(getattr(import_module(f"benchmarks.{module}"), function)(values))


def contents_table() -> str:
    """The pages of the documentation, a section a row, with links from the README.

    The pages of single packages are left to the reference.
    """
    nav = yaml.safe_load((DOCS.parent / "mkdocs.yml").read_text("utf-8"))["nav"]
    lines = ["| section | pages |", "|---|---|"]
    for entry in nav:
        ((section, inside),) = entry.items()
        links = [f"[{title}](docs/{_file_of(page)})" for title, page in _pages_of(inside)]
        lines.append(f"| {section} | {', '.join(links)} |")
    return "\n".join(lines)


def _file_of(page: str) -> str:
    """Where a page is written: a notebook's page is made from it."""
    return page if (DOCS / page).is_file() else f"{page.removesuffix('.md')}.ipynb"


def _pages_of(entries: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """(title, page) of a section of the navigation and of the groups inside it."""
    for entry in entries:
        ((title, inside),) = entry.items()
        if isinstance(inside, str):
            yield title, inside
        elif title != "Packages":
            yield from _pages_of(inside)


DRAWN: Final[Mapping[str, Callable[[], str]]] = {
    "figures": figures_table,
    "files": files_table,
    "objections": objections_table,
    "reference": reference,
    "contents": contents_table,
    "study_tables": study_tables,
    "vocabulary": vocabulary,
}


def drawn(text: str) -> str:
    """A page's text with its tables as they are now."""

    def table(found: re.Match[str]) -> str:
        name = found["name"]
        body = _drawn_by_name(name).strip("\n")
        return f"{name} -->\n\n{body}\n\n<!-- end of table -->"

    return _BLOCK.sub(table, text)


def _drawn_by_name(name: str) -> str:
    if name in DRAWN:
        return DRAWN[name]()
    kind, _, package = name.partition(".")
    return reference_of(package) if kind == "reference_of" else _of(name)


def draw(pages: Path = DOCS) -> list[Path]:
    """Redraw the tables of all pages; returns the pages that changed."""
    changed = []
    for page in [*sorted(pages.rglob("*.md")), *pages.parent.glob("README.md")]:
        before = page.read_text("utf-8")
        after = drawn(before)
        if after != before:
            write_text(page, after)
            changed.append(page)
    return changed


def main() -> None:
    changed = draw()
    print(
        "tables: " + (", ".join(path.name for path in changed) or "every page is as it should be")
    )
