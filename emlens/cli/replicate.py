"""`emlens replicate`: published figures beside recomputed ones."""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from emlens.cli.printing import print_json, print_line, print_table


def replicate(
    directory: Annotated[
        Path,
        typer.Argument(
            help="Folder with the released files (see docs/replication.md for what goes where),"
            " or with a replication.yaml of your own."
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
        columns = rows[["figure", "function", "published", "recomputed", "agrees", "note"]]
        words = [_word(row) for row in rows.to_dict(orient="records")]
        print_table(columns.assign(agrees=words), str(source))
    print_table(replication.summary, "figures by file")
    reasons = replication.table["explained"]
    for reason in dict.fromkeys(reasons[reasons != ""]):
        print_line(f"explained: {reason}")
    if replication.agrees:
        print_line("every figure agrees or is explained")
        raise typer.Exit(0)
    print_line("at least one figure is off")
    raise typer.Exit(1)


def _word(row: Mapping[Hashable, Any]) -> str:
    if row["agrees"] is None:
        return "not counted"
    if row["agrees"]:
        return "yes"
    return "explained" if row["explained"] else "NO"
