"""Named units of work whose finished results survive anything: the same command goes on from where it was.

A unit's result is one JSON record and any number of files, published by rename after its files stand; it is found
again by a fingerprint of what it was computed from, so a changed configuration never reuses an old result. A
record or file that is not as it was written counts as absent, and the unit is done again.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emlens.foundation.errors import InputError, StateError
from emlens.foundation.files import read_json, safe_name, sha256_file, write_json
from emlens.foundation.provenance import hash_json


class UnitLog:
    """Finished units under `directory`. `run(name, inputs, work)` returns the recorded result, or does the work and records it."""

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self.reused: list[str] = []
        self.done: list[str] = []

    def run(self, name: str, inputs: Any, work: Callable[[], tuple[Any, list[Path]]]) -> Any:
        """The unit's result.

        Args:
            name: unique within the log.
            inputs: JSON-ready description of everything the result depends on.
            work: does it; returns the JSON-ready result and the files it wrote (relative to nothing: full paths).
        """
        record = self.directory / f"{safe_name(name)}.json"
        fingerprint = hash_json(inputs)
        found = _whole_record(record)
        if found is not None and found["fingerprint"] == fingerprint and self._files_stand(found["files"]):
            self.reused.append(name)
            return found["result"]
        result, files = work()
        body = {
            "name": name,
            "fingerprint": fingerprint,
            "result": result,
            "files": {os.path.relpath(path, self.directory): sha256_file(path) for path in files},
        }
        write_json(record, {**body, "sha256": hash_json(body)})
        self.done.append(name)
        return read_json(record)["result"]

    def _files_stand(self, files: dict[str, str]) -> bool:
        return all((self.directory / p).is_file() and sha256_file(self.directory / p) == digest for p, digest in files.items())


def _whole_record(path: Path) -> dict[str, Any] | None:
    """The record as it was written, or None where there is none or it was changed since."""
    try:
        found = read_json(path)
    except InputError:
        return None
    if not isinstance(found, dict):
        return None
    digest = found.pop("sha256", None)
    return found if digest == hash_json(found) else None


@contextmanager
def exclusive(directory: str | Path) -> Iterator[None]:
    """Hold a directory against a second run of the same command; the lock vanishes with the process that held it."""
    import fcntl

    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    with open(path / ".lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError(f"{path}: another run is working in this directory; wait for it, or pass another --out") from None
        yield
