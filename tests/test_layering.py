"""Imports point downward, as the table of docs/architecture.md says; modules lie two levels deep
and stay small.

The check reads syntax trees, so imports inside functions and under TYPE_CHECKING count. The second
half plants one violation of each kind in a copy of the package and expects exactly that complaint.
"""

import ast
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

VAGUE_NAMES = {"utils", "util", "misc", "helpers", "common", "core"}
MAX_LINES = 600


@dataclass(frozen=True)
class Layer:
    height: int
    may_import: frozenset[str]


def read_table(text: str) -> dict[str, Layer]:
    """Package -> layer, from the rows `| h | `package` | job | may import |` of the architecture
    page.
    """
    table = {}
    for line in text.splitlines():
        if match := re.match(r"^\| (\d+) \| `(\w+)` \| .* \| ([\w, –]+) \|$", line):
            allowed = frozenset() if match[3] == "–" else frozenset(match[3].split(", "))
            table[match[2]] = Layer(int(match[1]), allowed)
    return table


@cache
def imported_by(source: str, package: str) -> list[tuple[int, str]]:
    return list(imported_names(ast.parse(source), package))


def imported_names(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything a module of `emlens.<package>` imports, relative imports
    made absolute.

    `from emlens import x` yields `emlens.x`; `importlib.import_module("...")` with a literal counts
    as an import.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ["emlens", package][: max(0, 3 - node.level)] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            if module == "emlens":
                yield from ((node.lineno, f"emlens.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, "attr", getattr(node.func, "id", ""))
            in ("import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node.lineno, str(node.args[0].value)


def violations(root: Path, table: dict[str, Layer]) -> list[str]:
    """Everything below `root` (the folder `emlens`) that the rules forbid, one line each."""
    found = [
        f"table: {name} is not a package"
        for name in table
        if not (root / name / "__init__.py").is_file()
    ]
    for name, layer in table.items():
        for other in layer.may_import:
            if other not in table:
                found.append(f"table: {name} may import {other}, which has no row")
            elif table[other].height >= layer.height:
                found.append(
                    f"table: {name} (height {layer.height}) may import {other},"
                    " which is not below it"
                )
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if inside == Path("__init__.py"):
            continue
        if len(inside.parts) != 2:
            found.append(f"{inside}: modules lie exactly at emlens/<package>/<module>.py")
            continue
        package, module = inside.parts[0], path.stem
        if package not in table:
            found.append(f"{inside}: package {package} has no row in the table")
            continue
        if {package, module} & VAGUE_NAMES:
            found.append(f"{inside}: the name says nothing about what belongs in it")
        source = path.read_text(encoding="utf-8")
        if (lines := source.count("\n")) > MAX_LINES:
            found.append(f"{inside}: {lines} lines, more than {MAX_LINES}")
        for line, name in imported_by(source, package):
            parts = name.split(".")
            if parts[0] != "emlens":
                continue
            target = parts[1] if len(parts) > 1 and parts[1] in table else "the top level"
            if target == "the top level" and package == "cli":
                continue
            if target != package and target not in table[package].may_import:
                found.append(f"{inside}:{line}: {package} imports {target}")
    return found


@pytest.fixture(scope="module")
def table(repository: Path) -> dict[str, Layer]:
    return read_table((repository / "docs" / "architecture.md").read_text(encoding="utf-8"))


def test_every_package_has_a_row(repository: Path, table: dict[str, Layer]) -> None:
    packages = {path.parent.name for path in (repository / "emlens").glob("*/__init__.py")}
    assert set(table) == packages


def test_imports_point_downward(repository: Path, table: dict[str, Layer]) -> None:
    assert violations(repository / "emlens", table) == []


PLANTED = {
    "an upward import": (
        "geometry/planted.py",
        "import emlens.models\n",
        "geometry imports models",
    ),
    "an import of a name": (
        "stats/planted.py",
        "from emlens.data.prompts import Prompt\n",
        "stats imports data",
    ),
    "from the top level": (
        "figures/planted.py",
        "from emlens import studies\n",
        "figures imports studies",
    ),
    "a lazy public name": (
        "probes/planted.py",
        "from emlens import capture\n",
        "probes imports the top level",
    ),
    "the bare top level": (
        "studies/planted.py",
        "import emlens\n",
        "studies imports the top level",
    ),
    "a relative import": (
        "data/planted.py",
        "from ..models import load_model\n",
        "data imports models",
    ),
    "a relative package": ("runs/planted.py", "from .. import data\n", "runs imports data"),
    "inside a function": (
        "foundation/planted.py",
        "def late() -> None:\n    import emlens.stats.nulls\n",
        "foundation imports stats",
    ),
    "under TYPE_CHECKING": (
        "models/planted.py",
        (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from emlens.activations"
            " import Activations\n"
        ),
        "models imports activations",
    ),
    "by import_module": (
        "training/planted.py",
        "from importlib import import_module\nprobes = import_module('emlens.probes')\n",
        "training imports probes",
    ),
    "figures where nothing is drawn": (
        "judging/planted.py",
        "import emlens.figures\n",
        "judging imports figures",
    ),
    "a module too deep": ("models/deep/planted.py", "", "exactly at emlens/<package>/<module>.py"),
    "a module too high": ("planted.py", "", "exactly at emlens/<package>/<module>.py"),
    "a vague name": ("models/utils.py", "", "the name says nothing"),
    "a file too long": ("models/planted.py", "x = 1\n" * (MAX_LINES + 1), f"more than {MAX_LINES}"),
    "a package without a row": ("extra/planted.py", "", "package extra has no row"),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_violation_is_found(
    kind: str, repository: Path, table: dict[str, Layer], tmp_path: Path
) -> None:
    file, source, complaint = PLANTED[kind]
    root = tmp_path / "emlens"
    shutil.copytree(
        repository / "emlens", root, ignore=shutil.ignore_patterns("assets", "__pycache__")
    )
    before = violations(root, table)
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(source, encoding="utf-8")
    new = [line for line in violations(root, table) if line not in before]
    assert len(new) == 1
    assert complaint in new[0]


def test_an_allowed_import_is_no_violation(
    repository: Path, table: dict[str, Layer], tmp_path: Path
) -> None:
    root = tmp_path / "emlens"
    shutil.copytree(
        repository / "emlens", root, ignore=shutil.ignore_patterns("assets", "__pycache__")
    )
    before = violations(root, table)
    (root / "geometry" / "planted.py").write_text(
        "import emlens.geometry\nfrom emlens.stats import NullDistribution\nfrom ."
        " import other\nfrom ..foundation import Site\n",
        encoding="utf-8",
    )
    assert violations(root, table) == before


def test_a_table_that_points_upward_is_found(repository: Path) -> None:
    rows = "| 0 | `foundation` | a | stats |\n| 1 | `stats` | b | foundation, nothing |\n"
    assert violations(repository / "no such folder", read_table(rows)) == [
        "table: foundation is not a package",
        "table: stats is not a package",
        "table: foundation (height 0) may import stats, which is not below it",
        "table: stats may import nothing, which has no row",
    ]
