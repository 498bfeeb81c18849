"""What a reader meets on a page of code, counted from syntax trees.

    python tests/code_figures.py [FOLDER]     the figures of a folder, `emlens` where none is given

Counted per 100 code lines (lines without docstrings, comments and blanks): conditional expressions
and comprehensions, because branching that hides inside expressions is not seen by a linter. Counted
besides: arguments of a function (`self` and `cls` are none), and local names that are participles
or pronouns, because they say what happened to a value and not what it is.
"""

import ast
import io
import sys
import tokenize
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

VAGUE_NAMES = frozenset(
    (
        "found",
        "told",
        "said",
        "own",
        "mine",
        "kept",
        "left",
        "given",
        "asked",
        "made",
        "read",
        "shown",
        "taken",
        "known",
        "seen",
        "done",
        "used",
        "drawn",
        "held",
        "chosen",
        "named",
        "wanted",
        "needed",
        "stands",
        "worn",
        "here",
        "there",
        "rest",
        "others",
        "other",
        "these",
        "those",
        "them",
        "it",
        "that",
        "this",
        "which",
        "one",
        "ours",
        "theirs",
        "both",
        "each",
        "such",
        "more",
        "most",
        "further",
        "gone",
        "put",
        "got",
    )
)
"""Names that could stand for anything."""
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
NO_CODE = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)
MANY_ARGUMENTS = 8


@dataclass(frozen=True)
class Figures:
    """Counts over the modules of a folder."""

    lines: int
    code_lines: int
    long_lines: int
    conditionals: float
    """Conditional expressions per 100 code lines."""
    comprehensions: float
    """Comprehensions and generator expressions per 100 code lines."""
    vague_names: float
    """Share of local names that are participles or pronouns."""
    most_arguments: int
    many_arguments: float
    """Share of functions with more than `MANY_ARGUMENTS` arguments."""


def figures_of(folder: Path, columns: int = 100) -> Figures:
    """The figures of every module below `folder`."""
    counts: Counter[str] = Counter()
    arguments: list[int] = []
    for path in sorted(folder.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        lines = source.splitlines()
        counts["lines"] += len(lines)
        counts["long"] += sum(len(line) > columns for line in lines)
        tree = ast.parse(source)
        counts["code"] += len(code_lines(source, tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.IfExp):
                counts["conditionals"] += 1
            elif isinstance(node, COMPREHENSIONS):
                counts["comprehensions"] += 1
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments.append(arguments_of(node))
                names = local_names(node)
                counts["names"] += len(names)
                counts["vague"] += len(names & VAGUE_NAMES)
    per_100 = 100 / max(1, counts["code"])
    many = sum(count > MANY_ARGUMENTS for count in arguments)
    return Figures(
        lines=counts["lines"],
        code_lines=counts["code"],
        long_lines=counts["long"],
        conditionals=counts["conditionals"] * per_100,
        comprehensions=counts["comprehensions"] * per_100,
        vague_names=counts["vague"] / max(1, counts["names"]),
        most_arguments=max(arguments, default=0),
        many_arguments=many / max(1, len(arguments)),
    )


def code_lines(source: str, tree: ast.AST) -> set[int]:
    """Numbers of the lines that hold code: no blank, comment or docstring."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return lines - docstring_lines(tree)


def docstring_lines(tree: ast.AST) -> set[int]:
    """Numbers of the lines that bare strings take."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def arguments_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many arguments a caller may pass by name or place."""
    args = function.args
    count = len(args.posonlyargs) + len(args.args) + len(args.kwonlyargs)
    bound = bool(args.args) and args.args[0].arg in ("self", "cls")
    return count - bound


def local_names(function: ast.AST) -> set[str]:
    """Names that are assigned inside a function."""
    return {
        node.id
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "emlens")
    for name, value in vars(figures_of(folder)).items():
        sys.stdout.write(f"{name}: {value:.4g}\n")


if __name__ == "__main__":
    main()
