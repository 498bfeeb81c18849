"""Text files → records; whatever is broken is refused with file, line and reason."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from emlens.foundation.bounded import (
    MIB,
    MOST_CONTAINERS_IN_A_LINE,
    bounded_bytes,
    bounded_lines,
    check_json_size,
)
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line

_MOST_YAML = 8 * MIB
_LONGEST_PLAIN = 100_000
_MOST_NODES = 100_000
_MOST_DEPTH = 48
_MOST_MERGED = 20_000
_LONGEST_NUMBER = 400
_HALF_PAIR = "half a surrogate pair, which is not text"


def read_text(path: str | Path) -> str:
    """A UTF-8 file's text, without a byte-order mark.

    Raises:
        InputError: no such file, a directory, or not UTF-8; the message names the file.
    """
    return _decoded(path, bounded_bytes(path))


def text_lines(path: str | Path, *, unfinished: bool = False) -> Iterator[tuple[int, str]]:
    """(1-based number, line with its end) of a UTF-8 file; one line is in memory at a time.

    Args:
        unfinished: leave out a last line without an end that is no whole JSON object, as a kill
            leaves it behind.

    Raises:
        InputError: as `read_text`; a line that is longer than any file of the field has.
    """
    for number, _, line in placed_lines(path, unfinished=unfinished):
        yield number, line


def placed_lines(path: str | Path, *, unfinished: bool = False) -> Iterator[tuple[int, int, str]]:
    """`text_lines` with the byte that each line starts at: (number, start, line with its end)."""
    start = 0
    for number, line in bounded_lines(path, unfinished=unfinished):
        if unfinished and not line.endswith(b"\n") and not is_whole_record(line):
            return
        yield number, start, _decoded(path, line, number, start)
        start += len(line)


def is_whole_record(line: bytes) -> bool:
    """Whether a line is a JSON object from its beginning to its end."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _decoded(path: str | Path, content: bytes, line: int = 1, start: int = 0) -> str:
    """Bytes of `path` as text.

    Args:
        line, start: number of the first line of `content`, and of the bytes before it.
    """
    try:
        return content.decode("utf-8-sig" if start == 0 else "utf-8")
    except UnicodeDecodeError as error:
        line += error.object[: error.start].count(b"\n")
        raise InputError(
            f"{path}, line {line}: not UTF-8 text ({error.reason} at byte {start + error.start})"
        ) from None


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a JSONL file, skipping blank lines.

    Raises:
        InputError: a line that is not a JSON object; the message has file, line and reason.
    """
    for number, line in text_lines(path):
        if line.strip():
            yield number, json_record(f"{path}, line {number}", line)


def json_record(where: str, line: str) -> dict[str, Any]:
    """The JSON object of one line.

    Raises:
        InputError: it is none; `where` opens the message.
    """
    check_json_size(where, line, MOST_CONTAINERS_IN_A_LINE)
    record = _parsed(where, line)
    if not isinstance(record, dict):
        raise InputError(
            f"{where}: holds a {type(record).__name__}; each line must be a JSON object"
        )
    return record


def json_lines(records: Iterable[Mapping[str, Any]]) -> str:
    """The content of a JSONL file: one record per line."""
    lines = [json.dumps(record, ensure_ascii=False, default=str) for record in records]
    return "\n".join(lines) + "\n"


def read_json_text(path: str | Path) -> Any:
    """A JSON file's content.

    Raises:
        InputError: not valid JSON; the message has file, line and reason.
    """
    text = read_text(path)
    check_json_size(str(path), text)
    return _parsed(str(path), text, name_line=True)


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
    Depth, nodes and what aliases and merges stand for are bounded: a few lines of `<<: [*a, *a]`
    grow ninefold each.
    """

    def __init__(self, stream: Any):
        super().__init__(stream)
        self._depth = 0
        self._nodes = 0
        self._merged = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        """A node, counted with what its aliases stand for."""
        mark = self.peek_event().start_mark
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise yaml.composer.ComposerError(None, None, "nested too deeply", mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None:
            self._nodes += self._size(node)
            if self._nodes > _MOST_NODES:
                reason = f"more than {_MOST_NODES} values, with those of its aliases"
                raise yaml.composer.ComposerError(None, None, reason, mark)
        return node

    def _size(self, node: yaml.Node) -> int:
        """1 for a node that is read for the first time; all of it for an alias."""
        if id(node) in self._sizes:
            return self._sizes[id(node)]
        size = 1
        if isinstance(node, yaml.SequenceNode):
            size += sum(self._sizes.get(id(part), 1) for part in node.value)
        elif isinstance(node, yaml.MappingNode):
            size += sum(self._sizes.get(id(part), 1) for _, part in node.value)
        self._sizes[id(node)] = size
        return 1

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        self._merged += len(node.value)
        if self._merged > _MOST_MERGED:
            reason = f"merges more than {_MOST_MERGED} keys"
            raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark)

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
        is_number = node.tag.endswith((":int", ":float"))
        if is_number and isinstance(node, yaml.ScalarNode) and len(node.value) > _LONGEST_NUMBER:
            reason = f"a number of {len(node.value)} characters"
            raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark)
        try:
            return super().construct_object(node, deep=deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark) from None

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        if _half_pair(str(node.value)):
            raise yaml.constructor.ConstructorError(None, None, _HALF_PAIR, node.start_mark)
        return super().construct_scalar(node)


def _check_events(path: str | Path, text: str) -> None:
    """Refuse what would take the loader long, by the fast parser of libyaml, where it is there.

    The loader is written in Python: it needs a second for some 100 kB, and more where lists lie
    deep in each other.
    """
    parser = getattr(yaml, "CSafeLoader", None)
    if parser is None:
        return
    depth = nodes = 0
    try:
        for event in yaml.parse(text, Loader=parser):
            if isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
                continue
            nodes += isinstance(event, yaml.NodeEvent)
            depth += isinstance(event, yaml.CollectionStartEvent)
            reason = _too_much(event, depth, nodes)
            if reason:
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise InputError(f"{path}, line {line}: not valid YAML: {reason}")
    except yaml.YAMLError:
        return  # the loader says what is wrong, in its words


def _too_much(event: yaml.Event, depth: int, nodes: int) -> str:
    if depth > _MOST_DEPTH:
        return "nested too deeply"
    if nodes > _MOST_NODES:
        return f"more than {_MOST_NODES} values"
    value = event.value if isinstance(event, yaml.ScalarEvent) and not event.style else ""
    if len(value) > _LONGEST_PLAIN:
        return f"{len(value)} characters without quotes"
    return ""


def read_yaml(path: str | Path) -> Any:
    """A YAML file through the safe loader, anchors and aliases resolved.

    Raises:
        InputError: not valid YAML, or a key given twice in one mapping; the message has file, line
            and reason.
    """
    text = _decoded(path, bounded_bytes(path, _MOST_YAML))
    _check_events(path, text)
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
