"""Gives memory that this process no longer uses back to the system.

glibc keeps freed pieces below 32 MB in its heap. Generation frees thousands of pieces of many sizes
(logits, caches that grow by a token), so the heap of a study with many edited models grew to three
times what was in use. One call costs milliseconds, and nothing where nothing is free.
"""

import ctypes
from functools import cache
from typing import Any


def return_free_memory() -> None:
    """Give free pages of the heap back; nothing where the C library has no such call."""
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Any:
    """`malloc_trim` of glibc; None on other systems."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
