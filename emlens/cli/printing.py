"""What the commands print: lines whose text cannot move the cursor, tables, JSON."""

import re
import sys
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

NO_TERMINAL_WIDTH = 160
"""Columns of a table where the output is not a terminal."""


def print_line(text: str) -> None:
    """One line, without characters that steer a terminal."""
    from emlens.foundation.files import one_line

    typer.echo(one_line(text, 2000))


def print_aligned(text: str) -> None:
    """One line whose columns are set apart by two spaces or more, which stay."""
    from emlens.foundation.files import one_line

    pieces = re.split("( {2,})", text)
    typer.echo("".join(piece if piece.isspace() else one_line(piece, 2000) for piece in pieces))


def print_json(value: Any) -> None:
    """One JSON document, and nothing else."""
    from emlens.foundation.files import canonical_json

    typer.echo(canonical_json(value), nl=False)


def print_table(frame: "pd.DataFrame", title: str = "") -> None:
    """A table; as wide as the terminal, or as its text needs where nobody watches."""
    import pandas as pd
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from emlens.foundation.files import one_line

    printed = Table(title=escape(title) or None, title_justify="left")
    for name in frame.columns:
        column = frame[name]
        is_number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
        printed.add_column(
            escape(str(name)), justify="right" if is_number else "left", overflow="fold"
        )
    for row in frame.itertuples(index=False):
        printed.add_row(*(escape(one_line(_cell(value), 160)) for value in row))
    width = None if sys.stdout.isatty() else NO_TERMINAL_WIDTH
    Console(file=sys.stdout, width=width).print(printed)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "—" if value != value else f"{value:.4g}"  # NaN is not equal to itself
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
