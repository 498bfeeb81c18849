"""Text files → records; whatever is broken is refused with file, line and reason."""

import codecs
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line

_HALF_PAIR = "half a surrogate pair, which is not text"


def read_text(path: str | Path) -> str:
    """A UTF-8 file's text, without a byte-order mark.

    Raises:
        InputError: no such file, a directory, or not UTF-8; the message names the file.
    """
    return decoded(path, read_bytes(path))


def read_bytes(path: str | Path) -> bytes:
    """A file's bytes; what keeps it from being read is an `InputError` that names it."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a directory; pass a file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # a path with a NUL in it
        raise InputError(f"{one_line(str(path))}: is not a path ({error})") from None


def decoded(path: str | Path, content: bytes) -> str:
    """Content of `path` as text; what is not UTF-8 is an `InputError` that names file and line."""
    nul = content.find(b"\0")
    if nul >= 0 and not content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        line = content[:nul].count(b"\n") + 1
        raise InputError(f"{path}, line {line}: holds a byte 0, which no text has")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}, line {line}: not UTF-8 text ({error.reason} at byte {error.start})"
        ) from None


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a JSONL file, skipping blank lines.

    Raises:
        InputError: a line that is not a JSON object; the message has file, line and reason.
    """
    return parse_jsonl(path, read_text(path))


def parse_jsonl(path: str | Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """`read_jsonl` for text that was read already."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        record = _parsed(f"{path}, line {number}", line)
        if not isinstance(record, dict):
            raise InputError(
                f"{path}, line {number}: holds a {type(record).__name__};"
                " each line must be a JSON object"
            )
        yield number, record


def json_lines(records: Iterable[Mapping[str, Any]]) -> str:
    """The content of a JSONL file: one record per line."""
    lines = [json.dumps(record, ensure_ascii=False, default=str) for record in records]
    return "\n".join(lines) + "\n"


def read_json_text(path: str | Path) -> Any:
    """A JSON file's content.

    Raises:
        InputError: not valid JSON; the message has file, line and reason.
    """
    return _parsed(str(path), read_text(path), name_line=True)


def _parsed(where: str, text: str, *, name_line: bool = False) -> Any:
    """JSON without what Python's parser accepts: a repeated key, half a surrogate pair.

    Args:
        name_line: name the line of an error; not where `text` is itself one line of a file.
    """
    try:
        value = json.loads(text, object_pairs_hook=_without_repeated_keys)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if name_line else ""
        raise InputError(f"{where}{line}: not valid JSON: {error.msg}") from None
    except _RepeatedKey as error:
        raise InputError(
            f"{where}: not valid JSON: key {one_line(str(error), 60)!r} is given twice"
        ) from None
    except RecursionError:
        raise InputError(f"{where}: not valid JSON: nested too deeply") from None
    except ValueError as error:  # an integer of too many digits
        raise InputError(f"{where}: not valid JSON: {one_line(str(error))}") from None
    if "\\u" in text:
        check_texts(where, value)
    return value


def _half_pair(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


class _RepeatedKey(Exception):
    """A key that an object gives twice; its message is the key."""


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    repeated: set[str] = set()
    for key, value in pairs:
        if key in record:
            repeated.add(key)
        record[key] = value
    for key in record:
        if key in repeated:
            raise _RepeatedKey(key)
    return record


def check_texts(where: str, value: Any) -> None:
    """Refuse containers that hold themselves, and text that cannot be written as UTF-8.

    The whole of `value` is searched with a stack of its own, since it may be nested more deeply
    than Python calls functions.

    Raises:
        InputError: names the key under which it is.
    """
    open_containers: set[int] = set()
    checked: set[int] = set()
    stack: list[tuple[Any, str, bool]] = [(value, "the content", False)]
    # depth first; a container is open until its end marker is popped
    while stack:
        item, name, is_end = stack.pop()
        if is_end:
            open_containers.discard(id(item))
            checked.add(id(item))
        elif isinstance(item, str):
            if _half_pair(item):
                raise InputError(f"{where}: {name} holds {_HALF_PAIR}")
        elif isinstance(item, dict | list | tuple) and id(item) not in checked:
            if id(item) in open_containers:
                raise InputError(f"{where}: {name} holds itself (an alias inside its own anchor)")
            open_containers.add(id(item))
            stack.append((item, name, True))
            stack += [(part, part_name, False) for part, part_name in _parts(item, name)]


def _parts(container: Any, name: str) -> Iterator[tuple[Any, str]]:
    """Everything in a container, with a name for messages."""
    if not isinstance(container, dict):
        for part in container:
            yield part, name
        return
    for key, part in container.items():
        # a key may itself be no valid text
        yield part, one_line(str(key).encode("utf-8", "replace").decode(), 60)
    for key in container:
        yield key, "a key"


class _Loader(yaml.SafeLoader):
    """The safe loader, which refuses repeated keys and says where a constructor failed.

    Some tagged scalars, such as `!!bool maybe`, only raise a KeyError in the loader of PyYAML.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys: set[tuple[str, str]] = set()
        for key, _ in node.value:
            # "<<" merges another mapping and may come several times
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if (key.tag, key.value) in keys:
                reason = f"key {one_line(key.value, 60)!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, reason, key.start_mark)
            keys.add((key.tag, key.value))
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark) from None

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        if _half_pair(str(node.value)):
            raise yaml.constructor.ConstructorError(None, None, _HALF_PAIR, node.start_mark)
        return super().construct_scalar(node)


def read_yaml(path: str | Path) -> Any:
    """A YAML file through the safe loader, anchors and aliases resolved.

    Raises:
        InputError: not valid YAML, or a key given twice in one mapping; the message has file, line
            and reason.
    """
    text = read_text(path)
    try:
        content = yaml.load(text, Loader=_Loader)  # a safe loader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        reason = one_line(" ".join(part for part in (error.context, error.problem) if part))
        raise InputError(f"{path}, line {line}: not valid YAML: {reason}") from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise InputError(
            f"{path}, line {line}: not valid YAML:"
            f" {one_line(error.reason)} ({one_line(ascii(error.character), 20)})"
        ) from None
    except RecursionError:
        raise InputError(f"{path}: not valid YAML: nested too deeply") from None
    check_texts(str(path), content)
    return content
