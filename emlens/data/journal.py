"""JSON lines that are appended as work is done, so that a kill loses nothing that was reported as
done.

    records = read_journal(path)     # [] where there is no file; without an unfinished last line
    append_journal(path, records)    # on disk when this returns

A kill in the middle of an append leaves an unfinished last line: reading leaves it out, the next
append cuts it off. Damage anywhere else is refused, and nothing is cut before a reader has accepted
the lines above. One writer at a time; `append_journal` refuses a second one where the file system
supports locks. Whoever finishes the work publishes the whole in its proper order with `write_text`.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from emlens.data.readers import is_whole_record, json_record, placed_lines
from emlens.runs.locks import only_writer

SYNC_SECONDS: Final = 1.0
"""Between two flushes to the disk, where many records are appended one by one."""


def read_journal(path: str | Path) -> list[tuple[int, dict[str, Any]]]:
    """(line number, record) of every complete line.

    Raises:
        InputError: a line that is not a JSON object and not the unfinished last one; file, line and
            reason.
    """
    return [(number, record) for number, _, record in journal_records(path)]


def journal_records(path: str | Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(line number, byte that it starts at, record) of every complete line, one at a time.

    Raises:
        InputError: as `read_journal`.
    """
    if not Path(path).exists():
        return
    for number, start, line in placed_lines(path, unfinished=True):
        if line.strip():
            yield number, start, json_record(f"{path}, line {number}", line)


def append_journal(
    path: str | Path, records: Iterable[Mapping[str, Any]], *, sync: bool = True
) -> None:
    """Append one line per record.

    Args:
        sync: flush to the disk, so that a power cut loses nothing either; without it the lines
            survive only a kill of the process.

    Raises:
        StateError: another process is writing to this file.
    """
    content = _encoded(records)  # before the file is touched, so that an error leaves it as it was
    with _held_for_writing(path) as file:
        _append(file, content, sync)


def append_held(
    path: str | Path, records: Iterable[Mapping[str, Any]], *, sync: bool = True
) -> None:
    """`append_journal` for whoever holds the file already (`emlens.runs.locks.only_writer`)."""
    content = _encoded(records)
    with open(path, "a+b") as file:
        _append(file, content, sync)


@contextmanager
def appending(path: str | Path) -> Iterator[Callable[[Iterable[Mapping[str, Any]]], None]]:
    """For whoever holds the file: what is yielded appends records, which a kill cannot lose then.

    They are flushed to the disk once a second and at the end, for a flush takes milliseconds. A
    power cut loses what was written in the last second.
    """
    synced = time.monotonic()

    def append(records: Iterable[Mapping[str, Any]]) -> None:
        nonlocal synced
        is_due = time.monotonic() - synced >= SYNC_SECONDS
        append_held(path, records, sync=is_due)
        if is_due:
            synced = time.monotonic()

    yield append
    append_held(path, [], sync=True)


def _encoded(records: Iterable[Mapping[str, Any]]) -> bytes:
    lines = [json.dumps(dict(record), ensure_ascii=False, default=str) + "\n" for record in records]
    return "".join(lines).encode("utf-8")


@contextmanager
def _held_for_writing(path: str | Path) -> Iterator[IO[bytes]]:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(path), open(path, "a+b") as file:
        yield file


def _append(file: IO[bytes], content: bytes, sync: bool) -> None:
    if _has_unfinished_line(file):
        file.seek(0)
        complete, tail = _split(file.read())
        if is_whole_record(tail):
            content = b"\n" + content
        else:
            file.truncate(len(complete))
    file.write(content)
    file.flush()
    if sync:
        os.fsync(file.fileno())


def _split(content: bytes) -> tuple[bytes, bytes]:
    """What ends with a line end, and what comes after the last one."""
    end = content.rfind(b"\n") + 1
    return content[:end], content[end:]


def _has_unfinished_line(file: Any) -> bool:
    if not file.seek(0, os.SEEK_END):
        return False
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) != b"\n")
