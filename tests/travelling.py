"""An executor in place of Ray, for tests: it works on what arrives in another process."""

import pickle
from collections.abc import Callable
from typing import Any

from emlens.runs import Executor, LocalExecutor
from emlens.runs.executors import Report
from emlens.runs.worker import Worker


class Travels(Executor):
    """Pickles what opens a worker, as a message to an actor does, and works on the copy.

    Args:
        actors: as `RayExecutor`; one process does the work.
    """

    def __init__(self, actors: int = 1):
        super().__init__()
        self.actors = actors

    def run(self, open_worker: Callable[[], Worker], directory: Any, **rest: Any) -> Report:
        return LocalExecutor().run(pickle.loads(pickle.dumps(open_worker)), directory, **rest)
