"""A progress bar on stderr with the time left, silent where nobody watches.

The time left is what remains divided by the mean rate since this bar began. What was done before
(`done`, work found finished on disk) moves the bar but says nothing about the rate; before the
first step no time is shown, and while a step takes long the estimate grows.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_open = 0


def seconds_left(total: float, completed: float, done: float, elapsed: float) -> float | None:
    """Seconds for what remains, at the mean rate since the start; None before anything was done."""
    done_since = completed - done
    if done_since <= 0:
        return None
    return max(0.0, (total - completed) * elapsed / done_since)


@contextmanager
def progress_bar(
    title: str, total: float, show: bool = True, done: float = 0.0, unit: str = ""
) -> Iterator[Callable[..., None]]:
    """Yield a function that advances the bar, by one or by the amount it is given.

    With `unit`, such as `"tokens"`, it takes as second argument how many of these the step made,
    and the bar shows their mean number a second.

    Nothing is drawn when `show` is False, when stderr is not a terminal, or inside another bar.
    `done` is the part of `total` that was finished before.

    Args:
        title: what is being done.
    """
    global _open
    if not show or _open or not sys.stderr.isatty():
        yield lambda amount=1.0, made=0: None
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

    class TimeLeftColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            seconds = seconds_left(task.total or 0.0, task.completed, done, task.elapsed or 0.0)
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

        def advance(amount: float = 1.0, made: int = 0) -> None:
            nonlocal made_in_all
            made_in_all += made
            bar.update(task, advance=amount, made=made_in_all)

        _open += 1
        try:
            yield advance
        finally:
            _open -= 1


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{seconds:02d}"
    return f"{minutes:02d}:{seconds:02d}"
