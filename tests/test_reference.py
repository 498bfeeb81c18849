"""The reference: every public name has its signature, words on each parameter, and an example."""

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from benchmarks import reference_pages
from benchmarks.reference import public_names

ROOT = Path(__file__).parent.parent
NAMES = public_names()


def meanings() -> set[str]:
    """Parameters whose meaning docs/reference.md gives once for all."""
    text = (ROOT / "docs/reference.md").read_text("utf-8")
    table = text.split("## Parameters that mean the same everywhere")[1].split("<!-- table")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text("utf-8"))


def definition(module: str, name: str) -> ast.FunctionDef | ast.ClassDef | None:
    for node in tree_of(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node
    return None


def parameters(node: ast.FunctionDef | ast.ClassDef) -> Iterator[tuple[str, str]]:
    """(parameter, the words on it): of a function, a class with `__init__`, or a record."""
    if isinstance(node, ast.FunctionDef):
        words = ast.get_docstring(node) or ""
        given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        yield from ((arg.arg, words) for arg in given)
        return
    words = ast.get_docstring(node) or ""
    for i, inner in enumerate(node.body):
        if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
            more = words + (ast.get_docstring(inner) or "")
            yield from ((a.arg, more) for a in inner.args.args[1:] + inner.args.kwonlyargs)
        elif isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
            if inner.target.id.startswith("_"):
                continue
            yield inner.target.id, words + _words_after(node.body, i) + _description(inner)


def _words_after(body: list[ast.stmt], i: int) -> str:
    """The docstring that may stand below a field, beginning with the field's name."""
    after = body[i + 1] if i + 1 < len(body) else None
    is_words = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    field = body[i]
    assert isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    return f" {field.target.id} " if is_words else ""


def _description(field: ast.AnnAssign) -> str:
    assert isinstance(field.target, ast.Name)
    return f" {field.target.id} " if "description=" in ast.unparse(field) else ""


def without_words(module: str, name: str) -> list[str]:
    node = definition(module, name)
    if node is None:
        return []
    shared = meanings()
    return [
        parameter
        for parameter, words in parameters(node)
        if parameter not in shared and not re.search(rf"\b{parameter}\b", words)
    ]


@pytest.mark.parametrize("package", reference_pages.packages())
def test_every_parameter_has_words(package: str) -> None:
    missing = {
        full: found
        for full, module in NAMES.items()
        if full.startswith(f"{package}.")
        and (ROOT / f"{module.replace('.', '/')}.py").is_file()
        and (found := without_words(module, full.partition(".")[2]))
    }
    assert missing == {}


def test_a_parameter_without_words_is_seen() -> None:
    words = '"""Means of rows.\n\n    Args:\n        rows: the values.\n    """'
    node = ast.parse(f"def planted(rows, odd, *, seed=0):\n    {words}").body[0]
    assert isinstance(node, ast.FunctionDef)
    seen = [name for name, words in parameters(node) if not re.search(rf"\b{name}\b", words)]
    assert seen == ["odd", "seed"] and "seed" in meanings() and "odd" not in meanings()


def test_every_name_is_on_the_page_of_its_package_with_an_example() -> None:
    assert reference_pages.without_example() == []
    for full in NAMES:
        package = full.partition(".")[0]
        text = (ROOT / f"docs/reference/{package}.md").read_text("utf-8")
        entry = text.split(f"::: emlens.{full}\n")[1].split("\n::: ")[0]
        assert "Example, from [" in entry, full


def test_the_example_of_a_name_brings_what_it_needs() -> None:
    example = reference_pages.example_of("principal_angles")
    assert example is not None and example.is_run
    made, used = example.code.split("\n")
    assert made.startswith("halves = ") and "principal_angles(*halves)" in used
    assert reference_pages.example_of("nothing_of_this_name") is None


def test_a_parameter_of_the_table_is_one_of_a_public_name() -> None:
    given = {
        parameter
        for full, module in NAMES.items()
        if (ROOT / f"{module.replace('.', '/')}.py").is_file()
        and (node := definition(module, full.partition(".")[2])) is not None
        for parameter, _ in parameters(node)
    }
    assert meanings() <= given, inspect.cleandoc("""a parameter that no public name has""")
