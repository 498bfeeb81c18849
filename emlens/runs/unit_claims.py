"""Who works on what: one claim file per attempt, made by an atomic create and kept warm by a
heartbeat.

Attempt n of a unit is the file `UNIT.n.claim`; the file system lets exactly one process create it.
An attempt has ended when `UNIT.n.failed.json` stands, which says why. It is written by the owner
when its work raised, and by whoever finds the owner dead:

* at once, where owner and finder share a machine and the owner's process is gone (same boot, same
  process id namespace; a reused process id is told by its start time);
* otherwise when the heartbeat did not move for `lease` seconds *as the finder measures*: clocks are
  never compared.

The next attempt is n + 1, so that of two finders only one takes over. A machine that was suspended
is taken over too; if it wakes, its answer counts only where none stands. A process that hangs while
its heart beats keeps its claim. Attempts that ended are kept: they bound the retries and tell the
reason. A claim goes when its unit is answered, or at Ctrl-C.

Needs: a file system that all workers see, with atomic exclusive create (any local one, NFS from
version 3 on, Lustre, GPFS). Costs a few small files per unit that did not go through at once, and
one thread per running unit.
"""

import logging
import os
import platform
import re
import threading
import time
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from emlens.foundation.errors import InputError
from emlens.foundation.files import canonical_json, one_line, read_json, safe_name, write_json

LEASE = 120.0
"""Seconds of silence after which a claim of another machine is taken over; longer than NFS caches
file times.
"""

_BEATS = 8  # heartbeats per lease: some may be late
_log = logging.getLogger("emlens")


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended without an answer."""

    attempt: int
    reason: str
    owner: str
    record: Path


class Claims:
    """Claims in one directory, seen by one worker.

    Args:
        run: what this worker and those started with it are called; retries are counted within one
            run.
        lease: seconds; see above.
    """

    def __init__(self, directory: Path, run: str, lease: float = LEASE):
        self.directory = directory
        self.run = run
        self.lease = lease
        self._seen: dict[Path, tuple[int, float]] = {}

    def take(self, unit: str, limit: int) -> "Claim | Literal['held', 'given up']":
        """Claim the next attempt at a unit, unless someone works on it or `limit` attempts of this
        run have ended.
        """
        last = self._last(unit)
        if last:
            if not self._ended(unit, last):
                return "held"
            if self.ended_in_this_run(unit) >= limit:
                return "given up"
        path = self._path(unit, last + 1)
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return "held"
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(
                canonical_json(
                    {
                        "unit": unit,
                        "attempt": last + 1,
                        "run": self.run,
                        **_identity(),
                        "since": _now(),
                    }
                )
            )
        return Claim(path, self.lease / _BEATS)

    def tried(self) -> set[str]:
        """File stems of the units with at least one claim: those nobody tried yet go first."""
        if not self.directory.is_dir():
            return set()
        return {
            match[1]
            for name in os.listdir(self.directory)
            if (match := re.fullmatch(r"(.+)\.1\.claim", name))
        }

    def was_tried(self, unit: str, tried: set[str]) -> bool:
        return safe_name(unit) in tried

    def ended_in_this_run(self, unit: str) -> int:
        """Attempts of this run that ended without an answer."""
        numbers = range(1, self._last(unit) + 1)
        return sum(
            _read(self._path(unit, n)).get("run") == self.run and self._ended(unit, n)
            for n in numbers
        )

    def last_failure(self, unit: str) -> Failure | None:
        for number in range(self._last(unit), 0, -1):
            record = _record(self._path(unit, number))
            if content := _read(record):
                return Failure(
                    number, str(content.get("reason")), str(content.get("owner")), record
                )
        return None

    def _path(self, unit: str, number: int) -> Path:
        return self.directory / f"{safe_name(unit)}.{number}.claim"

    def _last(self, unit: str) -> int:
        number = 0
        while self._path(unit, number + 1).exists():
            number += 1
        return number

    def _ended(self, unit: str, number: int) -> bool:
        """Whether an attempt is over; a death is recorded by whoever finds it."""
        path = self._path(unit, number)
        if _record(path).exists():
            return True
        owner = _read(path)
        if _is_gone(owner):
            how = "its process is gone: it was killed, or ran out of memory"
        elif self._silent(path):
            how = f"no heartbeat for {self.lease:g} s"
        else:
            return False
        if path.exists():
            _write_failure(path, f"the worker died ({how})", _called(owner), "")
        return True

    def _silent(self, path: Path) -> bool:
        try:
            with open(path, "rb") as file:  # opening, not stat: NFS then asks the server
                beat = os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return False
        now = time.monotonic()
        before = self._seen.get(path)
        if before is None or before[0] != beat:
            self._seen[path] = (beat, now)
            return False
        return now - before[1] > self.lease


class Claim:
    """A held attempt, as a context: the heart beats inside; leaving it without `fail` gives the
    claim back.
    """

    def __init__(self, path: Path, every: float):
        self._path = path
        self._every = every
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="emlens-heartbeat", daemon=True)

    def __enter__(self) -> "Claim":
        self._heart.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if not _record(self._path).exists():
            self._path.unlink(missing_ok=True)
        self._heart.join()

    def fail(self, error: Exception) -> None:
        """End the attempt and record why."""
        reason = one_line(f"{type(error).__name__}: {error}", 400)
        trace = "".join(traceback.format_exception(error))[-8000:]
        _write_failure(self._path, reason, _called(_read(self._path)), trace)

    def _beat(self) -> None:
        while not self._stop.wait(self._every):
            try:
                os.utime(self._path)
            except OSError as error:
                if self._stop.is_set():
                    return
                _log.warning("the heartbeat of %s failed: %s", self._path.name, error)


def _record(claim: Path) -> Path:
    return claim.with_suffix(".failed.json")


def _write_failure(claim: Path, reason: str, owner: str, trace: str) -> None:
    run = _read(claim).get("run")
    write_json(
        _record(claim),
        {"reason": reason, "owner": owner, "run": run, "at": _now(), "traceback": trace},
    )


def _read(path: Path) -> dict[str, Any]:
    """A claim or record; empty where it is not there or its writer died before it was whole."""
    try:
        content = read_json(path)
    except InputError:
        return {}
    return content if isinstance(content, dict) else {}


def _called(owner: dict[str, Any]) -> str:
    return (
        f"process {owner['pid']} on {owner['host']}"
        if "pid" in owner and "host" in owner
        else "unknown"
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _identity() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": platform.node(), "machine": _machine(), "pid": pid, "born": birth(pid)}


@cache
def _machine() -> str:
    """Names a set of process ids: host, boot and process id namespace."""
    parts = [platform.node()]
    for read in (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        lambda: os.readlink("/proc/self/ns/pid"),
    ):
        try:
            parts.append(read())
        except OSError:
            parts.append("?")
    return " ".join(parts)


def birth(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None where it runs no more, or where that is
    not told.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _is_gone(owner: dict[str, Any]) -> bool:
    """Proof of death; no proof where the owner is unknown or lives on another machine."""
    if (
        owner.get("machine") != _machine()
        or os.name != "posix"
        or not isinstance(owner.get("pid"), int)
    ):
        return False
    if owner.get("born") is not None:
        return birth(owner["pid"]) != owner["born"]
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
