"""A part of a study as a unit of work that can be resumed: done once, then read from its files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from emlens.results.study_result import Part, table_path
from emlens.results.table_files import write_table
from emlens.runs import UnitLog


def finished_part(
    log: UnitLog, name: str, inputs: Any, work: Callable[[], Part], directory: Path
) -> Part:
    """The part as its files hold it; the work is done only where they are not there.

    What comes back is always read from the files, so that a run that was resumed goes on with
    exactly what a run without interruption has.

    Args:
        log: of the finished units.
        name: of the part; unique in the log.
        inputs: JSON-ready description of everything that the part depends on.
        work: gives the part.
        directory: the tables are written to `directory/tables`.
    """

    def unit() -> tuple[dict[str, Any], list[Path]]:
        part = work()
        files = []
        for table, frame in part.tables.items():
            files.append(table_path(directory, table))
            write_table(files[-1], frame)
        return part.to_record(), [*files, *part.files]

    return Part.from_record(log.run(name, inputs, unit), directory)
