"""The distribution is called misalignment-lens; the name emlens on the package index is another's.

What tells people what to install must never name that other project.
"""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

WRONG = re.compile(
    r"(pip3?|uv( pip)?|pipx|poetry|conda) (install|add|download)[^\n]*?[\s'\"]emlens\b(?!/)"
    r"|\bemlens\\?\["
)
"""A command that installs `emlens`, or an extra of it."""


def wrong_lines(text: str) -> list[int]:
    """1-based numbers of the lines that would install the other project."""
    return [number for number, line in enumerate(text.split("\n"), 1) if WRONG.search(line)]


def test_nothing_says_to_install_another_project(repository: Path) -> None:
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    found = []
    for name in names:
        path = repository / name
        if path.suffix not in {".py", ".pyi", ".md", ".ipynb", ".toml", ".yml", ".txt", ""}:
            continue
        if path == Path(__file__).resolve() or not path.is_file() or "assets" in path.parts:
            continue
        found += [f"{name}:{line}" for line in wrong_lines(path.read_text(encoding="utf-8"))]
    assert found == []


def test_the_distribution_has_a_name_of_its_own(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == "misalignment-lens"
    assert re.sub(r"[-_.]", "", project["name"]) != "emlens"


@pytest.mark.parametrize(
    "line",
    [
        "pip install emlens",
        "pip install -U 'emlens[ray]'",
        "uv add emlens",
        "endpoints need httpx: emlens[judge]",
    ],
)
def test_a_planted_line_is_found(line: str) -> None:
    assert wrong_lines(f"fine\n{line}") == [2]


def test_the_import_name_is_no_distribution() -> None:
    assert wrong_lines("pip install 'misalignment-lens[ray]'\nimport emlens\nemlens study x") == []
