"""`emlens replicate`: published figures beside recomputed ones."""

from pathlib import Path
from typing import Annotated

import typer

from emlens.cli.printing import print_json, print_line, print_table


def replicate(
    directory: Annotated[
        Path,
        typer.Argument(
            help="Folder with the released files (see docs/replication.md for what goes where)."
        ),
    ],
    json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """Recompute published figures from released files, through the same functions researchers use;
    exit 1 if one is off.
    """
    from emlens.replication import replicate as recompute

    replication = recompute(directory)
    if json:
        figures = replication.table.to_dict(orient="records")
        print_json({"agrees": replication.agrees, "figures": figures})
        raise typer.Exit(0 if replication.agrees else 1)
    for source, rows in replication.table.groupby("source", sort=False):
        columns = rows[["figure", "published", "recomputed", "agrees", "note"]]
        print_table(columns.assign(agrees=list(map(_word, rows["agrees"]))), str(source))
    if replication.agrees:
        print_line("every figure agrees")
        raise typer.Exit(0)
    print_line("at least one figure is off")
    raise typer.Exit(1)


def _word(agrees: bool | None) -> str:
    if agrees is None:
        return "not counted"
    return "yes" if agrees else "NO"
