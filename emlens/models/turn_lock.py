"""A lock of turns that knows when it was forked away.

Threads take turns with one model, and with what a process has once: the state that libraries change
while they load, and the random numbers of a training run. A process that is forked while another
thread has its turn inherits the lock, and nobody who could free it: whoever waits for it waits for
ever. Here the child hears so instead.
"""

import os
import threading
from types import TracebackType
from typing import Final
from weakref import WeakSet

from emlens.foundation.errors import StateError

_LOCKS: Final["WeakSet[TurnLock]"] = WeakSet()


class TurnLock:
    """A reentrant lock; in a child that was forked while another thread held it, it refuses.

    Args:
        doing: what a thread does that holds it, and what that leaves behind in a child.
        instead: what to do in the child.

    Raises:
        StateError: on entering, in such a child.
    """

    def __init__(
        self,
        doing: str = "using the model, whose state is then that of half a pass",
        instead: str = "load the model in the child, or start it with 'spawn'",
    ) -> None:
        self._refusal = f"this process was forked while another thread was {doing}; {instead}"
        self._lock = threading.RLock()
        self._is_orphaned = False
        _LOCKS.add(self)

    def __enter__(self) -> "TurnLock":
        if self._is_orphaned:
            raise StateError(self._refusal)
        self._lock.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()

    def after_fork(self) -> None:
        """In the child: whether a thread that does not exist here has the turn."""
        if self._lock.acquire(blocking=False):
            self._lock.release()
        else:
            self._is_orphaned = True


def _after_fork() -> None:
    for lock in list(_LOCKS):
        lock.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
