"""Who works on what: one claim file per attempt, made by an atomic create and kept fresh by a
heartbeat.

Attempt n of a unit is the file `UNIT.n.claim`; the file system lets exactly one process create it.
An attempt has ended when `UNIT.n.failed.json` exists, which says why. It is written by the owner
when its work raised, or by the worker that finds the owner dead:

* at once, where owner and finder share a machine and the owner's process is gone (same boot, same
  process id namespace; a reused process id is recognised by its start time);
* otherwise, and where a claim is damaged, when the heartbeat did not move for `lease` seconds *as
  the finder measures*: clocks are never compared.

The next attempt is n + 1, so that of two finders only one takes over. A machine that was suspended
is taken over too; if it wakes, its answer counts only where there is none yet. A process that hangs
while its heart beats keeps its claim. Attempts that ended are kept: they bound the retries and give
the reason. A claim is removed when its unit is answered, or at Ctrl-C.

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
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from emlens.foundation.errors import InputError
from emlens.foundation.files import (
    canonical_json,
    one_line,
    read_json,
    safe_name,
    sha256_text,
    write_json,
)
from emlens.runs.outcomes import Outcome

LEASE = 120.0
"""Seconds of silence after which a claim of another machine is taken over; longer than NFS caches
file times.
"""

BEATS = 8
"""Heartbeats per lease: some may be late."""
_CHECKSUM = "record_sha256"
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

    def take(self, unit: str, limit: int) -> "Claim | Outcome":
        """Claim the next attempt at a unit.

        Returns:
            The claim; or HELD where another worker holds the unit, or GIVEN_UP where `limit`
            attempts of this run have ended.
        """
        last = self._last(unit)
        if last:
            if not self._ended(unit, last):
                return Outcome.HELD
            if self.ended_in_this_run(unit) >= limit:
                return Outcome.GIVEN_UP
        path = self._path(unit, last + 1)
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return Outcome.HELD
        claim = {"unit": unit, "attempt": last + 1, "run": self.run, **identity(), "since": now()}
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(canonical_json(with_checksum(claim)))
        return Claim(path, self.lease / BEATS)

    def tried(self) -> set[str]:
        """File stems of the units with at least one claim: those nobody tried yet go first."""
        if not self.directory.is_dir():
            return set()
        matches = (re.fullmatch(r"(.+)\.1\.claim", name) for name in os.listdir(self.directory))
        return {match[1] for match in matches if match}

    def was_tried(self, unit: str, tried: set[str]) -> bool:
        return safe_name(unit) in tried

    def ended_in_this_run(self, unit: str) -> int:
        """Attempts of this run that ended without an answer."""
        count = 0
        for number in range(1, self._last(unit) + 1):
            owner = _owner(self._path(unit, number))
            if owner.get("run") == self.run and self._ended(unit, number):
                count += 1
        return count

    def last_failure(self, unit: str) -> Failure | None:
        """Why the newest attempt that failed did so; None where none failed."""
        for number in range(self._last(unit), 0, -1):
            record = _failure_file(self._path(unit, number))
            content = _read(record)
            if content:
                reason = str(content.get("reason"))
                return Failure(number, reason, str(content.get("owner")), record)
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
        if _failure_file(path).exists():
            return True
        owner = _owner(path)
        if is_gone(owner):
            cause = "its process is gone: it was killed, or ran out of memory"
        elif self._is_silent(path):
            cause = f"no heartbeat for {self.lease:g} s"
        else:
            return False
        if path.exists():
            _write_failure(path, f"the worker died ({cause})", owner_name(owner), "")
        return True

    def _is_silent(self, path: Path) -> bool:
        try:
            # Opened, because NFS then asks the server; a plain stat may be answered from its cache.
            with open(path, "rb") as file:
                beat = os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return False
        now = time.monotonic()
        last_beat, seen_at = self._seen.get(path, (None, now))
        if last_beat != beat:
            self._seen[path] = (beat, now)
            return False
        return now - seen_at > self.lease


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
        if not _failure_file(self._path).exists():
            self._path.unlink(missing_ok=True)
        self._heart.join()

    def fail(self, error: Exception) -> None:
        """End the attempt and record why."""
        reason = one_line(f"{type(error).__name__}: {error}", 400)
        trace = "".join(traceback.format_exception(error))[-8000:]
        _write_failure(self._path, reason, owner_name(_owner(self._path)), trace)

    def _beat(self) -> None:
        while not self._stop.wait(self._every):
            try:
                os.utime(self._path)
            except OSError as error:
                if self._stop.is_set():
                    return
                _log.warning("the heartbeat of %s failed: %s", self._path.name, error)


def _failure_file(claim: Path) -> Path:
    return claim.with_suffix(".failed.json")


def _write_failure(claim: Path, reason: str, owner: str, trace: str) -> None:
    run = _owner(claim).get("run")
    write_json(
        _failure_file(claim),
        {"reason": reason, "owner": owner, "run": run, "at": now(), "traceback": trace},
    )


def with_checksum(claim: dict[str, Any]) -> dict[str, Any]:
    """A claim as it is written: who changes it takes its owner's name off it."""
    return {**claim, _CHECKSUM: sha256_text(canonical_json(claim))}


def _owner(path: Path) -> dict[str, Any]:
    """A claim as it was written; empty where it is not there, not whole, or was changed.

    Nobody is known then, so that nothing but a lease of silence ends the attempt.
    """
    claim = _read(path)
    digest = claim.pop(_CHECKSUM, None)
    if digest != sha256_text(canonical_json(claim)):
        return {}
    return claim


def _read(path: Path) -> dict[str, Any]:
    """A claim or record; empty where it is not there or its writer died before it was whole."""
    try:
        content = read_json(path)
    except InputError:
        return {}
    return content if isinstance(content, dict) else {}


def owner_name(owner: dict[str, Any]) -> str:
    if "pid" in owner and "host" in owner:
        return f"process {owner['pid']} on {owner['host']}"
    return "unknown"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def identity() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": platform.node(), "machine": machine(), "pid": pid, "born": birth(pid)}


@cache
def machine() -> str:
    """Names a set of process ids: host, boot and process id namespace."""
    boot = pid_namespace = "?"
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with suppress(OSError):
        pid_namespace = os.readlink("/proc/self/ns/pid")
    return f"{platform.node()} {boot} {pid_namespace}"


def birth(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None where it does not run, or where the
    kernel does not say.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # After the name in parentheses: field 0 is the state (Z zombie, X dead), field 19 the start.
    return None if fields[0] in "ZX" else fields[19]


def is_gone(owner: dict[str, Any]) -> bool:
    """Proof of death; no proof where the owner is unknown or lives on another machine."""
    if owner.get("machine") != machine() or os.name != "posix":
        return False
    pid = owner.get("pid")
    if not isinstance(pid, int):
        return False
    if owner.get("born") is not None:
        return birth(pid) != owner["born"]
    try:
        os.kill(pid, 0)  # signal 0 only asks whether the process exists
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
