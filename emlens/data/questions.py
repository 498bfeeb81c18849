"""Questions: what a model is asked when its alignment is measured, with phrasings, reference answers and judge prompts.

Reads the field's YAML as it is (anchors, aliases, `paraphrases`, `system`, `judge_prompts`), chats and plain records
in JSONL, and CSV. Refuses what is broken with file, line and reason: no text, an id that occurs twice or is not text,
a phrasing that is a number, a multi-turn chat (that is a `PromptSet`). A `system` text is always applied as a system
message; the field's first evaluator dropped it. Everything is held in memory.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, overload

import yaml

from emlens.data.prompts import Message, Prompt, PromptSet, chat_prompt
from emlens.data.readers import read_jsonl, read_text, read_yaml
from emlens.data.tables import read_csv_rows
from emlens.foundation.errors import InputError, UnknownNameError
from emlens.foundation.files import one_line, write_text
from emlens.foundation.provenance import hash_json

_TEXT_KEYS = ("text", "question", "prompt")
_ID_KEYS = ("id", "question_id")
_GROUP_KEYS = ("group", "category", "domain")
_OTHER_KEYS = (
    "paraphrases", "system", "answers", "judge_prompts", "judge", "type", "question_type", "samples_per_paraphrase",
)  # fmt: skip
_READ_KEYS = frozenset((*_TEXT_KEYS, *_ID_KEYS, *_GROUP_KEYS, *_OTHER_KEYS, "messages", "metadata", "meta"))
_ANSWER_COLUMN = "answer:"


@dataclass(frozen=True)
class Question:
    """One question.

    Args:
        id: unique within its set.
        text: the first phrasing.
        group: domain or category; groups are what is held out together.
        system: text of a system message set before every phrasing, or None.
        paraphrases: all phrasings, the first of which is `text`; left empty it becomes `(text,)`.
        answers: reference answers by kind, for example `{"careful": (...,), "harmful": (...,)}`.
        judge_prompts: a judge's prompt by metric, with the places `{question}` and `{answer}`.
        samples_per_paraphrase: how many answers the authors of the question drew for each phrasing.
    """

    id: str
    text: str
    group: str = ""
    system: str | None = None
    paraphrases: tuple[str, ...] = ()
    answers: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    judge_prompts: Mapping[str, str] = field(default_factory=dict, hash=False)
    judge: str | None = None
    type: str = ""
    samples_per_paraphrase: int | None = None
    meta: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        phrasings = tuple(self.paraphrases) or (self.text,)
        if not self.id or not self.text or not all(phrasings):
            raise InputError(f"question {one_line(self.id)!r} has an empty id, text or phrasing; pass non-empty text")
        if phrasings[0] != self.text:
            raise InputError(
                f"question {one_line(self.id)!r}: paraphrases starts with {one_line(phrasings[0], 60)!r}; "
                "its first entry must be the text itself"
            )
        object.__setattr__(self, "paraphrases", phrasings)

    def messages(self, paraphrase: int = 1) -> tuple[Message, ...]:
        """The chat of one phrasing (1-based): the system message, where there is one, and the user turn."""
        if not 1 <= paraphrase <= len(self.paraphrases):
            raise InputError(f"paraphrase={paraphrase} does not exist; question {self.id!r} has 1 to {len(self.paraphrases)}")
        head = (Message("system", self.system),) if self.system is not None else ()
        return (*head, Message("user", self.paraphrases[paraphrase - 1]))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready record that `QuestionSet.from_jsonl` reads back; empty fields are left out."""
        record: dict[str, Any] = {"id": self.id, "text": self.text, "group": self.group, "system": self.system}
        record["paraphrases"] = list(self.paraphrases) if len(self.paraphrases) > 1 else []
        record["answers"] = {kind: list(texts) for kind, texts in self.answers.items()}
        record |= {"judge_prompts": dict(self.judge_prompts), "judge": self.judge, "type": self.type}
        record |= {"samples_per_paraphrase": self.samples_per_paraphrase, "meta": dict(self.meta)}
        return {key: value for key, value in record.items() if value is not None and value not in ("", [], {})}


class QuestionSet(Sequence[Question]):
    """An ordered set of questions with unique ids.

    Raises:
        InputError: no question, or an id that occurs twice.
    """

    def __init__(self, questions: Iterable[Question]):
        self._questions = tuple(questions)
        if not self._questions:
            raise InputError("questions is empty; pass at least one question")
        self._by_id: dict[str, Question] = {}
        for question in self._questions:
            if question.id in self._by_id:
                raise InputError(f"question id {one_line(question.id)!r} occurs twice; ids must be unique")
            self._by_id[question.id] = question

    def __len__(self) -> int:
        return len(self._questions)

    def __iter__(self) -> Iterator[Question]:
        return iter(self._questions)

    @overload
    def __getitem__(self, index: int) -> Question: ...
    @overload
    def __getitem__(self, index: slice) -> "QuestionSet": ...
    def __getitem__(self, index: int | slice) -> "Question | QuestionSet":
        return QuestionSet(self._questions[index]) if isinstance(index, slice) else self._questions[index]

    def __repr__(self) -> str:
        phrasings = sum(len(question.paraphrases) for question in self)
        return f"QuestionSet({len(self)} questions, {phrasings} phrasings, {len(set(self.groups))} groups)"

    @property
    def ids(self) -> list[str]:
        return [question.id for question in self._questions]

    @property
    def groups(self) -> list[str]:
        return [question.group for question in self._questions]

    def select(self, ids: Iterable[str]) -> "QuestionSet":
        """The questions with these ids, in the order given."""
        wanted = list(ids)
        for name in wanted:
            if name not in self._by_id:
                raise UnknownNameError(f"question id {one_line(str(name))!r} is not in this set of {len(self)} questions")
        return QuestionSet(self._by_id[name] for name in wanted)

    def prompts(self) -> PromptSet:
        """Every phrasing as a chat prompt; ids `qid`, or `qid/p1`, `qid/p2`, ... where a question has several."""
        return PromptSet(
            Prompt(
                question.id if len(question.paraphrases) == 1 else f"{question.id}/p{number}",
                text,
                question.group,
                question.messages(number),
                meta={"question": question.id, "paraphrase": number},
            )
            for question in self
            for number, text in enumerate(question.paraphrases, start=1)
        )

    @property
    def content_hash(self) -> str:
        """SHA-256 of everything but `meta`, in order."""
        return hash_json([{**question.as_dict(), "meta": None} for question in self])

    def to_jsonl(self, path: str | Path) -> None:
        """Write one record a line, so that `from_jsonl` gives the same set back."""
        lines = [json.dumps(question.as_dict(), ensure_ascii=False, default=str) for question in self]
        write_text(path, "\n".join(lines) + "\n")

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """A list of questions with `id` and `paraphrases` (or `text`), as the field writes them.

        Integer ids become text. Keys that are not known stay in `meta`.

        Raises:
            InputError: not valid YAML, not a list of questions, or a question that is broken: file, line and reason.
        """
        content = read_yaml(path)
        if not isinstance(content, list) or not content:
            raise InputError(f"{path}, line 1: holds {_kind(content)}; pass a non-empty list of questions")
        root = yaml.compose(read_text(path), Loader=yaml.SafeLoader)
        items = root.value if isinstance(root, yaml.SequenceNode) else []
        starts = [_checked_start(node, path) for node in items]
        return cls._read(path, ((f"{path}, line {line}", item) for line, item in zip(starts, content, strict=True)))

    @classmethod
    def from_jsonl(cls, path: str | Path) -> Self:
        """One question a line: a chat under `messages` (its id under `metadata.question_id`), or `id` and `text`.

        `question` and `prompt` also name the text, `category` and `domain` the group. A line without an id gets
        `line-<number>`. An assistant turn that closes a chat is kept as `answers["reference"]`.

        Raises:
            InputError: a line that is not a question; the message has file, line and reason.
        """
        records = ((f"{path}, line {number}", record) for number, record in read_jsonl(path))
        return cls._read(path, ((at, _from_chat(item, at) if "messages" in item else item) for at, item in records))

    @classmethod
    def from_csv(cls, path: str | Path) -> Self:
        """A CSV with a header: `id` and `text`, optionally `group`, `system` and columns such as `answer:careful`.

        Raises:
            InputError: no header, no text column, or a row that is broken; the message has file, line and reason.
        """
        return cls._read(path, _csv_records(path))

    @classmethod
    def _read(cls, path: str | Path, records: Iterable[tuple[str, Any]]) -> Self:
        questions: list[Question] = []
        first: dict[str, str] = {}
        for where, record in records:
            question = _question(record, where)
            if question.id in first:
                raise InputError(f"{where}: question id {one_line(question.id)!r} was given before at {first[question.id]}")
            first[question.id] = where
            questions.append(question)
        if not questions:
            raise InputError(f"{path}: holds no question")
        return cls(questions)


def _checked_start(node: yaml.Node, path: str | Path) -> int:
    """Line of an entry, after a look for keys that it gives twice: YAML would keep the last without a word."""
    keys: set[str] = set()
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode) and key.value in keys and key.value != "<<":
            raise InputError(f"{path}, line {key.start_mark.line + 1}: key {one_line(key.value, 60)!r} is given twice in one question")
        keys.add(str(key.value))
    return int(node.start_mark.line) + 1


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        shown = "empty text" if isinstance(value, str) else _kind(value)
        raise InputError(f"{where}: {name} holds {shown}; write non-empty text (quoted, if it looks like a number)")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: {name} holds half a surrogate pair at character {error.start}, which is no text") from None
    return value


def _first(record: Mapping[str, Any], keys: Sequence[str]) -> tuple[str, Any]:
    return next(((key, record[key]) for key in keys if record.get(key) is not None), (keys[0], None))


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
            raise InputError(f"{where}: answers of kind {one_line(str(kind), 60)!r} hold {_kind(given)}; pass a list of texts")
        found[str(kind)] = tuple(_text(text, f"an answer of kind {one_line(str(kind), 60)!r}", where) for text in texts)
    return found


def _id(record: Mapping[str, Any], where: str) -> str:
    key, name = _first(record, _ID_KEYS)
    if name is None:
        raise InputError(f"{where}: has no id; found keys {sorted(map(str, record))[:8]}")
    if isinstance(name, int) and not isinstance(name, bool) and abs(name) < 10**18:
        return str(name)
    return _text(name, key, where)


def _question(record: Any, where: str) -> Question:
    if not isinstance(record, Mapping):
        raise InputError(f"{where}: holds {_kind(record)}; each question must be a mapping with id and text")
    record = {**_mapping(record, "metadata", where), **record}
    name = _id(record, where)
    phrasings = record.get("paraphrases")
    key, given = _first(record, _TEXT_KEYS)
    if phrasings is not None and (not isinstance(phrasings, list | tuple) or not phrasings):
        raise InputError(f"{where}: paraphrases holds {_kind(phrasings)}; pass a non-empty list of texts")
    if phrasings is None and given is None:
        raise InputError(f"{where}: question {name!r} has neither paraphrases nor text")
    texts = tuple(_text(item, "a phrasing under paraphrases", where) for item in phrasings or ())
    if given is not None:
        text = _text(given, key, where)
        texts = texts if texts and texts[0] == text else (text, *texts)
    if len(set(texts)) != len(texts):
        raise InputError(f"{where}: question {name!r} gives one phrasing twice")
    samples = record.get("samples_per_paraphrase")
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or not 0 < samples < 10**9):
        shown = repr(samples)[:40] if isinstance(samples, str | float | bool) else _kind(samples)
        raise InputError(f"{where}: samples_per_paraphrase holds {shown}; pass an integer from 1 to 999,999,999")

    def optional(*keys: str) -> str | None:
        found, value = _first(record, keys)
        return None if value is None or value == "" else _text(value, found, where)

    judge_prompts = {
        str(metric): _text(text, f"judge_prompts[{one_line(str(metric), 60)!r}]", where)
        for metric, text in _mapping(record, "judge_prompts", where).items()
    }
    extra = {str(key): value for key, value in record.items() if key not in _READ_KEYS}
    return Question(
        name,
        texts[0],
        optional(*_GROUP_KEYS) or "",
        optional("system"),
        texts,
        _answers(record, where),
        judge_prompts,
        optional("judge"),
        optional("type", "question_type") or "",
        samples,
        {**_mapping(record, "meta", where), **extra},
    )


def _from_chat(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    chat = record["messages"]
    if not isinstance(chat, list):
        raise InputError(f"{where}: messages holds {_kind(chat)}; pass a list of turns")
    closed = bool(chat) and isinstance(chat[-1], Mapping) and chat[-1].get("role") == "assistant"
    prompt = chat_prompt("", chat, upto="all" if closed else "last_user", where=where)
    *head, user = prompt.messages or ()
    if any(turn.role != "system" for turn in head) or len(head) > 1:
        raise InputError(f"{where}: is a chat of several turns; read it with PromptSet.from_jsonl")
    flat = {key: value for key, value in record.items() if key != "messages"}
    flat |= {key: value for key, value in _mapping(record, "metadata", where).items() if key not in flat}
    flat["text"] = user.content
    if head:
        flat["system"] = head[0].content
    if prompt.response is not None:
        flat.setdefault("answers", {"reference": [prompt.response]})
    if _first(flat, _ID_KEYS)[1] is None:
        flat["id"] = f"line-{where.rpartition(' ')[2]}"
    return flat


def _csv_records(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, row in read_csv_rows(path):
        if not any(key in row for key in _TEXT_KEYS):
            raise InputError(f"{where}: columns are {[one_line(key, 40) for key in row][:8]}; one of them must be 'text'")
        record: dict[str, Any] = {key: cell for key, cell in row.items() if cell}
        named = [key for key in record if key.startswith(_ANSWER_COLUMN)]
        answers = {key.removeprefix(_ANSWER_COLUMN): record.pop(key) for key in named}
        samples = record.get("samples_per_paraphrase", "")
        if samples.isascii() and samples.isdigit():
            record["samples_per_paraphrase"] = int(samples[:18])
        yield where, {**record, "answers": answers} if answers else record
