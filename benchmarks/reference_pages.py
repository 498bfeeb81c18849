"""The reference of each package: every public name with its signature and docstring, which
mkdocstrings reads from the sources, and an example out of the snippets that the tests run.

`python -m benchmarks tables` draws `docs/reference/<package>.md`. An example is the statement of a
snippet that uses the name, with the statements before it that it needs, as far as they fit into a
few lines.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Final

import emlens
from benchmarks.reference import public_names

DOCS: Final = Path(emlens.__file__).parent.parent / "docs"
SHORT_EXAMPLES: Final = "reference/examples.md"
"""The page of snippets for names that no other page uses."""
MOST_LINES: Final = 14
"""Lines of an example beyond which no further statement is put before it."""
_SNIPPET = re.compile(
    r"(?P<mark>^<!-- not run: .+? -->\n+)?^```python\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE
)
_OPTIONS: Final = "    options: {heading_level: 3}"


@dataclass(frozen=True)
class Example:
    page: str
    """Path below docs/."""
    code: str
    is_run: bool

    @property
    def worth(self) -> tuple[bool, int, bool, int]:
        """Smallest is best: code that is run, at most 14 lines, a page about a task, short."""
        lines = self.code.count("\n") + 1
        return not self.is_run, max(lines - MOST_LINES, 0), self.page == SHORT_EXAMPLES, lines


@dataclass(frozen=True)
class _Statement:
    code: str
    used: frozenset[str]
    made: frozenset[str]


def _statements(code: str) -> list[_Statement]:
    lines = code.splitlines()
    tree = ast.parse(code)
    ends = [node.lineno - 1 for node in tree.body[1:]] + [len(lines)]
    return [
        _Statement(
            _without_blank_ends(lines[node.lineno - 1 : end]),
            frozenset(_names_used(node)),
            frozenset(_names_made(node)),
        )
        for node, end in zip(tree.body, ends, strict=True)
    ]


def _without_blank_ends(lines: Sequence[str]) -> str:
    """Lines of a statement, without blank lines and comments that belong to the next one."""
    kept = list(lines)
    while kept and (not kept[-1].strip() or kept[-1].startswith("#")):
        kept.pop()
    return "\n".join(kept)


def _names_used(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Load):
            yield inner.id
        elif isinstance(inner, ast.Attribute):
            yield inner.attr


def _names_made(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            yield inner.id
        elif isinstance(inner, ast.alias):
            yield (inner.asname or inner.name).partition(".")[0]
        elif isinstance(inner, ast.FunctionDef | ast.ClassDef):
            yield inner.name


def _is_import(statement: _Statement) -> bool:
    return statement.code.startswith(("import ", "from "))


def _with_what_it_needs(before: Sequence[_Statement], last: _Statement) -> str:
    """The statement after those that made its names, the nearest first, while they fit."""
    kept = [last]
    needed = set(last.used)
    for statement in reversed(before):
        length = sum(each.code.count("\n") + 1 for each in [statement, *kept])
        if not statement.made & needed or length > MOST_LINES:
            continue
        kept.insert(0, statement)
        if not _is_import(statement):
            needed |= statement.used
        needed -= statement.made
    return _joined(kept)


def _joined(statements: Sequence[_Statement]) -> str:
    """The statements below each other, with the blank lines of the project's formatter."""
    code = statements[0].code
    for one, after in pairwise(statements):
        if _is_definition(one) or _is_definition(after):
            code += "\n\n\n"
        elif _is_import(one) and not _is_import(after):
            code += "\n\n"
        else:
            code += "\n"
        code += after.code
    return code


def _is_definition(statement: _Statement) -> bool:
    return statement.code.startswith(("def ", "class "))


@cache
def _examples() -> dict[str, list[Example]]:
    """Name → every example of it, over all pages."""
    found: dict[str, list[Example]] = {}
    for page in _pages():
        for snippet in _SNIPPET.finditer((DOCS / page).read_text("utf-8")):
            statements = _statements(snippet["code"])
            for i, statement in enumerate(statements):
                if _is_import(statement):
                    continue
                code = _with_what_it_needs(statements[:i], statement)
                for name in statement.used:
                    example = Example(page, code, snippet["mark"] is None)
                    found.setdefault(name, []).append(example)
    return found


def _pages() -> Iterable[str]:
    yield from sorted(path.name for path in DOCS.glob("*.md"))
    yield SHORT_EXAMPLES


def example_of(name: str) -> Example | None:
    """The best example of a public name; None where no snippet uses it."""
    found = _examples().get(name, [])
    return min(found, key=lambda example: example.worth) if found else None


def without_example() -> list[str]:
    """Public names that no snippet uses."""
    return [name for name in public_names() if example_of(name.partition(".")[2]) is None]


def packages() -> list[str]:
    """Packages with public names, in the order of the alphabet."""
    return sorted({name.partition(".")[0] for name in public_names()})


def reference_of(package: str) -> str:
    """What stands on the page of a package below its title."""
    top = set(emlens.__all__)
    parts = []
    for full in public_names():
        home, _, name = full.partition(".")
        if home == package:
            parts.append(_entry(home, name, at_the_top=name in top))
    return "\n\n".join(parts)


def _entry(package: str, name: str, *, at_the_top: bool) -> str:
    lines = [f"::: emlens.{package}.{name}", _OPTIONS, ""]
    if at_the_top:
        lines += [f"Also `emlens.{name}`.", ""]
    example = example_of(name)
    if example is not None:
        title = _title(example.page)
        lines += [
            f"Example, from [{title}]({_from_reference(example.page)}):",
            "",
            # a fence of tildes: the tests run the snippet on its own page
            f"~~~python\n{example.code}\n~~~",
            "",
        ]
    return "\n".join(lines).rstrip()


def _from_reference(page: str) -> str:
    return page.removeprefix("reference/") if page.startswith("reference/") else f"../{page}"


@cache
def _title(page: str) -> str:
    first = (DOCS / page).read_text("utf-8").split("\n", 1)[0]
    return first.removeprefix("# ").strip()
