"""`emlens repair`: a file of JSON lines that two writers spoiled, made whole again."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from emlens.cli.printing import print_json, print_line

_SHOWN = 10


def repair(
    file: Annotated[
        Path, typer.Argument(help="answers (JSONL), or a journal of verdicts, of emlens")
    ],
    dry_run: Annotated[bool, typer.Option(help="Say what would be dropped, and write nothing.")] = (
        False
    ),
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Drop what keeps a file from being read: torn lines, answers that are there twice, a
    second first line. What is dropped is printed, and the file as it was stays beside it.
    """
    from emlens.data.repairing import repaired
    from emlens.foundation.files import write_text
    from emlens.runs.locks import only_writer

    with nullcontext() if dry_run else only_writer(file):
        kept, dropped = repaired(file)
        before = file.with_name(f"{file.name}.before-repair")
        is_written = bool(dropped) and not dry_run
        if is_written:
            before.write_bytes(file.read_bytes())
            write_text(file, "".join(f"{line}\n" for line in kept))
    if json:
        as_it_was = before.name if is_written else None
        print_json({"kept": len(kept), "dropped": list(dropped), "as_it_was": as_it_was})
        return
    for line in dropped[:_SHOWN]:
        print_line(line)
    if len(dropped) > _SHOWN:
        print_line(f"and {len(dropped) - _SHOWN} lines more")
    if not dropped:
        print_line(f"{file}: nothing to repair in {len(kept)} lines")
    elif dry_run:
        print_line(f"{file}: {len(dropped)} lines would be dropped, {len(kept)} kept")
    else:
        print_line(f"{file}: {len(dropped)} lines dropped, {len(kept)} kept")
        print_line(f"as it was: {before.name}")
