"""`emlens repair`: a file of JSON lines that two writers spoiled, made whole again."""

from pathlib import Path
from typing import Annotated

import typer

from emlens.cli.printing import print_line

_SHOWN = 10


def repair(
    file: Annotated[
        Path, typer.Argument(help="answers (JSONL), or a journal of verdicts, of emlens")
    ],
    dry_run: Annotated[bool, typer.Option(help="say what would be dropped, and write nothing")] = (
        False
    ),
) -> None:
    """Drop what keeps a file from being read: torn lines, answers that are there twice, a
    second first line. What is dropped is printed, and the file as it was stays beside it.
    """
    from emlens.data.repairing import repaired
    from emlens.foundation.files import write_text
    from emlens.runs.locks import only_writer

    with only_writer(file):
        kept, dropped = repaired(file)
        for line in dropped[:_SHOWN]:
            print_line(line)
        if len(dropped) > _SHOWN:
            print_line(f"and {len(dropped) - _SHOWN} lines more")
        if not dropped:
            print_line(f"{file}: nothing to repair in {len(kept)} lines")
            return
        if dry_run:
            print_line(f"{file}: {len(dropped)} lines would be dropped, {len(kept)} kept")
            return
        before = file.with_name(f"{file.name}.before-repair")
        before.write_bytes(file.read_bytes())
        write_text(file, "".join(f"{line}\n" for line in kept))
        print_line(f"{file}: {len(dropped)} lines dropped, {len(kept)} kept")
        print_line(f"as it was: {before.name}")
