from contextlib import contextmanager

from emlens.runs.progress import Advance
from emlens.training import reporting


def test_the_bar_is_moved_to_what_is_done(monkeypatch):
    moves, found = [], []

    @contextmanager
    def bar(title, total, show):
        moves.append((title, total, show))
        yield Advance(lambda amount, made: moves.append(amount), found=found.append, room=total)

    monkeypatch.setattr(reporting, "progress_bar", bar)
    with reporting.stage_bar("organism", 10, show=True) as report:
        report("base", 3, 10, found=True)
        report("base", 4, 10)
        report("base", 4, 10)
        report("instruct", 10, 10)
    assert moves == [("organism", 10, True), 1, 0, 6]
    assert found == [3]  # where a snapshot was
