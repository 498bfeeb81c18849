"""What is freed in the middle of the heap goes back to the system."""

from pathlib import Path

import pytest

from emlens.foundation import free_memory
from emlens.foundation.free_memory import return_free_memory


def held() -> int:
    """Bytes of main memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_the_heap_shrinks_though_its_last_piece_stays() -> None:
    if free_memory._trim() is None:
        pytest.skip("the C library has no malloc_trim")
    return_free_memory()
    # below the size from which a piece is a mapping of its own
    pieces = [bytearray(100_000) for _ in range(600)]
    last = bytearray(100_000)
    full = held()
    del pieces
    return_free_memory()
    assert full - held() > 40_000_000 and len(last) == 100_000


def test_without_malloc_trim_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_memory, "_trim", lambda: None)
    return_free_memory()
