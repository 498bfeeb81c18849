"""One question as the field writes it, from YAML, JSON, JSONL or CSV → the fields of a `Question`,
checked.

Ids may be integers; `text`, `question` and `prompt` name the text, `category` and `domain` the
group. What is broken is refused under the place (file and line) that the caller names. Keys nobody
knows are kept in `meta`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from emlens.data.prompts import chat_prompt
from emlens.data.readers import read_text, read_yaml
from emlens.data.tables import read_csv_rows
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line

_TEXT_KEYS = ("text", "question", "prompt")
_ID_KEYS = ("id", "question_id")
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


def yaml_records(path: str | Path) -> Iterator[tuple[str, Any]]:
    """Place and record of each entry of a YAML list.

    Raises:
        InputError: not valid YAML, not a list, or a key that an entry gives twice (YAML would keep
            the last without a word).
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
    return "nothing" if value is None else f"a {type(value).__name__}"


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        shown = "empty text" if isinstance(value, str) else _kind(value)
        raise InputError(
            f"{where}: {name} holds {shown}; write non-empty text (quoted,"
            " if it looks like a number)"
        )
    return value


def _first(record: Mapping[str, Any], keys: Sequence[str]) -> tuple[str, Any]:
    return next(
        ((key, record[key]) for key in keys if record.get(key) is not None), (keys[0], None)
    )


def _mapping(record: Mapping[str, Any], name: str, where: str) -> Mapping[Any, Any]:
    value = record.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: {name} holds {_kind(value)}; pass a mapping")
    return value


def _answers(record: Mapping[str, Any], where: str) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for kind, given in _mapping(record, "answers", where).items():
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list | tuple) or not texts:
            raise InputError(
                f"{where}: answers of kind {one_line(str(kind), 60)!r} hold {_kind(given)};"
                " pass a list of texts"
            )
        found[str(kind)] = tuple(
            _text(text, f"an answer of kind {one_line(str(kind), 60)!r}", where) for text in texts
        )
    return found


def _id(record: Mapping[str, Any], where: str) -> str:
    key, name = _first(record, _ID_KEYS)
    if name is None:
        raise InputError(
            f"{where}: has no id;"
            f" found keys {[one_line(str(key), 40) for key in sorted(map(str, record))[:8]]}"
        )
    if isinstance(name, int) and not isinstance(name, bool) and abs(name) < 10**18:
        return str(name)
    return _text(name, key, where)


def question_fields(record: Any, where: str) -> dict[str, Any]:
    """The arguments of `Question` for one record; `where` opens every error message."""
    if not isinstance(record, Mapping):
        raise InputError(
            f"{where}: holds {_kind(record)}; each question must be a mapping with id and text"
        )
    record = {**_mapping(record, "metadata", where), **record}
    name = _id(record, where)
    phrasings = record.get("paraphrases")
    key, given = _first(record, _TEXT_KEYS)
    if phrasings is not None and (not isinstance(phrasings, list | tuple) or not phrasings):
        raise InputError(
            f"{where}: paraphrases holds {_kind(phrasings)}; pass a non-empty list of texts"
        )
    if phrasings is None and given is None:
        raise InputError(f"{where}: question {name!r} has neither paraphrases nor text")
    texts = tuple(_text(item, "a phrasing under paraphrases", where) for item in phrasings or ())
    if given is not None:
        text = _text(given, key, where)
        texts = texts if texts and texts[0] == text else (text, *texts)
    if len(set(texts)) != len(texts):
        raise InputError(f"{where}: question {name!r} gives one phrasing twice")
    samples = record.get("samples_per_paraphrase")
    if samples is not None and (
        isinstance(samples, bool) or not isinstance(samples, int) or not 0 < samples < 10**9
    ):
        shown = repr(samples)[:40] if isinstance(samples, str | float | bool) else _kind(samples)
        raise InputError(
            f"{where}: samples_per_paraphrase holds {shown}; pass an integer from 1 to 999,999,999"
        )

    def optional(*keys: str) -> str | None:
        found, value = _first(record, keys)
        return None if value is None or value == "" else _text(value, found, where)

    judge_prompts = {
        str(metric): _text(text, f"judge_prompts[{one_line(str(metric), 60)!r}]", where)
        for metric, text in _mapping(record, "judge_prompts", where).items()
    }
    extra = {str(key): value for key, value in record.items() if key not in _READ_KEYS}
    return {
        "id": name,
        "text": texts[0],
        "group": optional(*_GROUP_KEYS) or "",
        "system": optional("system"),
        "paraphrases": texts,
        "answers": _answers(record, where),
        "judge_prompts": judge_prompts,
        "judge": optional("judge"),
        "type": optional("type", "question_type") or "",
        "samples_per_paraphrase": samples,
        "meta": {
            **{str(key): value for key, value in _mapping(record, "meta", where).items()},
            **extra,
        },
    }


def chat_record(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The record of a question in the form of a chat: a system turn perhaps, a user turn, and
    perhaps its answer.
    """
    chat = record["messages"]
    if not isinstance(chat, list):
        raise InputError(f"{where}: messages holds {_kind(chat)}; pass a list of turns")
    closed = bool(chat) and isinstance(chat[-1], Mapping) and chat[-1].get("role") == "assistant"
    prompt = chat_prompt("", chat, upto="all" if closed else "last_user", where=where)
    *head, user = prompt.messages or ()
    if any(turn.role != "system" for turn in head) or len(head) > 1:
        raise InputError(f"{where}: is a chat of several turns; read it with PromptSet.from_jsonl")
    flat = {key: value for key, value in record.items() if key != "messages"}
    flat |= {
        key: value for key, value in _mapping(record, "metadata", where).items() if key not in flat
    }
    flat["text"] = user.content
    if head:
        flat["system"] = head[0].content
    if prompt.response is not None:
        flat.setdefault("answers", {"reference": [prompt.response]})
    if _first(flat, _ID_KEYS)[1] is None:
        flat["id"] = f"line-{where.rpartition(' ')[2]}"
    return flat


def csv_records(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and record of each row; columns `answer:<kind>` hold reference answers, empty cells
    nothing.
    """
    for where, row in read_csv_rows(path):
        if not any(key in row for key in _TEXT_KEYS):
            raise InputError(
                f"{where}: columns are {[one_line(key, 40) for key in row][:8]};"
                " one of them must be 'text'"
            )
        record: dict[str, Any] = {key: cell for key, cell in row.items() if cell}
        named = [key for key in record if key.startswith(_ANSWER_COLUMN)]
        answers = {key.removeprefix(_ANSWER_COLUMN): record.pop(key) for key in named}
        samples = record.get("samples_per_paraphrase", "")
        if samples.isascii() and samples.isdigit():
            record["samples_per_paraphrase"] = int(samples[:18])
        yield where, {**record, "answers": answers} if answers else record
