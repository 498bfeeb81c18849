"""`emlens replicate`: published figures beside recomputed ones."""

from pathlib import Path
from typing import Annotated

import typer

from emlens.cli.printing import as_json, line, table


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

    found = recompute(directory)
    if json:
        as_json({"agrees": found.agrees, "figures": found.table.to_dict(orient="records")})
    else:
        for source, rows in found.table.groupby("source", sort=False):
            shown = rows[["figure", "published", "recomputed", "agrees", "note"]].copy()
            shown["agrees"] = [
                "not counted" if a is None else "yes" if a else "NO" for a in rows["agrees"]
            ]
            table(shown, str(source))
        line("every figure agrees" if found.agrees else "at least one figure is off")
    raise typer.Exit(0 if found.agrees else 1)
