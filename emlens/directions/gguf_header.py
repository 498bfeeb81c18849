"""The counts of a GGUF file, checked before its own library believes them.

That library makes an object for every number of an array and every tensor that a file says it has.
A control vector has a few keys and one vector a layer, so everything far beyond is refused from the
bytes alone.
"""

import struct
from pathlib import Path
from typing import BinaryIO, Final

from emlens.data.foreign import MOST_LAYERS
from emlens.foundation.errors import LoadError

_MOST_BYTES: Final = 256 * 2**20
_MOST_KEYS: Final = 1_000
_MOST_TENSORS: Final = 8 * MOST_LAYERS
_MOST_IN_ARRAYS: Final = 50_000
_LONGEST_TEXT: Final = 2**20
_SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a number by its type."""
_TEXT: Final = 8
_ARRAY: Final = 9


def check_gguf(path: Path) -> None:
    """Refuse a file whose counts no control vector has; what is no GGUF is left to its reader.

    Raises:
        LoadError: more keys, tensors or numbers than a control vector has, or more than the file.
    """
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise LoadError(f"{path}: has {size} bytes; no control vector has")
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            return
        _Header(path, file, size).check()


class _Header:
    """Reads a header from its beginning; numbers only."""

    def __init__(self, path: Path, file: BinaryIO, size: int):
        self._path, self._file, self._size = path, file, size
        version = file.read(4)
        # the version is a small number in the file's own byte order
        self._order = ">" if version[:2] == b"\0\0" else "<"
        self._in_arrays = 0

    def check(self) -> None:
        tensors, keys = self._count("Q"), self._count("Q")
        self._at_most(tensors, _MOST_TENSORS, "tensors")
        self._at_most(keys, _MOST_KEYS, "keys")
        for _ in range(keys):
            self._skip_text()
            self._skip_value(self._count("I"))

    def _count(self, kind: str) -> int:
        content = self._file.read(struct.calcsize(f"<{kind}"))
        try:
            return int(struct.unpack(self._order + kind, content)[0])
        except struct.error:
            raise LoadError(
                f"{self._path}: not a readable GGUF file (its header ends too early)"
            ) from None

    def _at_most(self, count: int, most: int, what: str) -> None:
        if count > most:
            raise LoadError(f"{self._path}: says it has {count} {what}; no control vector has")

    def _skip(self, count: int) -> None:
        place = self._file.seek(count, 1)
        if place > self._size:
            raise LoadError(f"{self._path}: not a readable GGUF file (its header ends too early)")

    def _skip_text(self) -> None:
        length = self._count("Q")
        self._at_most(length, _LONGEST_TEXT, "characters in a text")
        self._skip(length)

    def _skip_value(self, kind: int) -> None:
        if kind == _TEXT:
            self._skip_text()
        elif kind == _ARRAY:
            of, count = self._count("I"), self._count("Q")
            self._in_arrays += min(count, _MOST_IN_ARRAYS + 1)
            self._at_most(max(count, self._in_arrays), _MOST_IN_ARRAYS, "numbers in lists")
            for _ in range(count):
                if of == _ARRAY:
                    raise LoadError(f"{self._path}: has lists in lists; no control vector has")
                self._skip_value(of)
        elif kind in _SIZES:
            self._skip(_SIZES[kind])
        else:
            raise LoadError(f"{self._path}: not a readable GGUF file (a value of kind {kind})")
