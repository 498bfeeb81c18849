"""A third-party package is imported only at its home, as the second table of docs/architecture.md
says.
"""

import ast
import re
import shutil
import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Home:
    packages: frozenset[str]  # empty: anywhere
    one_file: bool


def read_homes(text: str) -> dict[str, Home]:
    """Third party -> home, from the rows `| `name` | packages |` of the architecture page."""
    homes = {}
    for line in text.splitlines():
        if match := re.match(r"^\| `(\w+)` \| ([\w, ]+?)( \(one file\))? \|$", line):
            packages = frozenset() if match[2] == "anywhere" else frozenset(match[2].split(", "))
            homes[match[1]] = Home(packages, match[3] is not None)
    return homes


@cache
def third_parties(source: str) -> frozenset[str]:
    """Top-level names of the packages imported anywhere in a module that are neither standard
    library nor emlens.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.split(".")[0])
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, "attr", getattr(node.func, "id", ""))
            in ("import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            found.add(str(node.args[0].value).split(".")[0])
    return frozenset(found - set(sys.stdlib_module_names) - {"emlens", ""})


def violations(root: Path, homes: dict[str, Home]) -> list[str]:
    found = []
    users: dict[str, list[str]] = defaultdict(list)
    for path in sorted(root.glob("*/*.py")):
        inside = path.relative_to(root)
        for name in sorted(third_parties(path.read_text(encoding="utf-8"))):
            if name not in homes:
                found.append(f"{inside}: {name} has no home")
            elif homes[name].packages and inside.parts[0] not in homes[name].packages:
                found.append(
                    f"{inside}: {name} is at home in {', '.join(sorted(homes[name].packages))}"
                )
            else:
                users[name].append(str(inside))
    for name, files in users.items():
        if homes[name].one_file and len(files) > 1:
            found.append(f"{name} belongs in one file, but is imported in {', '.join(files)}")
    return found


@pytest.fixture(scope="module")
def homes(repository: Path) -> dict[str, Home]:
    return read_homes((repository / "docs" / "architecture.md").read_text(encoding="utf-8"))


def test_the_table_is_read(homes: dict[str, Home]) -> None:
    assert homes["torch"] == Home(frozenset(), False)
    assert homes["nnsight"] == Home(frozenset({"models"}), True)
    assert homes["plotly"] == Home(frozenset({"figures", "report"}), False)
    assert "geometry" not in homes


def test_third_parties_stay_at_home(repository: Path, homes: dict[str, Home]) -> None:
    assert violations(repository / "emlens", homes) == []


PLANTED = {
    "transformers": (
        {"geometry/planted.py": "import transformers\n"},
        "transformers is at home in judging, models",
    ),
    "a part of sklearn": (
        {"stats/planted.py": "from sklearn.linear_model import Ridge\n"},
        "sklearn is at home in",
    ),
    "inside a function": (
        {"studies/planted.py": "def draw() -> None:\n    import plotly.express\n"},
        "plotly is at home in figures, report",
    ),
    "under TYPE_CHECKING": (
        {
            "data/planted.py": (
                "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import peft\n"
            )
        },
        "peft is at home in",
    ),
    "by import_module": (
        {"data/planted.py": "import importlib\nray = importlib.import_module('ray.util')\n"},
        "ray is at home in runs",
    ),
    "a client": ({"models/planted.py": "import httpx\n"}, "httpx is at home in judging"),
    "a homeless package": ({"data/planted.py": "import polars\n"}, "polars has no home"),
    "a second file": (
        {
            "models/planted_a.py": "import nnsight\n",
            "models/planted_b.py": "from nnsight import NNsight\n",
        },
        "nnsight belongs in one file",
    ),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_violation_is_found(
    kind: str, repository: Path, homes: dict[str, Home], tmp_path: Path
) -> None:
    files, complaint = PLANTED[kind]
    root = tmp_path / "emlens"
    shutil.copytree(
        repository / "emlens", root, ignore=shutil.ignore_patterns("assets", "__pycache__")
    )
    before = violations(root, homes)
    for file, source in files.items():
        (root / file).write_text(source, encoding="utf-8")
    new = [line for line in violations(root, homes) if line not in before]
    assert len(new) == 1
    assert complaint in new[0]
