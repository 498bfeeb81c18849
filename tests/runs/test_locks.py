import contextlib
import errno
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import filelock
import pytest

from emlens.foundation import StateError
from emlens.runs import locks
from emlens.runs.locks import exclusive, only_writer, shared

PROCESSES = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")


def hold(kind: str, path: Path, held: Connection) -> None:
    with getattr(locks, kind)(path):
        held.send("held")
        time.sleep(600)


@contextmanager
def held_elsewhere(kind: str, path: Path) -> Iterator[BaseProcess]:
    """Another process that holds a lock; it is killed at the end."""
    ours, theirs = PROCESSES.Pipe()
    holder = PROCESSES.Process(target=hold, args=(kind, path, theirs))
    holder.start()
    try:
        assert ours.poll(60) and ours.recv() == "held"
        yield holder
    finally:
        holder.kill()
        holder.join()


def test_one_run_at_a_time_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with held_elsewhere("exclusive", path) as holder:
        message = (
            "run: another run is working in this directory;"
            " wait for it, or pass another --out"
            rf" \(held by process {holder.pid} on "
        )
        with pytest.raises(StateError, match=message), exclusive(path):
            pass
        with pytest.raises(StateError, match=message), shared(path):
            pass
    assert (path / ".lock").exists()  # a file is left, and holds nothing
    with exclusive(path):
        pass
    with pytest.raises(KeyError, match="planted"), exclusive(path):
        raise KeyError("planted")
    with exclusive(path):
        pass
    assert list(path.iterdir()) == []


def test_a_directory_is_shared_by_many_and_then_held_by_nobody_alone(tmp_path: Path) -> None:
    with held_elsewhere("shared", tmp_path) as holder:
        with shared(tmp_path), shared(tmp_path):
            assert len(list(tmp_path.glob(".lock-*"))) == 3
        with (
            pytest.raises(StateError, match=rf"busy, wait \(held by process {holder.pid} on "),
            exclusive(tmp_path, busy="busy, wait"),
        ):
            pass
    assert len(list(tmp_path.iterdir())) == 1  # of the killed one
    with exclusive(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with exclusive(tmp_path):
            held.set()
            release.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    with pytest.raises(StateError), shared(tmp_path, patience=0.05):
        pass
    threading.Timer(0.1, release.set).start()
    with shared(tmp_path, patience=10):
        pass
    thread.join()


def count_on(path: Path) -> None:
    for _ in range(60):
        with exclusive(path, patience=60):
            count = int((path / "count").read_text())
            (path / "count").write_text(str(count + 1))


def test_processes_that_take_turns_lose_no_count(tmp_path: Path) -> None:
    """The file of the lock is removed at every release; nobody may hold one that is removed."""
    (tmp_path / "count").write_text("0")
    processes = [PROCESSES.Process(target=count_on, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "180"


def test_a_file_has_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with held_elsewhere("only_writer", path):
        with (
            pytest.raises(
                StateError,
                match=(
                    r"answers.jsonl: another process is writing to it;"
                    r" wait for that one, or pass another file \(held by process"
                ),
            ),
            only_writer(path),
        ):
            pass
        with only_writer(tmp_path / "other.jsonl"):
            pass
    with only_writer(path):
        pass
    assert list(tmp_path.iterdir()) == []


def no_locks(*_: Any, **__: Any) -> None:
    raise OSError(37, "No locks available")


@pytest.mark.parametrize("missing", ["fcntl", "file system"])
def test_without_locks_the_work_goes_on_and_the_log_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    missing: str,
) -> None:
    if missing == "fcntl":
        monkeypatch.setattr(locks, "has_fcntl", False)
    else:
        monkeypatch.setattr(filelock.FileLock, "acquire", no_locks)
    with exclusive(tmp_path), exclusive(tmp_path), shared(tmp_path):
        pass
    reasons = {"fcntl": "this Python has no fcntl", "file system": "No locks available"}
    assert f"{tmp_path}: is not locked against a second process" in caplog.text
    assert reasons[missing] in caplog.text


WITHOUT_FCNTL = """
import sys
sys.modules["fcntl"] = None
import importlib, pathlib
import emlens
for package in sorted(pathlib.Path(emlens.__file__).parent.glob("*/__init__.py")):
    importlib.import_module(f"emlens.{package.parent.name}")
from emlens.data.journal import append_journal, read_journal
from emlens.runs import LocalExecutor, UnitLog
from emlens.runs.locks import exclusive
path = pathlib.Path(sys.argv[1])
with exclusive(path):
    append_journal(path / "journal.jsonl", [{"a": 1}])
    assert read_journal(path / "journal.jsonl") == [(1, {"a": 1})]
    assert UnitLog(path / "units").run("a", {}, lambda: (3, [])) == 3
print(sorted(p.name for p in path.iterdir()))
"""


def test_every_package_is_imported_and_works_without_fcntl(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_FCNTL, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['journal.jsonl', 'units']\n"
    assert "is not locked against a second process (this Python has no fcntl)" in done.stderr


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENAMETOOLONG, errno.ENOLCK])
def test_where_no_lock_file_can_be_had_nothing_is_held_and_it_is_said(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: object, **options: object) -> None:
        raise OSError(code, "no lock file here")

    monkeypatch.setattr(locks.FileLock, "acquire", refuse)
    with exclusive(tmp_path), shared(tmp_path), only_writer(tmp_path / "journal"):
        pass
    assert "is not locked against a second process" in caplog.text


def test_a_full_disk_is_no_missing_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(locks.FileLock, "acquire", full)
    with pytest.raises(OSError, match="full"), exclusive(tmp_path):
        pass


class LockOfOneMachine(filelock.FileLock):
    """Counts on one machine alone, as on a file system that does not pass locks on."""

    def __init__(self, path: Path):
        super().__init__(path.with_name(f"{path.name}-of-{locks.machine()}"))


def begin(folder: Path, name: str, moment: float, entered: Path) -> None:
    """As a process of a machine of this name: hold a folder from a moment on, for a while."""
    locks.machine = lambda: name  # type: ignore[assignment]
    locks.identity = lambda: {"machine": name, "host": name, "pid": 1}  # type: ignore[assignment]
    locks.FileLock = LockOfOneMachine  # type: ignore[misc]
    locks._is_shared = lambda path: True  # type: ignore[assignment]
    locks.SETTLES, locks.LEASE = 0.5, 2.0
    time.sleep(max(0.0, moment - time.monotonic()))
    with contextlib.suppress(StateError), exclusive(folder):
        began = time.monotonic()
        time.sleep(0.3)
        entered.write_text(f"{began} {time.monotonic()}")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_of_two_machines_that_begin_at_one_moment_one_goes_on(tmp_path: Path) -> None:
    tries, processes = 8, []
    for i in range(tries):
        moment = time.monotonic() + 0.1
        for number, name in enumerate(("alpha", "beta")):
            work = (tmp_path / f"{i}", name, moment + number * i / 500, tmp_path / f"{i}-{name}")
            processes.append(PROCESSES.Process(target=begin, args=work))
            processes[-1].start()
    for process in processes:
        process.join()
    for i in range(tries):
        held = sorted([*map(float, path.read_text().split())] for path in tmp_path.glob(f"{i}-*"))
        # on a busy machine the second may come after the first has ended
        assert len(held) == 1 or (len(held) == 2 and held[0][1] <= held[1][0])


def test_a_folder_on_a_network_is_told_from_one_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = (
        "21 1 8:1 / / rw - ext4 /dev/a rw\n"
        f"22 21 0:40 / {str(tmp_path).replace('_', chr(92) + '137')} rw - nfs4 host:/x rw\n"
        f"23 22 0:41 / {tmp_path}/here rw - tmpfs tmpfs rw\n"
    )
    monkeypatch.setattr(Path, "read_text", lambda self, *_: mounts)
    assert locks._is_shared(tmp_path / "store")
    assert not locks._is_shared(tmp_path / "here" / "store")
    assert not locks._is_shared(Path("/elsewhere"))


def test_what_cannot_be_written_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(locks.FileLock, "acquire", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    said = pytest.raises(OSError, match=r"Read-only file system: '.*journal'")
    with said, only_writer(tmp_path / "journal"):
        pass
