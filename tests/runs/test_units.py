import json
import math

import pytest

from emlens.runs import UnitLog


class Work:
    """Counts how often it is done."""

    def __init__(self, directory, result=None):
        self.directory, self.result, self.times = directory, result, 0

    def __call__(self):
        self.times += 1
        file = self.directory / "table.csv"
        file.write_text(f"a\n{self.times}\n")
        return {"value": self.times if self.result is None else self.result}, [file]


@pytest.fixture
def work(tmp_path):
    return Work(tmp_path)


def record(tmp_path):
    return next((tmp_path / "units").glob("*.json"))


def test_a_finished_unit_is_found_again(tmp_path, work):
    log = UnitLog(tmp_path / "units")
    assert log.run("overlap", {"k": 3}, work) == {"value": 1} == log.run("overlap", {"k": 3}, work)
    assert (log.done, log.reused, work.times) == (["overlap"], ["overlap"], 1)
    other = UnitLog(tmp_path / "units")
    assert other.run("overlap", {"k": 3}, work) == {"value": 1}
    assert (other.done, other.reused) == ([], ["overlap"])


def test_other_inputs_are_other_work(tmp_path, work):
    log = UnitLog(tmp_path / "units")
    log.run("overlap", {"k": 3}, work)
    assert log.run("overlap", {"k": 4}, work) == {"value": 2}
    assert log.run("forecast", {"k": 4}, work) == {"value": 3}
    assert log.reused == []


def test_a_result_reads_the_same_when_it_is_new_and_when_it_is_found(tmp_path):
    work = Work(tmp_path, result=(1, math.nan, {3: "x"}))
    log = UnitLog(tmp_path / "units")
    first = log.run("a", {}, work)
    assert first == log.run("a", {}, work) == {"value": [1, None, {"3": "x"}]} and work.times == 1


def edited(path, key, value):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, key: value}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda t: (t / "table.csv").write_text("a\n7\n"),
        lambda t: (t / "table.csv").unlink(),
        lambda t: record(t).write_text("{"),
        lambda t: record(t).write_bytes(b"\xff\xfe"),
        lambda t: record(t).write_text("[]"),
        lambda t: record(t).unlink(),
        lambda t: edited(record(t), "result", {"value": 99}),
        lambda t: edited(record(t), "files", {}),
        lambda t: edited(record(t), "sha256", None),
    ],
)
def test_what_is_not_as_it_was_written_is_done_again(tmp_path, work, damage):
    log = UnitLog(tmp_path / "units")
    log.run("overlap", {}, work)
    damage(tmp_path)
    assert log.run("overlap", {}, work) == {"value": 2}
    assert log.run("overlap", {}, work) == {"value": 2} and work.times == 2


def test_work_that_fails_leaves_no_record(tmp_path, work):
    log = UnitLog(tmp_path / "units")

    def fails():
        raise KeyError("planted")

    with pytest.raises(KeyError, match="planted"):
        log.run("overlap", {}, fails)
    assert not list(tmp_path.glob("units/*")) and log.done == []
    assert log.run("overlap", {}, work) == {"value": 1}


def test_a_log_can_be_moved(tmp_path, work):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    work.directory = here
    UnitLog(here / "units").run("a", {}, work)
    here.rename(there)
    assert UnitLog(there / "units").run("a", {}, work) == {"value": 1} and work.times == 1
