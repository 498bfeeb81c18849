"""What the commands print: lines whose text cannot move the cursor, tables, JSON."""

import sys
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import pandas as pd


def line(text: str) -> None:
    from emlens.foundation.files import one_line

    typer.echo(one_line(text, 2000))


def as_json(value: Any) -> None:
    from emlens.foundation.files import canonical_json

    typer.echo(canonical_json(value), nl=False)


def table(frame: "pd.DataFrame", title: str = "") -> None:
    """A table; as wide as the terminal, or as its text needs where nobody watches."""
    import pandas as pd
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from emlens.foundation.files import one_line

    drawn = Table(title=escape(title) or None, title_justify="left")
    for name in frame.columns:
        numeric = pd.api.types.is_numeric_dtype(frame[name]) and not pd.api.types.is_bool_dtype(
            frame[name]
        )
        drawn.add_column(escape(str(name)), justify="right" if numeric else "left", overflow="fold")
    for row in frame.itertuples(index=False):
        drawn.add_row(*(escape(one_line(_cell(value), 160)) for value in row))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160).print(drawn)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "—" if value != value else f"{value:.4g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
