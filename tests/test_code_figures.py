"""The library stays readable: what a reader meets on a page of code has limits.

A limit is what was reached, no wish: it may be lowered, and is not raised to let a change in.
"""

from pathlib import Path

import pytest
from code_figures import Figures, figures_of


@pytest.fixture(scope="module")
def library(repository: Path) -> Figures:
    return figures_of(repository / "emlens")


def test_lines_are_short(library: Figures) -> None:
    assert library.long_lines <= 10  # the linter's own comments and one regular expression


def test_branching_does_not_hide_in_expressions(library: Figures) -> None:
    assert library.conditionals <= 1.1
    assert library.comprehensions <= 3.0


def test_names_say_what_a_value_is(library: Figures) -> None:
    assert library.vague_names <= 0.02


def test_arguments_are_few(library: Figures) -> None:
    assert library.most_arguments <= 12
    assert library.many_arguments <= 0.01


def test_planted_faults_are_counted(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(
        '"""Docstring."""\n\n\n'
        "def one(a, b, c, d, e, f, g, h, i):\n"
        '    """Docstring."""\n'
        "    found = [x for x in a if x]  # a comment\n"
        "    rows = b if c else d\n"
        f"    return found, rows, {'x' * 100!r}\n",
        encoding="utf-8",
    )
    figures = figures_of(tmp_path)
    assert (figures.lines, figures.code_lines, figures.long_lines) == (8, 4, 1)
    assert figures.conditionals == figures.comprehensions == 25.0
    assert figures.vague_names == pytest.approx(1 / 3)  # found, rows, x
    assert figures.most_arguments == 9 and figures.many_arguments == 1.0
