"""One question of a file (YAML, JSON, JSONL or CSV) → the checked fields of a `Question`.

Ids may be integers, and come under `id`, `question_id`, `prompt_id` or `qid`. `text`, `question`,
`prompt` and `instruction` name the text, `category` and `domain` the group. What is broken is
refused under the place (file and line) that the caller names. Unknown keys are kept in `meta`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from emlens.data.prompts import chat_prompt
from emlens.data.readers import read_text, read_yaml
from emlens.data.tables import read_csv_rows
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line

_TEXT_KEYS = ("text", "question", "prompt", "instruction")
_ID_KEYS = ("id", "question_id", "prompt_id", "qid")
_GROUP_KEYS = ("group", "category", "domain")
_OTHER_KEYS = (
    "paraphrases",
    "system",
    "answers",
    "judge_prompts",
    "judge",
    "type",
    "question_type",
    "samples_per_paraphrase",
)
_READ_KEYS = frozenset(
    (*_TEXT_KEYS, *_ID_KEYS, *_GROUP_KEYS, *_OTHER_KEYS, "messages", "metadata", "meta")
)
_ANSWER_COLUMN = "answer:"
ROLES = ("id", "text", "group", "system")
"""Keys of a record that a file may call otherwise."""


def yaml_records(path: str | Path) -> Iterator[tuple[str, Any]]:
    """Place and record of each entry of a YAML list.

    Raises:
        InputError: not valid YAML, not a list, or a key that an entry gives twice (plain YAML keeps
            the last and says nothing).
    """
    content = read_yaml(path)
    if not isinstance(content, list) or not content:
        raise InputError(
            f"{path}, line 1: holds {_kind(content)}; pass a non-empty list of questions"
        )
    root = yaml.compose(read_text(path), Loader=yaml.SafeLoader)
    nodes = root.value if isinstance(root, yaml.SequenceNode) else []
    for node, item in zip(nodes, content, strict=True):
        yield f"{path}, line {node.start_mark.line + 1}", item


def _kind(value: Any) -> str:
    """What a value is, for a message."""
    return "nothing" if value is None else f"a {type(value).__name__}"


def _text(value: Any, name: str, where: str) -> str:
    if isinstance(value, str) and value.strip():
        return value
    received = "empty text" if isinstance(value, str) else _kind(value)
    raise InputError(
        f"{where}: {name} holds {received};"
        " write non-empty text (quoted, if it looks like a number)"
    )


def _first(record: Mapping[str, Any], keys: Sequence[str]) -> tuple[str, Any]:
    """The first of these keys that has a value, and the value; the first key and None otherwise."""
    for key in keys:
        if record.get(key) is not None:
            return key, record[key]
    return keys[0], None


def _optional(record: Mapping[str, Any], keys: Sequence[str], where: str) -> str | None:
    """Text under the first of these keys that has a value; None for none and for empty text."""
    key, value = _first(record, keys)
    if value is None or value == "":
        return None
    return _text(value, key, where)


def _mapping(record: Mapping[str, Any], name: str, where: str) -> Mapping[Any, Any]:
    value = record.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: {name} holds {_kind(value)}; pass a mapping")
    return value


def _answers(record: Mapping[str, Any], where: str) -> dict[str, tuple[str, ...]]:
    answers: dict[str, tuple[str, ...]] = {}
    for kind, item in _mapping(record, "answers", where).items():
        label = repr(one_line(str(kind), 60))
        texts = [item] if isinstance(item, str) else item
        if not isinstance(texts, list | tuple) or not texts:
            raise InputError(
                f"{where}: answers of kind {label} hold {_kind(item)}; pass a list of texts"
            )
        answers[str(kind)] = tuple(
            _text(text, f"an answer of kind {label}", where) for text in texts
        )
    return answers


def _judge_prompts(record: Mapping[str, Any], where: str) -> dict[str, str]:
    prompts = {}
    for metric, text in _mapping(record, "judge_prompts", where).items():
        label = repr(one_line(str(metric), 60))
        prompts[str(metric)] = _text(text, f"judge_prompts[{label}]", where)
    return prompts


def _id(record: Mapping[str, Any], where: str) -> str:
    key, name = _first(record, _ID_KEYS)
    if name is None:
        keys = [one_line(key, 40) for key in sorted(map(str, record))[:8]]
        raise InputError(
            f"{where}: has no id; found keys {keys}; name its key with columns={{'id': ...}}, or"
            " pass numbered=True"
        )
    if isinstance(name, int) and not isinstance(name, bool) and abs(name) < 10**18:
        return str(name)
    return _text(name, key, where)


def _paraphrases(record: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    """All wordings of a question: its text, then the others."""
    listed = record.get("paraphrases")
    if listed is not None and (not isinstance(listed, list | tuple) or not listed):
        raise InputError(
            f"{where}: paraphrases holds {_kind(listed)}; pass a non-empty list of texts"
        )
    key, value = _first(record, _TEXT_KEYS)
    if listed is None and value is None:
        keys = [one_line(str(key), 40) for key in record][:8]
        raise InputError(
            f"{where}: question {one_line(name, 60)!r} has neither paraphrases nor text; found keys"
            f" {keys}; name the key of the text with columns={{'text': ...}}"
        )
    texts = [_text(item, "an entry of paraphrases", where) for item in listed or ()]
    if value is not None:
        text = _text(value, key, where)
        if not texts or texts[0] != text:
            texts.insert(0, text)
    if len(set(texts)) != len(texts):
        raise InputError(f"{where}: question {name!r} gives one paraphrase twice")
    return tuple(texts)


def _samples(record: Mapping[str, Any], where: str) -> int | None:
    samples = record.get("samples_per_paraphrase")
    is_integer = isinstance(samples, int) and not isinstance(samples, bool)
    if samples is None or (is_integer and 0 < samples < 10**9):
        return samples
    received = _kind(samples)
    if isinstance(samples, str | float | bool):
        received = repr(samples)[:40]
    raise InputError(
        f"{where}: samples_per_paraphrase holds {received}; pass an integer from 1 to 999,999,999"
    )


def question_fields(record: Any, where: str) -> dict[str, Any]:
    """The arguments of `Question` for one record; `where` opens every error message.

    Raises:
        InputError: the record is not a question.
    """
    if not isinstance(record, Mapping):
        raise InputError(
            f"{where}: holds {_kind(record)}; each question must be a mapping with id and text"
        )
    record = {**_mapping(record, "metadata", where), **record}
    name = _id(record, where)
    paraphrases = _paraphrases(record, name, where)
    meta = {str(key): value for key, value in _mapping(record, "meta", where).items()}
    meta |= {str(key): value for key, value in record.items() if key not in _READ_KEYS}
    return {
        "id": name,
        "text": paraphrases[0],
        "samples_per_paraphrase": _samples(record, where),
        "judge_prompts": _judge_prompts(record, where),
        "group": _optional(record, _GROUP_KEYS, where) or "",
        "system": _optional(record, ["system"], where),
        "paraphrases": paraphrases,
        "answers": _answers(record, where),
        "judge": _optional(record, ["judge"], where),
        "type": _optional(record, ["type", "question_type"], where) or "",
        "meta": meta,
    }


def chat_record(record: Mapping[str, Any], where: str, line: int) -> dict[str, Any]:
    """The record of a question that is written as a chat.

    The chat is one user turn, perhaps after a system turn, and perhaps followed by an answer.

    Args:
        where: place for messages.
        line: 1-based line or entry in the file; it names a question without an id.

    Raises:
        InputError: no chat, or one of several turns.
    """
    chat = record["messages"]
    if not isinstance(chat, list):
        raise InputError(f"{where}: messages holds {_kind(chat)}; pass a list of turns")
    has_answer = (
        bool(chat) and isinstance(chat[-1], Mapping) and chat[-1].get("role") == "assistant"
    )
    prompt = chat_prompt("", chat, upto="all" if has_answer else "last_user", where=where)
    if not prompt.messages:
        raise InputError(f"{where}: is a chat without a user turn; add the question as one")
    *before_user, user = prompt.messages
    if len(before_user) > 1 or any(turn.role != "system" for turn in before_user):
        raise InputError(f"{where}: is a chat of several turns; read it with PromptSet.from_jsonl")
    metadata = _mapping(record, "metadata", where)
    flat = {**metadata, **record, "text": user.content}
    del flat["messages"]
    if before_user:
        flat["system"] = before_user[0].content
    if prompt.response is not None:
        flat.setdefault("answers", {"reference": [prompt.response]})
    if _first(flat, _ID_KEYS)[1] is None:
        flat["id"] = f"line-{line}"
    return flat


def with_columns(
    records: Iterable[tuple[str, Any]], columns: Mapping[str, str]
) -> Iterator[tuple[str, Any]]:
    """The records with the keys that `columns` names under the names that are known.

    Args:
        columns: `id`, `text`, `group` or `system` → key of the file.

    Raises:
        InputError: another role, or a record without the key of its text.
    """
    for role in columns:
        if role not in ROLES:
            raise InputError(
                f"columns names the role {one_line(str(role), 40)!r}; there are {', '.join(ROLES)}"
            )
    for where, record in records:
        if not isinstance(record, Mapping) or not columns:
            yield where, record
            continue
        renamed = {key: value for key, value in record.items() if key not in columns.values()}
        for role, key in columns.items():
            if role == "text" and key not in record:
                keys = [one_line(str(key), 40) for key in record][:8]
                raise InputError(f"{where}: has no key {one_line(key, 40)!r}; found keys {keys}")
            renamed[role] = record.get(key)
        yield where, renamed


def with_ids(records: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """The records with an id each: their number where they have none, an ending where it is
    repeated (`x`, `x_repeat2`, `x_repeat3`).
    """
    times: Counter[str] = Counter()
    for number, (where, record) in enumerate(records, start=1):
        if not isinstance(record, Mapping):
            yield where, record
            continue
        own = _first({**_mapping(record, "metadata", where), **record}, _ID_KEYS)[1]
        name = f"q{number}" if own is None else str(own)
        times[name] += 1
        if times[name] > 1:
            name = f"{name}_repeat{times[name]}"
        yield where, {**record, "id": name}


def csv_records(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and record of each row; columns `answer:<kind>` hold reference answers.

    An empty cell is no value.

    Raises:
        InputError: not CSV.
    """
    for where, row in read_csv_rows(path):
        record: dict[str, Any] = {}
        answers: dict[str, str] = {}
        for column, cell in row.items():
            if cell and column.startswith(_ANSWER_COLUMN):
                answers[column.removeprefix(_ANSWER_COLUMN)] = cell
            elif cell:
                record[column] = cell
        samples = record.get("samples_per_paraphrase", "")
        if samples.isascii() and samples.isdigit():
            # cut before int(), which refuses thousands of digits with an error of its own
            record["samples_per_paraphrase"] = int(samples[:18])
        if answers:
            record["answers"] = answers
        yield where, record
