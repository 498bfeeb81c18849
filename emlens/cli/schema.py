"""`emlens schema`: what a study's configuration may hold, for editors and for other programs."""

from pathlib import Path
from typing import Annotated

import typer

from emlens.cli.printing import print_json, print_line


def schema(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write; default: print.")
    ] = None,
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            help=(
                "With --out: say as JSON where it was written. The schema itself always is JSON."
            ),
        ),
    ] = False,
) -> None:
    """Print the JSON Schema of study configurations: every field, and each part's own options, with
    meaning, type, bounds and default.
    """
    from emlens.foundation.files import write_text
    from emlens.studies.schema import schema_text

    text = schema_text()
    if out is None:
        typer.echo(text, nl=False)
        return
    write_text(out, text)
    if json:
        print_json({"out": str(out)})
    else:
        print_line(f"written to {out}")
