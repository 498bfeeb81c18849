"""What may happen to a file that this library wrote and reads back, and what must come of it.

`faults(file, read)` damages a JSON record in every way of `MUTATIONS`. Each must be refused in one
line that names the file; or, where a damaged record counts as absent and the work is done again,
`read` gives None.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from emlens.foundation.errors import EmlensError

Change = Callable[[Any], Any]


def mutations(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Thirteen, and a few of one record alone."""
    record = json.loads(content)
    yield "empty", b""
    yield "an opening", b"{"
    yield "a list", b"[]"
    yield "a list of one", b"[1]"
    yield "null", b"null"
    yield "cut in two", content[: len(content) // 2]
    yield "no UTF-8", content[:-3] + b"\xff" + content[-3:]
    yield "a byte 0", content[:1] + b"\0" + content[1:]
    yield "nested too deep", b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    yield "a field twice", b'{"%s": 0, ' % next(iter(record)).encode() + content.lstrip()[1:]
    for name in record:
        if name == "record_sha256":
            continue
        yield f"{name} is missing", dumped({k: v for k, v in record.items() if k != name})
        yield f"{name} is another kind", dumped({**record, name: other_kind(record[name])})
        edited, done = edited_leaf(record[name])
        if done:
            yield f"{name} is edited", dumped({**record, name: edited})
    yield "a field more", dumped({**record, "more": 1})


def dumped(record: Any) -> bytes:
    return json.dumps(record, sort_keys=True).encode()


def other_kind(value: Any) -> Any:
    if isinstance(value, dict):
        return [1]
    if isinstance(value, list):
        return {"a": 1}
    return [value]


def edited_leaf(value: Any) -> tuple[Any, bool]:
    """The value with its first number or text changed, if it has any."""
    if isinstance(value, bool) or value is None:
        return (not value), True
    if isinstance(value, int | float):
        return value + 1, True
    if isinstance(value, str):
        return f"{value}0", True
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    for key, part in items:
        edited, done = edited_leaf(part)
        if done:
            changed = dict(value) if isinstance(value, dict) else list(value)
            changed[key] = edited
            return changed, True
    return value, False


def faults(file: Path, read: Callable[[], Any], *, allowed: tuple[str, ...] = ()) -> dict[str, str]:
    """What is wrong with how each damage is met; the file is as before afterwards.

    Args:
        allowed: damages that this record may be read with.
    """
    content = file.read_bytes()
    assert read() is not None
    found: dict[str, str] = {}
    count = 0
    for name, damaged in mutations(content):
        if name in allowed:
            continue
        count += 1
        file.write_bytes(damaged)
        try:
            value = read()
        except EmlensError as error:
            message = str(error)
            if "\n" in message or len(message) > 500 or not message.isprintable():
                found[name] = f"not one line: {message!r}"
            elif file.name not in message and str(file.parent) not in message:
                found[name] = f"does not name the file: {message}"
        except Exception as error:
            found[name] = f"{type(error).__name__}: {str(error)[:200]}"
        else:
            if value is not None:
                found[name] = f"read as {str(value)[:200]}"
    file.write_bytes(content)
    assert count >= 13
    assert read() is not None
    return found
