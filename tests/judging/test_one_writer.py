"""Two processes, one file: what is paid for is paid once, and the second hears of the first."""

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from benchmarks import two_writers
from emlens.cli.main import app
from emlens.data import Answer, Answers, Message
from emlens.data.repairing import repaired
from emlens.foundation.errors import StateError
from emlens.foundation.files import canonical_json
from emlens.judging import judge_answers
from emlens.judging.answer_file import answer_file, blank_answers
from emlens.runs import locks
from emlens.runs.locks import only_writer
from emlens.runs.unit_claims import identity, machine


def test_two_judges_on_one_journal(tmp_path: Path) -> None:
    for seed in range(2):
        folder = tmp_path / str(seed)
        found = two_writers.attempt(two_writers.judges, two_writers.check_judged, folder, seed)
        assert found == {"refused": 1, "fault": ""}


def test_a_second_sampler_is_refused_by_the_name_of_the_first(tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    blank = blank_answers("m", two_writers.QUESTIONS, 1, 0, lambda *_: {})
    context = multiprocessing.get_context("fork")
    begins, ends = context.Event(), context.Event()

    def hold() -> None:
        with answer_file(out, blank):
            begins.set()
            ends.wait(20)

    holder = context.Process(target=hold)
    holder.start()
    assert begins.wait(20)
    name = rf"a.jsonl: another process .*held by process {holder.pid} on {os.uname().nodename}"
    with pytest.raises(StateError, match=rf"{name} since 20\d\d-"), answer_file(out, blank):
        pass
    holder.kill()  # who died holds nothing
    holder.join()
    with answer_file(out, blank) as file:
        assert len(file.missing) == len(two_writers.QUESTIONS)


@pytest.fixture
def lock_of_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(locks, "LEASE", 0.5)
    record = {**identity(), "host": "far", "machine": "far boot", "since": "2026-01-01"}
    path = tmp_path / ".a.jsonl.lock"
    path.write_text(canonical_json(record, None))
    return path


def test_another_machine_that_works_is_believed(
    tmp_path: Path, lock_of_another_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep = time.sleep

    def beats(seconds: float) -> None:
        sleep(seconds)
        os.utime(lock_of_another_machine)

    monkeypatch.setattr(locks.time, "sleep", beats)
    with (
        pytest.raises(StateError, match=r"held by process \d+ on far since 2026-01-01"),
        only_writer(tmp_path / "a.jsonl"),
    ):
        pass


def test_another_machine_that_is_silent_for_a_lease_is_dead(
    tmp_path: Path, lock_of_another_machine: Path
) -> None:
    started = time.monotonic()
    with only_writer(tmp_path / "a.jsonl"):
        assert json.loads(lock_of_another_machine.read_text())["machine"] == machine()
    assert time.monotonic() - started >= 0.5


def test_a_spoiled_file_is_repaired_and_says_what_it_drops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    answers = Answers(Answer("m", f"q{i}", "so", (Message("user", "Why?"),)) for i in range(3))
    answers.to_jsonl(path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1], lines[0], lines[2][:9] + lines[1], lines[2]]))
    kept, dropped = repaired(path)
    assert kept == lines
    assert [line.partition(": ")[2].split(" ")[0] for line in dropped] == ["repeats", "is"]
    spoiled = path.read_bytes()
    app(["repair", str(path), "--dry-run"], standalone_mode=False)
    assert path.read_bytes() == spoiled
    app(["repair", str(path)], standalone_mode=False)
    assert Answers.from_jsonl(path).ids == answers.ids
    assert (tmp_path / "a.jsonl.before-repair").read_bytes() == spoiled
    assert "2 lines dropped, 3 kept" in capsys.readouterr().out
    app(["repair", str(path)], standalone_mode=False)
    assert "nothing to repair in 3 lines" in capsys.readouterr().out


def test_a_journal_with_two_first_lines_is_repaired(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    judge = two_writers.CountingJudge(tmp_path / "asked.txt")
    judge_answers(two_writers.answers(3), judge, out=path, progress=False)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[0], *lines[2:]]) + "\n")
    kept, dropped = repaired(path)
    assert kept == lines and "the first line of a journal" in dropped[0]
