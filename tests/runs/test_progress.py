import sys

import pytest

from emlens.runs import progress
from emlens.runs.progress import progress_bar


def test_short_work_is_silent_without_a_terminal(capfd):
    with progress_bar("work", 3) as advance:
        advance()
        advance(2.0)
    assert capfd.readouterr() == ("", "")


def test_without_a_terminal_a_finished_part_is_a_line(capsys):
    with progress_bar("study overview", 3) as bar:
        with bar.part("profile"):
            bar()
            with progress_bar("inside", 2) as inner, inner.part("never said"):
                pass
        with pytest.raises(KeyError), bar.part("delta_overlap"):
            raise KeyError
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["study overview: profile, 00:00"]
    with progress_bar("quiet", 1, show=False) as bar, bar.part("profile"):
        pass
    assert capsys.readouterr().err == ""


def test_without_a_terminal_long_work_says_each_tenth(capsys, monkeypatch):
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with progress_bar("capture", 40, done=20) as advance:  # 20 of 40 were found done
        for _ in range(20):
            advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "capture: 60% after 00:20, 01:20 left"  # 4 of 20 steps in 20 s
    assert lines[-1] == "capture: 100% after 01:40, 00:00 left"
    assert len(lines) == 5


def test_on_a_terminal_the_running_part_is_named(capsys, monkeypatch):
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("study overview", 2) as bar, bar.part("profile"):
        bar()
    assert "study overview: profile" in capsys.readouterr().err


def test_drawn_on_a_terminal_unless_turned_off_or_inside_another(capsys, monkeypatch):
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("work", 3, show=False) as advance:
        advance()
    assert capsys.readouterr().err == ""
    with progress_bar("outer work", 3) as advance:
        advance()
        with progress_bar("inner work", 3) as deeper:
            deeper()
            advance(0.5)
    drawn = capsys.readouterr()
    assert "outer work" in drawn.err and "inner work" not in drawn.err and drawn.out == ""
    assert progress._open == 0


def test_a_failure_closes_the_bar(capsys, monkeypatch):
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True, raising=False)
    try:
        with progress_bar("work", 3):
            raise KeyError
    except KeyError:
        pass
    assert progress._open == 0


def test_the_time_left_comes_from_what_was_done_since_the_start():
    # found finished: says nothing of the rate
    assert progress.seconds_left(total=100, completed=40, done=40, elapsed=5) is None
    # 2 a second, 50 to go
    assert progress.seconds_left(total=100, completed=50, done=40, elapsed=5) == 25
    # a slow step: the estimate grows
    assert progress.seconds_left(total=100, completed=50, done=40, elapsed=10) == 50
    assert progress.seconds_left(total=100, completed=120, done=40, elapsed=10) == 0


def test_the_bar_shows_it(capsys, monkeypatch):
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True, raising=False)
    monkeypatch.setattr(
        progress,
        "seconds_left",
        lambda total, completed, done, elapsed: None if completed == done else 3700.0 + done,
    )
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with progress_bar("work", 3, done=1.0) as advance:
        advance()
    drawn = capsys.readouterr().err
    assert "--:-- left" in drawn and "1:01:41 left" in drawn and "33%" in drawn and "67%" in drawn
    assert progress._clock(61.4) == "01:01"


def test_work_found_finished_moves_the_bar_and_says_nothing_of_the_rate(capsys, monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with progress_bar("training", 10) as advance:
        advance.found(8)
        advance()
    assert capsys.readouterr().err == "training: 90% after 00:10, 00:10 left\n"


def test_what_is_done_twice_is_never_more_than_all(capsys, monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with progress_bar("capture", 4) as advance:
        for _ in range(7):  # a batch was cut after another model had run it
            advance()
    assert capsys.readouterr().err.splitlines()[-1] == "capture: 100% after 00:40, 00:00 left"


def test_only_finished_work_is_all_of_it_and_its_end_is_said(capsys, monkeypatch):
    clock = iter([0.0, 20.0, 21.0, 22.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress_bar("judge", 1000) as advance:
        advance(899)
        advance(100)
        advance()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" after")[0] for line in lines] == ["judge: 89%", "judge: 100%"]
