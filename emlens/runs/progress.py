"""A progress bar on stderr with the time left; lines about finished work where nobody watches.

The time left is what remains divided by the mean rate since this bar began. What was done before
(`done` and `found`, work found finished on disk) moves the bar but says nothing about the rate;
before the
first step no time is shown, and while a step takes long the estimate grows.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from emlens.foundation.files import one_line

_open = 0
_QUIET_SECONDS: Final = 10.0
"""Without a terminal, work that is shorter than this says nothing."""


def seconds_left(total: float, completed: float, done: float, elapsed: float) -> float | None:
    """Seconds for what remains, at the mean rate since the start; None before anything was done."""
    done_since = completed - done
    if done_since <= 0:
        return None
    return max(0.0, (total - completed) * elapsed / done_since)


class _Log:
    """Lines in place of a bar: one a part that has a name, else one a tenth of the work."""

    def __init__(self, title: str, total: float, done: float):
        self._title, self._total, self._done = title, total, done
        self._completed = done
        self._has_spoken = False
        self._parts_have_names = False
        self._tenths_said = self._tenths()
        self._began = self._said = time.monotonic()

    def step(self, amount: float, made: int) -> None:
        """Say how far the work is, at most once a tenth and once a while."""
        self._completed += amount
        now = time.monotonic()
        is_due = now - self._said >= _QUIET_SECONDS
        if self._has_spoken and self._tenths() == 10:
            is_due = True  # who read that work began reads that it ended
        is_new = self._tenths() > self._tenths_said and is_due
        if self._parts_have_names or not is_new:
            return
        self._tenths_said, self._said = self._tenths(), now
        elapsed = now - self._began
        left = seconds_left(self._total, self._completed, self._done, elapsed) or 0.0
        self._has_spoken = True
        percent = _floor(100 * self._completed / self._total)
        self._say(f"{percent}% after {_clock(elapsed)}, {_clock(left)} left")

    def found(self, amount: float) -> None:
        """Count work that was finished before."""
        self._done += amount
        self._completed += amount
        self._tenths_said = self._tenths()

    def begun(self, name: str) -> None:
        self._parts_have_names = True

    def ended(self, name: str, seconds: float) -> None:
        self._say(f"{name}, {_clock(seconds)}")

    def _tenths(self) -> int:
        return _floor(10 * self._completed / self._total) if self._total else 0

    def _say(self, line: str) -> None:
        sys.stderr.write(f"{one_line(f'{self._title}: {line}')}\n")
        sys.stderr.flush()


class Advance:
    """Advances a bar, and names the part of the work that is running.

    Args:
        step: advances the bar by an amount, of which so many units were made.
        begun: shows the name of the part that began. ended: says that it ended.
        found: counts an amount that was finished before.
        room: the amount that remains; more than that is never counted.
    """

    def __init__(
        self,
        step: Callable[[float, int], None] | None = None,
        begun: Callable[[str], None] | None = None,
        ended: Callable[[str, float], None] | None = None,
        found: Callable[[float], None] | None = None,
        room: float = 0.0,
    ):
        self._step, self._begun, self._ended = step, begun, ended
        self._found, self._room = found, room

    def __call__(self, amount: float = 1.0, made: int = 0) -> None:
        if self._step is not None:
            self._step(self._within(amount), made)

    def found(self, amount: float) -> None:
        """Move the bar by work that was finished before, which says nothing about the rate."""
        if self._found is not None:
            self._found(self._within(amount))

    def _within(self, amount: float) -> float:
        """The amount, or what remains: what is done twice is not counted twice."""
        amount = min(amount, self._room)
        self._room -= amount
        return amount

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """The work inside the block is this part."""
        if self._begun is not None:
            self._begun(name)
        began = time.monotonic()
        yield
        if self._ended is not None:
            self._ended(name, time.monotonic() - began)


@contextmanager
def progress_bar(
    title: str, total: float, show: bool = True, done: float = 0.0, unit: str = ""
) -> Iterator[Advance]:
    """Yield what advances the bar, by one or by the amount it is given.

    With `unit`, such as `"tokens"`, it takes as second argument how many of these the step made,
    and the bar shows their mean number a second.

    Its `part(name)` names the part that is running. Nothing is drawn when `show` is False, inside
    another bar, or when stderr is not a terminal: then there is one line a finished part, or a
    tenth of the work where its parts have no names and it is long. `done` is the part of `total`
    that was finished before.

    Args:
        title: what is being done.
    """
    if not show or _open:
        yield Advance()
        return
    if not sys.stderr.isatty():
        log = _Log(title, total, done)
        with _opened():
            yield Advance(log.step, log.begun, log.ended, log.found, total - done)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        Task,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.text import Text

    found_in_all = 0.0

    class TimeLeftColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            before = done + found_in_all
            seconds = seconds_left(task.total or 0.0, task.completed, before, task.elapsed or 0.0)
            clock = "--:--" if seconds is None else _clock(seconds)
            return Text(f"{clock} left", style="progress.remaining")

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            made, seconds = task.fields["made"], task.elapsed or 0.0
            if not made or not seconds:
                return Text("")
            return Text(f"{made / seconds:.0f} {unit}/s")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeLeftColumn(),
        RateColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total, completed=done, made=0)  # type: ignore[arg-type]  # rich computes with floats
        made_in_all = 0

        def found(amount: float) -> None:
            nonlocal found_in_all
            found_in_all += amount
            bar.update(task, advance=amount)

        def step(amount: float, made: int) -> None:
            nonlocal made_in_all
            made_in_all += made
            bar.update(task, advance=amount, made=made_in_all)

        def named(name: str) -> None:
            bar.update(task, description=f"{title}: {name}")

        with _opened():
            yield Advance(step, named, found=found, room=total - done)


@contextmanager
def _opened() -> Iterator[None]:
    """Bars that are opened inside the block say nothing."""
    global _open
    _open += 1
    try:
        yield
    finally:
        _open -= 1


def _floor(number: float) -> int:
    """The whole number below; sums of shares may lack the last digit."""
    return int(number + 1e-6)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{seconds:02d}"
    return f"{minutes:02d}:{seconds:02d}"
