import sys

from emlens.runs import progress, progress_bar


def test_silent_where_nobody_watches(capfd):
    with progress_bar("work", 3) as advance:
        advance()
        advance(2.0)
    assert capfd.readouterr() == ("", "")


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
