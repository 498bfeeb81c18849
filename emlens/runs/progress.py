"""A progress bar on stderr with the time left, silent where nobody watches."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_open = 0


@contextmanager
def progress_bar(title: str, total: float, show: bool = True) -> Iterator[Callable[..., None]]:
    """Yield a function that advances the bar, by one or by the amount it is given.

    Nothing is drawn when `show` is False, when stderr is not a terminal, or inside another bar. The time left is rich's
    estimate from the recent rate.
    """
    global _open
    if not show or _open or not sys.stderr.isatty():
        yield lambda amount=1.0: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        _open += 1
        try:
            yield lambda amount=1.0: bar.advance(task, amount)
        finally:
            _open -= 1
