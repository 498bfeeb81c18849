"""Two tables of all evidence files: figures with a goal, and where each file comes from."""

import ast
import re
from pathlib import Path
from typing import Any, Final

from benchmarks import goals_of_faults, goals_of_reading, goals_of_scores, goals_of_studies
from benchmarks.goals import Figure, told
from benchmarks.records import EVIDENCE
from emlens.foundation.files import read_json

DOCS: Final = EVIDENCE.parent
FIGURES: Final[tuple[Figure, ...]] = (
    *goals_of_reading.FIGURES,
    *goals_of_scores.FIGURES,
    *goals_of_faults.FIGURES,
    *goals_of_studies.FIGURES,
)
"""In the order of the page."""


def figures_table(evidence: Path = EVIDENCE) -> str:
    """Figures with a goal, one a row; those that miss it are marked."""
    lines = ["| figure | goal | measured | file |", "|---|---|---|---|"]
    for name, figure, goals, read in FIGURES:
        path = evidence / f"{name}.json"
        if path.is_file():
            found = read(read_json(path)["values"])
            measured = told(goals, found if isinstance(found, tuple) else (found,))
            lines.append(
                f"| {figure} | {'; '.join(map(str, goals)) or '–'} | {measured} | `{name}.json` |"
            )
    return "\n".join(lines)


def files_table(evidence: Path = EVIDENCE) -> str:
    """Every evidence file: what it measures, which page says more, and on what it was measured."""
    pages = {
        page.name: page.read_text("utf-8")
        for page in sorted(DOCS.glob("*.md"))
        if page.name not in ("evidence.md", "papers.md", "decisions.md")
    }
    lines = [
        "| file | what | page | commit | cores, threads | torch | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in sorted(evidence.glob("*.json")):
        record = read_json(path)
        run = re.compile(rf"python -m benchmarks[\w ]* {path.stem}\b")
        named = [
            page
            for page, text in pages.items()
            if f"evidence/{path.name}`" in text or run.search(text)
        ]
        named.sort(key=lambda page: page != f"{path.stem}.md")
        where = f"[{named[0].removesuffix('.md').replace('_', ' ')}]({named[0]})" if named else "–"
        machine = (
            f"{record['hardware'].get('cores', '?')}, {record['hardware'].get('threads', '?')}"
        )
        cells = (
            f"`{path.name}`",
            _says(path.stem),
            where,
            record["commit"],
            machine,
            record["versions"].get("torch", "–"),
            _seeds(record["seeds"]),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _says(name: str) -> str:
    """The first sentence of the measurement's own account."""
    source = Path(__file__).parent / f"{name}.py"
    if not source.is_file():
        return "–"
    words = (
        (ast.get_docstring(ast.parse(source.read_text("utf-8"))) or "–")
        .split("\n\n")[0]
        .replace("\n", " ")
        .replace("|", "\\|")
    )
    return re.split(r"(?<=\w)\. |\.$", words)[0]


def _seeds(seeds: list[Any]) -> str:
    shown = [str(seed) for seed in seeds]
    return ", ".join(shown[:4]) + (" …" if len(shown) > 4 else "")
