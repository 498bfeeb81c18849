"""Bounds on what is read: a file, a line, a document, an archive, a file of tensors.

A small file can be made that costs gigabytes or hours to read. Every file of somebody else is read
through this module, so that what it can cost is bounded *after* decoding. The bounds lie far above
what the field's files hold; what is beyond one is refused in a line that names the bound.
"""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from emlens.foundation.errors import InputError, LoadError
from emlens.foundation.files import one_line

MIB: Final = 2**20
MOST_TEXT: Final = 256 * MIB
"""Of a text that is read at once, such as JSON; CSV and JSONL are read line by line."""
MOST_LINE: Final = 16 * MIB
MOST_CONTAINERS: Final = 1_500_000
"""Objects and lists of a JSON file; an empty one takes 64 bytes of memory and 2 of the file."""
MOST_CONTAINERS_IN_A_LINE: Final = 200_000
MOST_TENSOR_HEADER: Final = 16 * MIB
MOST_TENSORS: Final = 100_000
MOST_ENTRIES: Final = 100_000
"""Files inside an archive."""
UNPACKED: Final = 64 * MIB
"""What an archive may always unpack to; beyond it, `RATIO` times its own size."""
RATIO: Final = 50
_PIECE: Final = MIB


def bounded_bytes(path: str | Path, most: int = MOST_TEXT) -> bytes:
    """The bytes of a text file, as far as they can be text.

    Raises:
        InputError: no such file, a directory, longer than `most`, or a byte 0 in it; the message
            names the file.
    """
    with opened(path) as file:
        size = file.seek(0, 2) if file.seekable() else 0
        if size > most:
            raise InputError(f"{path}: has {size} bytes; at most {most} are read at once")
        if size:
            file.seek(0)
        content = bytearray()
        while piece := file.read(_PIECE):
            _refuse_zero(path, piece, content)
            content += piece
            if len(content) > most:
                raise InputError(f"{path}: has more than {most} bytes, the most that is read")
    return bytes(content)


def bounded_lines(
    path: str | Path, most: int = MOST_LINE, *, unfinished: bool = False
) -> Iterator[tuple[int, bytes]]:
    """(1-based number, line with its end) of a text file; one line is in memory at a time.

    Args:
        unfinished: the last line may be torn, and hold the zeros that a power cut leaves.

    Raises:
        InputError: as `bounded_bytes`; the message names the line.
    """
    with opened(path) as file:
        number = 0
        while line := file.readline(most + 1):
            number += 1
            if len(line) > most:
                raise InputError(
                    f"{path}, line {number}: is longer than {most} bytes, the most that is read"
                )
            # a line of UTF-16 holds zeros; what it is, is said by whoever decodes it
            is_utf_16 = number == 1 and line[:2] in (b"\xff\xfe", b"\xfe\xff")
            is_torn = unfinished and not line.endswith(b"\n")
            if b"\0" in line and not is_utf_16 and not is_torn:
                raise InputError(f"{path}, line {number}: holds a byte 0, which no text has")
            yield number, line


def opened(path: str | Path) -> BinaryIO:
    """A file, opened to be read; what keeps it from that is an `InputError` that names it."""
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a directory; pass a file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # a path with a NUL in it
        raise InputError(f"{one_line(str(path))}: is not a path ({error})") from None


def _refuse_zero(path: str | Path, piece: bytes, before: bytearray) -> None:
    zero = piece.find(b"\0")
    start = bytes(before[:2]) or piece[:2]
    if zero < 0 or start in (b"\xff\xfe", b"\xfe\xff"):
        return
    line = before.count(b"\n") + piece[:zero].count(b"\n") + 1
    raise InputError(f"{path}, line {line}: holds a byte 0, which no text has")


def check_json_size(where: str, text: str, most: int = MOST_CONTAINERS) -> None:
    """Refuse JSON whose objects would take many times the memory of its text.

    Raises:
        InputError: more brackets than `most`.
    """
    count = text.count("{") + text.count("[")
    if count > most:
        raise InputError(
            f"{where}: holds {count} objects and lists; at most {most} are read at once"
        )


def check_archive(path: str | Path) -> None:
    """Refuse a zip file that unpacks to much more than itself; others are left to their reader.

    Raises:
        LoadError: the message names file and sizes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError):
        return
    size = Path(path).stat().st_size
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > max(UNPACKED, RATIO * size) or len(entries) > MOST_ENTRIES:
        raise LoadError(
            f"{path}: {len(entries)} entries that unpack to {unpacked} bytes, of a file of {size};"
            " no file of this kind does"
        )


def check_tensor_file(path: str | Path) -> None:
    """Refuse a safetensors file whose header would cost more than the tensors that it describes.

    Raises:
        LoadError: not readable, no safetensors, a header that is too long or names too many
            tensors.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            header = file.read(min(length, MOST_TENSOR_HEADER))
    except OSError as error:
        raise LoadError(f"{path}: cannot be read ({error.strerror})") from None
    if size < 10 or length > size - 8:
        raise LoadError(f"{path}: not a safetensors file: its header is not whole")
    if length > MOST_TENSOR_HEADER:
        raise LoadError(
            f"{path}: has a header of {length} bytes; at most {MOST_TENSOR_HEADER} are read"
        )
    # one object for each tensor; a shape is a list of numbers
    if header.count(b"{") > MOST_TENSORS or header.count(b",") > 12 * MOST_TENSORS:
        raise LoadError(f"{path}: names more than {MOST_TENSORS} tensors, the most that is read")


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {one_line(repeated, 60)!r} is given twice")
    return record


def parse_json(where: str, text: str) -> Any:
    """JSON of one of the library's own files, bounded.

    Raises:
        InputError: not JSON, nested too deeply, too many objects; `where` opens the message.
    """
    check_json_size(where, text)
    try:
        return json.loads(text, object_pairs_hook=_without_repeated_keys)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}, line {error.lineno}: not valid JSON: {error.msg}") from None
    except RecursionError:
        raise InputError(f"{where}: not valid JSON: nested too deeply") from None
    except ValueError as error:  # an integer of too many digits
        raise InputError(f"{where}: not valid JSON: {one_line(str(error))}") from None
