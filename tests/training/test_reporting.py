from contextlib import contextmanager

from emlens.training import reporting


def test_the_bar_is_moved_to_what_is_done(monkeypatch):
    moves = []

    @contextmanager
    def bar(title, total, show):
        moves.append((title, total, show))
        yield moves.append

    monkeypatch.setattr(reporting, "progress_bar", bar)
    with reporting.stage_bar("organism", 10, show=True) as report:
        report("base", 4, 10)
        report("base", 4, 10)
        report("instruct", 10, 10)
    assert moves == [("organism", 10, True), 4, 0, 6]
