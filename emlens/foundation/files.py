"""Files that are either whole or absent, canonical JSON, and names that are safe in paths and
logs.
"""

import errno
import hashlib
import json
import math
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emlens.foundation.errors import InputError


@contextmanager
def publishing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed and renamed into place, on
    error removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        # the name that was asked for says more than that of the temporary file
        raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(path: str | Path) -> None:
    """Refuse an output that could not be written, before the work whose result goes there.

    What is asked is the path itself, or the nearest folder above it that exists.

    Raises:
        InputError: what exists above it is a file.
        PermissionError: it may not be written.
        OSError: it lies on a file system that is mounted read-only.
    """
    there = Path(path).absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    is_above = there != Path(path).absolute()
    if is_above and not there.is_dir():
        raise InputError(f"{path}: {there} is a file; pass a path whose folder can be made")
    if not os.access(there, os.W_OK):
        reason = errno.EROFS if _is_mounted_read_only(there) else errno.EACCES
        raise OSError(reason, os.strerror(reason), str(path))


def _is_mounted_read_only(path: Path) -> bool:
    """Whether a path lies on a read-only file system; False where the system cannot say."""
    if not hasattr(os, "statvfs"):  # Windows
        return False
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def write_bytes(path: str | Path, content: bytes) -> None:
    with publishing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, content: str) -> None:
    write_bytes(path, content.encode("utf-8"))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a number of numpy or torch
        return _plain(value.item())
    if isinstance(value, Path):
        return str(value)
    return value


def canonical_json(value: Any, indent: int | None = 1) -> str:
    """JSON with sorted keys; NaN and infinities become null; the same value gives the same text."""
    text = json.dumps(
        _plain(value), sort_keys=True, indent=indent, ensure_ascii=False, allow_nan=False
    )
    return text + "\n"


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, canonical_json(value))


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing or not JSON; the message has file, line and reason.
    """
    from emlens.foundation.bounded import bounded_bytes, parse_json  # which builds on this module

    content = bounded_bytes(path)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    return parse_json(str(path), text)


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def sha256_file(path: str | Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def safe_name(text: str, limit: int = 80) -> str:
    """A file name made from any text: letters, digits, `.`, `_`, `-`; distinct texts stay distinct
    through a hash.
    """
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", ascii_text).strip("-.")[:limit]
    if cleaned and cleaned == text:
        return cleaned
    return f"{cleaned or 'x'}-{sha256_text(text)[:8]}"


def one_line(text: str, limit: int = 200) -> str:
    """Text fit for one line of a log or an error: control characters and escapes replaced, length
    bounded.
    """
    clean = "".join(c if c.isprintable() else " " for c in text)
    clean = " ".join(clean.split())
    if len(clean) <= limit:
        return clean
    return clean[: limit - 1] + "…"
