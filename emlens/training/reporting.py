"""A progress bar over several training stages, on stderr, with the time left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from emlens.runs.progress import progress_bar


@contextmanager
def stage_bar(
    title: str, total: int, show: bool = True
) -> Iterator[Callable[[str, int, int], None]]:
    """Yield `(stage, done, total)`, which moves the bar to `done`; silent where `show` is False or
    nobody watches.
    """
    reached = 0
    with progress_bar(title, total, show) as advance:

        def report(stage: str, done: int, of: int) -> None:
            nonlocal reached
            advance(done - reached)
            reached = done

        yield report
