"""Locks: one process says that it alone writes to a directory or file, or that several share it.

The lock is one of the operating system, taken on a small file (`.lock` in a directory, `.NAME.lock`
beside a file) and freed when the process that holds it ends, however it ends. The small file says
who holds the lock and is removed when the lock is released; one that a killed process left behind
holds nothing.

The locks of a file system that several machines share may count on one machine alone. So the small
file also beats: it is touched every few seconds as long as it is held. Who finds one that another
machine wrote watches it: where it beats, the work is refused; where it stays silent for a lease
(`emlens.runs.unit_claims`), its holder is taken for dead. Clocks are never compared. Of machines
that begin at the same moment all write their name, and after `SETTLES` seconds only the one whose
name stands goes on.

Where the platform or the file system knows no locks, nothing is held and the log says so: every
write of this library is atomic and repeatable, so a second process costs time, not results. Where
nothing can be written at all, that is said at once, and not when the work is done.
"""

import errno
import json
import logging
import os
import re
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout, has_fcntl

from emlens.foundation.errors import StateError
from emlens.foundation.files import canonical_json, one_line
from emlens.runs.unit_claims import (
    BEATS,
    LEASE,
    identity,
    is_gone,
    machine,
    now,
    owner_name,
)

ANOTHER_RUN = "another run is working in this directory; wait for it, or pass another --out"
ANOTHER_WRITER = "another process is writing to it; wait for that one, or pass another file"

SETTLES = 1.0
"""Seconds between writing a name on a shared file system and reading whose name stands there."""
_SHARED_FILE_SYSTEMS = re.compile(
    r"nfs\d?|lustre|gpfs|beegfs|ceph|cifs|smb\d?|smbfs|9p|afs|glusterfs|ocfs2|gfs2|fuse\..+"
)
_SECONDS_BETWEEN_TRIES = 0.02
_SECONDS_TO_A_NAME = 0.5
_NO_LOCKS_HERE = {
    errno.ENOSYS,
    errno.ENOLCK,
    errno.EOPNOTSUPP,
    errno.EINVAL,
    # No lock file can be made or opened: the directory is read-only, another user's process left
    # its file there, or the name is too long.
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
}

_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}

logger = logging.getLogger("emlens")


@contextmanager
def exclusive(
    directory: str | Path, *, busy: str = ANOTHER_RUN, patience: float = 0.0
) -> Iterator[None]:
    """Hold a directory against every other process; it is made where it is missing.

    Args:
        busy: what the error says about the other process, and what to do.
        patience: seconds to wait for the other process.

    Raises:
        StateError: another process holds the directory, alone or shared.
    """
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    with _held(path / ".lock", path, busy, patience):
        for sharer in path.glob(".lock-*"):
            with _held(sharer, path, busy, patience):  # left by a killed process: removed here
                pass
        yield


@contextmanager
def shared(
    directory: str | Path, *, busy: str = ANOTHER_RUN, patience: float = 0.0
) -> Iterator[None]:
    """Hold a directory together with others that share it; nobody gets it alone meanwhile.

    Arguments and errors as for `exclusive`.
    """
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    # Only exclusive locks exist on every system. So each sharer holds a file of its own, which it
    # makes while it has the lock of the directory; who wants to be alone looks for such files.
    own_file = path / f".lock-{uuid.uuid4().hex[:12]}"
    with _held(path / ".lock", path, busy, patience):
        own_lock = _acquired(own_file, path, busy, patience)
    try:
        yield
    finally:
        _release(own_lock, own_file)


@contextmanager
def only_writer(path: str | Path, *, busy: str = ANOTHER_WRITER) -> Iterator[None]:
    """Hold one file against every other process; its directory must exist.

    Raises:
        StateError: another process holds it.
    """
    path = Path(path)
    with _held(path.with_name(f".{path.name}.lock"), path, busy, patience=0.0):
        yield


def holder_of(directory: str | Path) -> str | None:
    """Who works in a directory now, as far as its lock file says; None where nobody does.

    Nothing is locked or written, so a run that begins meanwhile is not disturbed. On the machine of
    the holder its process is asked for; of another machine's, the file must have beaten within a
    lease of this machine's clock: enough for a list, and no lock.
    """
    lock_file = Path(directory) / ".lock"
    holder = _record_of(lock_file)
    touched = _touched(lock_file)
    if not holder or touched is None:
        return None
    if holder.get("machine") == machine():
        is_alive = not is_gone(holder)
    else:
        is_alive = abs(time.time() - touched / 1e9) < LEASE
    return one_line(owner_name(holder), 120) if is_alive else None


@contextmanager
def _held(lock_file: Path, guarded: Path, busy: str, patience: float) -> Iterator[None]:
    lock = _acquired(lock_file, guarded, busy, patience)
    try:
        yield
    finally:
        _release(lock, lock_file)


def _acquired(lock_file: Path, guarded: Path, busy: str, patience: float) -> BaseFileLock | None:
    """The lock, held; None where there are no locks."""
    if sys.platform != "win32" and not has_fcntl:
        _say_nothing_is_held(guarded, "this Python has no fcntl")
        return None
    _wait_for_other_machine(lock_file, guarded, busy)
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=patience, poll_interval=_SECONDS_BETWEEN_TRIES)
    except Timeout:
        raise StateError(f"{guarded}: {busy}{_holder(lock_file)}") from None
    except NotImplementedError as error:
        _say_nothing_is_held(guarded, str(error))
        return None
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise
        written = guarded if guarded.exists() else guarded.parent
        if error.errno in _NOT_WRITABLE and not os.access(written, os.W_OK):
            # what is to be written cannot be: better said now than after the work
            raise OSError(error.errno, os.strerror(error.errno), str(guarded)) from None
        _say_nothing_is_held(guarded, str(error))
        return None
    if isinstance(lock, SoftFileLock):
        # filelock turns into this where the file system has no locks: a file that would outlive a
        # killed process and keep everybody out.
        lock.release()
        _say_nothing_is_held(guarded, "the file system has no locks")
        return None
    _write_name(lock, lock_file, guarded, busy)
    return lock


def _write_name(lock: BaseFileLock, lock_file: Path, guarded: Path, busy: str) -> None:
    """Say in a lock's small file who holds it.

    Raises:
        StateError: another machine wrote its name at the same time; the lock is given back.
    """
    is_shared = _is_shared(guarded)
    if not (is_shared and _is_of_another_machine(lock_file)):
        with suppress(OSError):  # only a courtesy: Windows lets nobody write to a locked file
            lock_file.write_text(canonical_json({**identity(), "since": now()}, None))
            _beats.add(lock_file)
    if not is_shared:
        return
    time.sleep(SETTLES)
    if _is_of_another_machine(lock_file):
        _beats.discard(lock_file)
        lock.release()
        raise StateError(f"{guarded}: {busy}{_holder(lock_file)}")


def _is_of_another_machine(lock_file: Path) -> bool:
    holder = _record_of(lock_file)
    return bool(holder) and holder.get("machine") != machine()


def _is_shared(path: Path) -> bool:
    """Whether several machines may see a path: its file system is one of a network (Linux)."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        target = path.resolve()
    except OSError:
        return False
    kind, longest = "", -1
    for mount in mounts:
        before, _, after = mount.partition(" - ")
        place = Path(re.sub(r"\\(\d{3})", _octal, before.split()[4]))
        if target.is_relative_to(place) and len(place.parts) >= longest:
            longest, kind = len(place.parts), after.split()[0]
    return _SHARED_FILE_SYSTEMS.fullmatch(kind) is not None


def _octal(match: re.Match[str]) -> str:
    """A space and the like in a place of /proc/self/mountinfo."""
    return chr(int(match[1], 8))


def _release(lock: BaseFileLock | None, lock_file: Path) -> None:
    if lock is None:
        return
    _beats.discard(lock_file)
    # Removed before it is released. Who opened the file before that and locks it after sees that it
    # has no name any more, and begins again: filelock compares st_nlink.
    with suppress(OSError):
        lock_file.unlink()
    lock.release()


def _holder(lock_file: Path) -> str:
    """Who holds a lock, for a message; a holder writes its name a moment after it has the lock."""
    ends = time.monotonic() + _SECONDS_TO_A_NAME
    while not _record_of(lock_file) and time.monotonic() < ends:
        time.sleep(_SECONDS_BETWEEN_TRIES)
    holder = _record_of(lock_file)
    if not holder:
        return ""
    since = one_line(str(holder.get("since", "?")), 40)
    return f" (held by {one_line(owner_name(holder), 120)} since {since})"


def _record_of(lock_file: Path) -> dict[str, Any]:
    """Who wrote a lock's small file; empty where nobody did, or it is not whole."""
    try:
        content = json.loads(lock_file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _wait_for_other_machine(lock_file: Path, guarded: Path, busy: str) -> None:
    """Refuse where another machine holds the lock; wait a lease for one that is silent.

    Raises:
        StateError: it beats.
    """
    holder = _record_of(lock_file)
    if not holder or holder.get("machine") == machine():
        return
    logger.warning(
        "%s: was held by %s; watching for %g s whether it still works",
        guarded,
        one_line(owner_name(holder), 120),
        LEASE,
    )
    before = _touched(lock_file)
    ends = time.monotonic() + LEASE
    while time.monotonic() < ends:
        time.sleep(min(0.2, LEASE / 10))
        touched = _touched(lock_file)
        if touched is None:
            return
        if touched != before:
            raise StateError(f"{guarded}: {busy}{_holder(lock_file)}")
    with suppress(OSError):
        lock_file.unlink()


def _touched(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


class _Beats:
    """Touches the small files of the locks that this process holds."""

    def __init__(self) -> None:
        self._files: set[Path] = set()
        self._pid = 0

    def add(self, path: Path) -> None:
        if self._pid != os.getpid():  # a fork has neither the thread nor the locks
            self._pid = os.getpid()
            self._files = set()
            threading.Thread(target=self._touch, name="emlens-locks", daemon=True).start()
        self._files.add(path)

    def discard(self, path: Path) -> None:
        self._files.discard(path)

    def _touch(self) -> None:
        while True:
            time.sleep(LEASE / BEATS)
            for path in list(self._files):
                with suppress(OSError):
                    os.utime(path)


_beats = _Beats()


def _say_nothing_is_held(guarded: Path, reason: str) -> None:
    logger.warning("%s: is not locked against a second process (%s)", guarded, reason)
