"""A progress bar over several training stages, on stderr, with the time left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from emlens.runs.progress import progress_bar


@contextmanager
def stage_bar(title: str, total: int, show: bool = True) -> Iterator[Callable[..., None]]:
    """Yield `(stage, done, total)`, which moves the bar to `done`; silent where `show` is False or
    nobody watches. With `found`, what lies before `done` was
    finished earlier.
    """
    reached = 0
    with progress_bar(title, total, show) as advance:

        def report(stage: str, done: int, of: int, found: bool = False) -> None:
            nonlocal reached
            if found:
                advance.found(done - reached)
            else:
                advance(done - reached)
            reached = done

        yield report
