import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from read_back import faults

from emlens.runs import unit_claims as module
from emlens.runs.outcomes import Outcome
from emlens.runs.unit_claims import Claim, Claims, birth

TAKE = """
import sys, pathlib
from emlens.runs.unit_claims import Claims
with Claims(pathlib.Path(sys.argv[1]), "theirs", 5.0).take("a", 3):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def claims(tmp_path):
    return Claims(tmp_path, "mine", lease=0.4)


def content(path):
    return json.loads(path.read_text())


def test_one_of_many_gets_it(tmp_path):
    got, ready = [], threading.Barrier(8)

    def grab():
        mine = Claims(tmp_path, "mine")
        ready.wait()
        got.append([mine.take(f"u{i}", 3) for i in range(20)])

    threads = [threading.Thread(target=grab) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for results in zip(*got, strict=True):
        assert sum(isinstance(result, Claim) for result in results) == 1
        assert sum(result is Outcome.HELD for result in results) == 7


def test_a_claim_says_who_holds_it_and_goes_with_the_work(tmp_path, claims):
    with claims.take("a/b", 3):
        (path,) = tmp_path.glob("*.1.claim")
        found = content(path)
        assert (found["unit"], found["attempt"], found["run"], found["pid"]) == (
            "a/b",
            1,
            "mine",
            os.getpid(),
        )
        assert found["host"] and found["since"] and claims.was_tried("a/b", claims.tried())
        assert Claims(tmp_path, "theirs").take("a/b", 3) is Outcome.HELD
    assert not list(tmp_path.iterdir()) and not claims.was_tried("a/b", claims.tried())


def test_the_heart_beats_while_work_lasts(tmp_path, claims):
    with claims.take("a", 3):
        (path,) = tmp_path.glob("*.claim")
        first = path.stat().st_mtime_ns
        time.sleep(0.3)
        assert path.stat().st_mtime_ns > first
    assert not [thread for thread in threading.enumerate() if thread.name == "emlens-heartbeat"]


def test_a_heart_that_cannot_beat_says_so(tmp_path, claims, caplog):
    with claims.take("a", 3):
        next(tmp_path.glob("*.claim")).unlink()
        time.sleep(0.2)
    assert "the heartbeat of a.1.claim failed" in caplog.text


def test_a_failure_is_kept_with_its_reason_and_bounds_the_tries(tmp_path, claims):
    for number in (1, 2):
        with claims.take("a", 2) as claim:
            try:
                raise ValueError(f"planted\x1b {number}")
            except ValueError as error:
                claim.fail(error)
        assert claims.ended_in_this_run("a") == number
    assert claims.take("a", 2) is Outcome.GIVEN_UP
    failure = claims.last_failure("a")
    assert (failure.attempt, failure.reason) == (
        2,
        "ValueError: planted 2",
    ) and f"process {os.getpid()} on " in failure.owner
    assert "test_unit_claims.py" in content(failure.record)["traceback"] and content(
        tmp_path / "a.1.failed.json"
    )["reason"].endswith("1")
    assert claims.last_failure("b") is None


def test_another_run_may_try_again(tmp_path, claims):
    with claims.take("a", 1) as claim:
        claim.fail(ValueError("x"))
    assert claims.take("a", 1) is Outcome.GIVEN_UP
    later = Claims(tmp_path, "later")
    with later.take("a", 1) as claim:
        assert claims.take("a", 5) is Outcome.HELD
        claim.fail(ValueError("y"))
    assert (
        later.take("a", 1) is Outcome.GIVEN_UP
        and later.ended_in_this_run("a") == claims.ended_in_this_run("a") == 1
    )


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_gives_the_claim_back(tmp_path, claims, stop):
    with pytest.raises(stop), claims.take("a", 3):
        raise stop
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_process_is_taken_over_at_once(tmp_path, reaped):
    claims = Claims(tmp_path, "mine", lease=3600)
    holder = subprocess.Popen(
        [sys.executable, "-c", TAKE, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        assert claims.take("a", 3) is Outcome.HELD  # alive: it stays theirs
        holder.send_signal(signal.SIGKILL)
        if reaped:
            holder.wait()
        else:
            # dead, but nobody asked for its status yet
            os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
        with claims.take("a", 3):
            assert sorted(path.name for path in tmp_path.iterdir()) == [
                "a.1.claim",
                "a.1.failed.json",
                "a.2.claim",
            ]
    failure = claims.last_failure("a")
    assert (
        failure.reason
        == "the worker died (its process is gone: it was killed, or ran out of memory)"
    )
    assert (
        failure.owner.startswith(f"process {holder.pid} on ") and claims.ended_in_this_run("a") == 0
    )


def planted(tmp_path, **owner):
    path = tmp_path / "a.1.claim"
    claim = {"unit": "a", "attempt": 1, "run": "theirs", "host": "h", **owner}
    path.write_text(json.dumps(module.with_checksum(claim)))
    return path


def test_a_damaged_claim_is_held_and_nobodys(tmp_path, claims):
    """Thirteen damages; none makes a living holder a dead one."""
    with claims.take("a", 3):
        (path,) = tmp_path.glob("*.claim")

        def owner():
            assert Claims(tmp_path, "other").take("a", 3) is Outcome.HELD
            return module._owner(path) or None

        assert faults(path, owner) == {}


def test_a_reused_process_id_is_not_the_owner(tmp_path, claims):
    planted(tmp_path, machine=module.machine(), pid=os.getpid(), born="1")
    assert isinstance(claims.take("a", 3), Claim)


def test_where_births_are_not_told_a_missing_process_is_dead(tmp_path, monkeypatch):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    long = Claims(tmp_path, "mine", lease=3600)
    planted(tmp_path, machine=module.machine(), pid=os.getpid(), born=None)
    assert long.take("a", 3) is Outcome.HELD
    planted(tmp_path, machine=module.machine(), pid=child.pid, born=None)
    monkeypatch.setattr(os, "name", "other")
    assert long.take("a", 3) is Outcome.HELD
    monkeypatch.undo()

    def refused(pid, signal):
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", refused)
        assert long.take("a", 3) is Outcome.HELD  # a process of another user: it runs
    assert isinstance(long.take("a", 3), Claim)


def waits_for_the_lease(claims, path):
    started = time.monotonic()
    while not isinstance(claims.take("a", 3), Claim):
        assert time.monotonic() - started < 10
        time.sleep(0.02)
    return time.monotonic() - started


@pytest.mark.parametrize(
    "text", ['{"machine": "elsewhere", "pid": 1, "host": "far", "run": "x"}', "", "{", "[]"]
)
def test_another_machine_or_an_unknown_owner_is_taken_over_after_a_lease_of_silence(
    tmp_path, claims, text
):
    path = tmp_path / "a.1.claim"
    path.write_text(text)
    os.utime(path, (1, 1))  # its clock is decades behind: clocks are not compared
    assert waits_for_the_lease(claims, path) >= claims.lease
    assert claims.last_failure("a").reason == "the worker died (no heartbeat for 0.4 s)"


def test_another_machine_that_beats_keeps_its_claim(tmp_path, claims):
    path = planted(tmp_path, machine="elsewhere", pid=1)
    for beat in range(12):
        os.utime(path, (beat, beat))
        assert claims.take("a", 3) is Outcome.HELD
        time.sleep(0.1)
    # positive control: once it stops, it is taken over
    assert waits_for_the_lease(claims, path) > 0.1


def test_one_of_many_takes_over(tmp_path):
    planted(tmp_path, machine=module.machine(), pid=os.getpid(), born="1")
    got, ready = [], threading.Barrier(6)

    def grab():
        ready.wait()
        got.append(Claims(tmp_path, "mine").take("a", 3))

    threads = [threading.Thread(target=grab) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(result, Claim) for result in got) == 1


def test_one_that_was_taken_over_leaves_the_records_alone(tmp_path, claims):
    with claims.take("a", 3):
        path = tmp_path / "a.1.claim"
        path.write_text(json.dumps({**content(path), "machine": "elsewhere"}))
        finder = Claims(tmp_path, "theirs", lease=0.01)
        finder.take("a", 3)
        time.sleep(0.02)
        assert isinstance(finder.take("a", 3), Claim)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.1.claim",
        "a.1.failed.json",
        "a.2.claim",
    ]


def test_birth_tells_processes_apart():
    mine = birth(os.getpid())
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    ) as child:
        assert birth(os.getpid()) == mine and birth(child.pid) not in (None, mine)
    assert birth(child.pid) is None
