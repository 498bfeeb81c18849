"""Named units of work whose finished results survive anything: the same command continues
where it was.

A unit's result is one JSON record and any number of files. The record is published by rename after
its files; it is found again by a fingerprint of what it was computed from, so a changed
configuration never reuses an old result. A record or file that is not as it was written counts as
absent, and the unit is done again. `emlens.runs.locks` keeps a second command out of a directory;
where several processes share the work, `emlens.runs.plan` and `emlens.runs.unit_claims` do.
"""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from emlens.foundation.errors import InputError
from emlens.foundation.files import (
    canonical_json,
    one_line,
    read_json,
    safe_name,
    sha256_file,
    write_json,
)
from emlens.foundation.provenance import hash_json, hashes_by_name

logger = logging.getLogger("emlens")

UnitResult = tuple[Any, Sequence[Path]]
"""What work on a unit gives: a JSON-ready result of names and counts, and the files it wrote (full
paths).
"""


class UnitLog:
    """Finished units under `directory`. `run(name, inputs, work)` does the work of a unit
    once, and gives its recorded result.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self.reused: list[str] = []
        self.done: list[str] = []

    def run(self, name: str, inputs: Any, work: Callable[[], UnitResult]) -> Any:
        """Does the work once and gives its recorded result.

        Args:
            name: unique within the log.
            inputs: JSON-ready description of everything the result depends on.
            work: does it; returns the JSON-ready result and the full paths of the files it wrote.

        Raises:
            InputError: the result holds what JSON cannot.
        """
        record = self.find(name, inputs)
        if record is not None:
            self.reused.append(name)
            return record["result"]
        self._say_what_changed(name, inputs)
        result, files = work()
        self.publish(name, inputs, result, files)
        self.done.append(name)
        # read back from the file, so that a resumed run gets the same values
        return read_json(self.path(name))["result"]

    def path(self, name: str) -> Path:
        """Where the record of a unit is, or will be."""
        return self.directory / f"{safe_name(name)}.json"

    def find(self, name: str, inputs: Any, verify: bool = True) -> dict[str, Any] | None:
        """The record of a finished unit, or None; without `verify`, its files are only looked for,
        not read.
        """
        record = _whole_record(self.path(name))
        if record is None or record["fingerprint"] != hash_json(inputs):
            return None
        for file, digest in record["files"].items():
            path = self.directory / file
            if not path.is_file() or (verify and sha256_file(path) != digest):
                return None
        return record

    def _say_what_changed(self, name: str, inputs: Any) -> None:
        """A unit that was finished from other inputs is done again; the log names them."""
        record = _whole_record(self.path(name))
        if record is None or record["fingerprint"] == hash_json(inputs):
            return
        before, now = record.get("inputs"), hashes_by_name(inputs)
        if isinstance(before, dict):
            changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
            logger.warning(
                "%s: is done again, for what it was made from changed: %s",
                one_line(name, 80),
                one_line(", ".join(changed)),
            )

    def publish(self, name: str, inputs: Any, result: Any, files: Sequence[Path]) -> None:
        """Record a unit as finished; its files must be there."""
        try:
            canonical_json(result)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"unit {name!r} answered with what JSON cannot hold ({error});"
                " write values to files and answer with names and counts"
            ) from None
        body = {
            "name": name,
            "fingerprint": hash_json(inputs),
            "inputs": hashes_by_name(inputs),
            "result": result,
            "files": {os.path.relpath(path, self.directory): sha256_file(path) for path in files},
        }
        write_json(self.path(name), {**body, "sha256": hash_json(body)})


def _whole_record(path: Path) -> dict[str, Any] | None:
    """The record as it was written, or None where there is none or it was changed since."""
    try:
        record = read_json(path)
    except InputError:
        return None
    if not isinstance(record, dict):
        return None
    digest = record.pop("sha256", None)
    return record if digest == hash_json(record) else None
