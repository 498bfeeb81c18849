"""A child that was forked in the middle of another thread's pass hears so, and does not hang."""

import os
import threading

import pytest

from emlens.foundation.errors import StateError
from emlens.models.turn_lock import TurnLock


def exit_of_child(lock: TurnLock) -> int:
    """1 where a forked child was refused, 0 where it had its turn; 9 where it hung."""
    child = os.fork()
    if child == 0:
        try:
            threading.Timer(5, os._exit, [9]).start()
            with lock, lock:  # reentrant
                pass
            os._exit(0)
        except StateError as error:
            os._exit(1 if "forked while another thread was using the model" in str(error) else 2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_during_another_thread_s_turn_is_refused() -> None:
    lock = TurnLock()
    assert exit_of_child(lock) == 0
    has_turn, ends = threading.Event(), threading.Event()

    def take_turn() -> None:
        with lock:
            has_turn.set()
            ends.wait(20)

    thread = threading.Thread(target=take_turn)
    thread.start()
    assert has_turn.wait(10)
    assert exit_of_child(lock) == 1
    ends.set()
    thread.join()
    with lock:  # the parent goes on, and its own fork inside its turn may too
        assert exit_of_child(lock) == 0
