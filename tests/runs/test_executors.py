import os
import random
import signal
import time

import pytest
from runs.counting_work import (
    LEASE,
    Opening,
    local_main,
    plant,
    rank_main,
    squares,
    start,
    trace,
    until,
)

from emlens.foundation import InputError, IntegrityError
from emlens.runs import LocalExecutor, RankExecutor
from emlens.runs.progress import progress_bar


@pytest.fixture
def work(tmp_path):
    return tmp_path / "work"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def begun(out):
    return (out / "trace").is_file() and bool(trace(out, "begin"))


def test_four_ranks_share_the_work(work, out):
    out.mkdir()
    (out / "meet").touch()
    ranks = [
        start(rank_main, work, Opening(out, units=12, seconds=0.1), rank, 4) for rank in range(4)
    ]
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0] * 4
    done = trace(out, "end")
    assert sorted(unit for unit, _ in done) == sorted(f"unit/{i}" for i in range(12)) and squares(
        out, 12
    )
    # one load a process, more than one at work
    assert len({pid for _, pid in done}) >= 2 and len(trace(out, "open")) == 4
    assert len(trace(out, "finish")) == 1


def test_a_rank_killed_in_the_middle_of_a_unit(work, out):
    plant(out, "kill", 4)
    ranks = [start(rank_main, work, Opening(out, seconds=0.1), rank, 2) for rank in range(2)]
    for rank in ranks:
        rank.join(60)
    assert sorted(rank.exitcode for rank in ranks) == [-signal.SIGKILL, 0]
    assert squares(out) and sorted(unit for unit, _ in trace(out, "end")) == [
        f"unit/{i}" for i in range(6)
    ]
    assert len([unit for unit, _ in trace(out, "begin") if unit == "unit/4"]) == 2
    (record,) = (work / "claims").glob("*.failed.json")
    assert "it was killed" in record.read_text()


@pytest.mark.parametrize("seed", range(3))
def test_sigkill_at_random_moments_loses_and_doubles_nothing(work, out, seed):
    pick = random.Random(seed)
    for _ in range(3):
        process = start(local_main, work, Opening(out, seconds=0.03))
        time.sleep(pick.uniform(0.02, 0.3))
        process.kill()
        process.join()
    report = LocalExecutor(lease=LEASE).run(Opening(out), work)
    ended = [unit for unit, _ in trace(out, "end")]
    assert (
        squares(out)
        and list(report.answers) == [f"unit/{i}" for i in range(6)]
        and set(report.done) <= set(ended[-6:])
    )
    # a unit is repeated only where a kill fell between its work and its answer
    assert len(ended) <= 6 + 3
    assert not LocalExecutor(lease=LEASE).run(Opening(out), work).done


def test_an_interrupt_gives_back_and_the_next_run_goes_on(work, out):
    process = start(local_main, work, Opening(out, seconds=1.0))
    until(lambda: begun(out) and len(trace(out, "begin")) == 2)
    os.kill(process.pid, signal.SIGINT)
    process.join(30)
    assert process.exitcode == 130 and not list((work / "claims").iterdir())
    before = {unit for unit, _ in trace(out, "end")}
    assert 0 < len(before) < 6
    report = LocalExecutor().run(Opening(out), work)
    assert set(report.done) == {f"unit/{i}" for i in range(6)} - before and squares(out)


def test_a_directory_of_other_work_is_refused(work, out):
    LocalExecutor().run(Opening(out), work)
    with pytest.raises(IntegrityError, match="plans other work"):
        LocalExecutor().run(Opening(out, units=7), work)
    assert squares(out)


def test_ranks_by_hand_and_from_the_environment(monkeypatch, work, out):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="no rank in the environment"):
        RankExecutor()
    with pytest.raises(
        InputError,
        match="rank=1 and count=None: pass both, or neither to read them from torchrun or Slurm",
    ):
        RankExecutor(1)
    with pytest.raises(InputError, match="rank=2 must lie between 0 and count - 1 = 1"):
        RankExecutor(2, 2)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    executor = RankExecutor()
    assert (executor.rank.index, executor.rank.count, executor.local_rank) == (1, 2, 1)
    report = executor.run(Opening(out), work)  # the other rank never starts; nothing is left undone
    assert report.done[0] == "unit/3" and squares(out)


def test_only_rank_zero_shows_a_bar(work, out, monkeypatch):
    import emlens.runs.executors as module

    shown = []

    def bar(title, total, show, done):
        shown.append((title, total, show, done))
        return progress_bar(title, total, False)

    monkeypatch.setattr(module, "progress_bar", bar)
    RankExecutor(0, 2, run="x").run(Opening(out), work, title="squares")
    RankExecutor(1, 2, run="x").run(Opening(out), work)
    LocalExecutor().run(Opening(out), work, progress=False)
    assert shown == [
        ("squares", 21.0, True, 0.0),
        ("units", 21.0, False, 21.0),
        ("units", 21.0, False, 21.0),
    ]
