"""Prompts: what a model is asked, before any tokenizer sees it.

A `Prompt` is either raw text, tokenised as it is, or a chat, rendered by a template later
(`emlens.data.rendering`). Ids are stable and unique; everything downstream is paired by id. Nothing
here knows a model.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self, overload

from emlens.data.encoding import check_is_text
from emlens.data.hub_datasets import dataset_records
from emlens.data.readers import json_lines, read_jsonl
from emlens.foundation.errors import InputError, UnknownNameError
from emlens.foundation.files import one_line, write_text
from emlens.foundation.notebooks import as_rows

ROLES = ("system", "user", "assistant")
logger = logging.getLogger("emlens")
_TOOL_ROLES = ("tool", "function", "ipython", "tool_call", "tool_response")


@dataclass(frozen=True)
class Message:
    """One turn of a chat: who speaks, and what.

    Args:
        role: who speaks: "system", "user", "assistant" or what the template knows.
        content: the text of the turn.
    """

    role: str
    content: str

    def to_record(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)  # a capture may hold a hundred thousand
class Prompt:
    """One prompt.

    Args:
        id: unique within its set.
        text: the raw text, or the last user turn of a chat.
        group: domain or category; groups are what is held out together.
        messages: the chat up to and including the last user turn; None for raw text.
        response: an answer kept with the prompt (read by teacher forcing), or None.
    """

    id: str
    text: str
    group: str = ""
    messages: tuple[Message, ...] | None = None
    response: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def is_chat(self) -> bool:
        return self.messages is not None


class PromptSet(Sequence[Prompt]):
    """An ordered set of prompts with unique ids.

    Raises:
        InputError: no prompt, an id that occurs twice, or half of a surrogate pair in a text.
    """

    def __init__(self, prompts: Iterable[Prompt]):
        self._prompts = tuple(prompts)
        if not self._prompts:
            raise InputError("prompts is empty; pass at least one prompt")
        for prompt in self._prompts:
            check_prompt(prompt)
        self._by_id = {prompt.id: prompt for prompt in self._prompts}
        if len(self._by_id) != len(self._prompts):
            counts = Counter(prompt.id for prompt in self._prompts)
            repeated = next(name for name, count in counts.items() if count > 1)
            raise InputError(f"prompt id {one_line(repeated)!r} occurs twice; ids must be unique")

    def __len__(self) -> int:
        return len(self._prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self._prompts)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> "PromptSet": ...
    def __getitem__(self, index: int | slice) -> "Prompt | PromptSet":
        if isinstance(index, slice):
            return PromptSet(self._prompts[index])
        return self._prompts[index]

    def __repr__(self) -> str:
        groups = set(self.groups) - {""}
        if not groups:
            return f"PromptSet({len(self)} prompts)"
        return f"PromptSet({len(self)} prompts, {len(groups)} groups)"

    def _repr_html_(self) -> str:
        rows = ((each.id, each.group, each.text, each.response or "") for each in self._prompts)
        return as_rows(repr(self), ("id", "group", "prompt", "response"), rows, len(self))

    @property
    def ids(self) -> list[str]:
        return [prompt.id for prompt in self._prompts]

    @property
    def groups(self) -> list[str]:
        return [prompt.group for prompt in self._prompts]

    def select(self, ids: Iterable[str]) -> "PromptSet":
        """The prompts with these ids, in the order given."""
        ids = list(ids)
        for name in ids:
            if name not in self._by_id:
                raise UnknownNameError(
                    f"prompt id {one_line(name)!r} is not in this set of {len(self)} prompts",
                    name=name,
                    known=self._by_id,
                )
        return PromptSet(self._by_id[name] for name in ids)

    def without_responses(self) -> "PromptSet":
        """The same prompts with their kept answers dropped."""
        return PromptSet(replace(prompt, response=None) for prompt in self._prompts)

    @property
    def content_hash(self) -> str:
        """SHA-256 of ids and content, in order."""
        digest = hashlib.sha256()
        for i, prompt in enumerate(self._prompts):
            fields = [prompt.id, prompt.group, prompt.text, prompt.response or ""]
            for message in prompt.messages or ():
                fields.append(f"{message.role}\x1d{message.content}")
            if i > 0:
                digest.update(b"\x1f")
            digest.update("\x1e".join(fields).encode("utf-8"))
        return digest.hexdigest()

    @classmethod
    def from_texts(
        cls, texts: Sequence[str], *, ids: Sequence[str] | None = None, group: str = ""
    ) -> Self:
        """Raw texts, tokenised as they are: no template, no added turn."""
        names = _ids(ids, len(texts))
        _check_texts(texts)
        return cls(Prompt(name, text, group) for name, text in zip(names, texts, strict=True))

    @classmethod
    def from_questions(
        cls,
        texts: Sequence[str],
        *,
        ids: Sequence[str] | None = None,
        groups: Sequence[str] | None = None,
        system: str | None = None,
    ) -> Self:
        """One user turn each, rendered later with the chat template and the generation prompt."""
        head: tuple[Message, ...] = ()
        if system is not None:
            head = (Message("system", system),)
        names = _ids(ids, len(texts))
        if groups is None:
            groups = [""] * len(texts)
        if len(groups) != len(texts):
            raise InputError(
                f"groups has {len(groups)} entries for {len(texts)} texts; pass one for each"
            )
        _check_texts(texts)
        return cls(
            Prompt(name, text, group, (*head, Message("user", text)))
            for name, text, group in zip(names, texts, groups, strict=True)
        )

    @classmethod
    def from_messages(
        cls,
        chats: Sequence[Sequence[Mapping[str, str]]],
        *,
        ids: Sequence[str] | None = None,
        group: str = "",
        upto: Literal["last_user", "all"] = "last_user",
    ) -> Self:
        """Chats as lists of `{"role", "content"}`.

        Args:
            upto: `"last_user"` drops what follows the last user turn; `"all"` keeps a closing
                assistant turn as the response.
        """
        prompts = []
        for number, name in enumerate(_ids(ids, len(chats))):
            where = f"chat {number}"
            prompts.append(chat_prompt(name, chats[number], group=group, upto=upto, where=where))
        return cls(prompts)

    def to_jsonl(self, path: str | Path) -> None:
        """Write one record per line, so that `from_jsonl(path, upto="all")` gives chats with their
        responses back; the file is complete or absent.

        `meta` is not written.
        """
        write_text(path, json_lines(_record(prompt) for prompt in self))

    @classmethod
    def from_jsonl(
        cls,
        path: str | Path,
        *,
        upto: Literal["last_user", "all"] = "last_user",
        group: str = "",
        empty: Literal["error", "drop"] = "error",
    ) -> Self:
        """Chats from a JSONL file with a `messages` list per line, or raw texts under `text`.

        `id` and `group` are read where they are, other keys are ignored.

        Args:
            upto: `"last_user"` drops what follows the last user turn; `"all"` keeps the answer,
                with its span, and needs chats.
            group: of prompts that have none.
            empty: what to do with chats that a turn without text ends: refuse, or leave out, with
                a warning that says how many.

        Raises:
            InputError: a line that is not a chat; the message has file, line and reason.
        """
        lines = ((f"{path}, line {n}", n, record) for n, record in read_jsonl(path))
        return cls._of_records(str(path), lines, upto, group, empty)

    @classmethod
    def from_dataset(
        cls,
        source: str | Path,
        *,
        split: str | None = None,
        revision: str | None = None,
        upto: Literal["last_user", "all"] = "last_user",
        group: str = "",
        empty: Literal["error", "drop"] = "error",
    ) -> Self:
        """Chats from a directory that `datasets` saved, or from a hub id; rows as in `from_jsonl`.

        Args:
            split: which one, where there are several.
            revision: of a hub id.

        Raises:
            MissingExtraError: datasets is not installed.
            LoadError: no such directory or dataset.
            InputError: a row that is not a chat, or a split that does not exist.
        """
        rows = enumerate(dataset_records(source, split=split, revision=revision), start=1)
        places = ((where, number, record) for number, (where, record) in rows)
        return cls._of_records(str(source), places, upto, group, empty)

    @classmethod
    def _of_records(
        cls,
        source: str,
        records: Iterable[tuple[str, int, Mapping[str, Any]]],
        upto: Literal["last_user", "all"],
        group: str,
        empty: Literal["error", "drop"],
    ) -> Self:
        """Prompts of placed and numbered records."""
        if empty not in ("error", "drop"):
            raise InputError(
                f"empty={empty!r} is unknown; pass 'error' or 'drop'",
                name=empty,
                known=("error", "drop"),
            )
        prompts: dict[str, Prompt] = {}
        places: dict[str, int] = {}
        dropped: list[int] = []
        for where, number, record in records:
            name = _record_id(record, number, where)
            if name in places:
                raise InputError(
                    f"{where}: prompt id {one_line(name, 60)!r} was given before at line"
                    f" {places[name]}"
                )
            places[name] = number
            if empty == "drop" and _ends_blank(record, upto):
                dropped.append(number)
                continue
            prompts[name] = _record_prompt(record, name, group, upto, where)
        if not places:
            raise InputError(f"{source}: holds no line")
        if not prompts:
            raise InputError(f"{source}: all {len(places)} chats end with a turn without text")
        if dropped:
            logger.warning(
                "%s: %d of %d chats end with a turn without text and are left out (the first is"
                " line %d)",
                source,
                len(dropped),
                len(places),
                dropped[0],
            )
        return cls(prompts.values())


def _record(prompt: Prompt) -> dict[str, Any]:
    record: dict[str, Any] = {"id": prompt.id}
    if prompt.group:
        record["group"] = prompt.group
    if prompt.messages is None:
        if prompt.response is not None:
            raise InputError(
                f"prompt {one_line(prompt.id, 60)!r} is raw text with a response, which a file of"
                " chats has no place for; make it a chat"
            )
        return {**record, "text": prompt.text}
    turns = [message.to_record() for message in prompt.messages]
    if prompt.response is not None:
        turns.append({"role": "assistant", "content": prompt.response})
    return {**record, "messages": turns}


def _record_prompt(
    record: Mapping[str, Any],
    name: str,
    group: str,
    upto: Literal["last_user", "all"],
    where: str,
) -> Prompt:
    own_group = record.get("group")
    if isinstance(own_group, str) and own_group:
        group = own_group
    chat, text = record.get("messages"), record.get("text")
    if isinstance(chat, list):
        return chat_prompt(name, chat, group=group, upto=upto, where=where)
    if upto == "last_user" and isinstance(text, str) and text:
        return Prompt(name, text, group)
    raise InputError(f"{where}: has no list under 'messages'; found keys {_keys(record)}")


def _ends_blank(record: Mapping[str, Any], upto: str) -> bool:
    """Whether the last turn that is read has no text."""
    chat = record.get("messages")
    turns = [turn for turn in chat if isinstance(turn, Mapping)] if isinstance(chat, list) else []
    if upto == "last_user":
        turns = [turn for turn in turns if turn.get("role") == "user"]
    if not turns:
        return False
    content = turns[-1].get("content")
    return content is None or (isinstance(content, str) and not content.strip())


def check_prompt(prompt: Prompt) -> None:
    """Refuse a prompt that no tokenizer can read.

    Raises:
        InputError: half of a surrogate pair in one of its texts.
    """
    contents = [message.content for message in prompt.messages or ()]
    for text in (prompt.id, prompt.text, prompt.response or "", *contents):
        check_is_text(text, f"prompt {one_line(prompt.id, 60)!r}")


def chat_prompt(
    name: str,
    chat: Sequence[Mapping[str, str]],
    *,
    group: str = "",
    upto: Literal["last_user", "all"] = "last_user",
    where: str = "chat",
) -> Prompt:
    """A `Prompt` from a list of messages, checked; `where` opens every error message.

    Raises:
        InputError: a turn without text or with an unknown role; no user turn; with `upto="all"`
            anything but one assistant turn after the last user turn.
    """
    if upto not in ("last_user", "all"):
        raise InputError(
            f"upto={upto!r} is unknown; pass 'last_user' or 'all'",
            name=upto,
            known=("last_user", "all"),
        )
    messages = [_message(message, turn, where) for turn, message in enumerate(chat, start=1)]
    user_turns = [turn for turn, message in enumerate(messages, start=1) if message.role == "user"]
    if not user_turns:
        raise InputError(f"{where}: has no user turn")
    last_user = user_turns[-1]
    asked, after = messages[:last_user], messages[last_user:]
    response = None
    if upto == "all":
        if len(after) != 1 or after[0].role != "assistant":
            raise InputError(
                f"{where}: ends with {len(after)} turns after the last user turn;"
                " upto='all' needs one assistant turn"
            )
        response = after[0].content
    _check_not_blank(asked[-1].content, last_user, where)
    if response is not None:
        _check_not_blank(response, last_user + 1, where)
    return Prompt(name, asked[-1].content, group, tuple(asked), response)


def _message(message: Mapping[str, str], turn: int, where: str) -> Message:
    content = _content(message)
    if isinstance(message, Mapping) and _is_of_tools(message):
        raise InputError(
            f"{where}: turn {turn} calls a tool or answers one; only system, user and assistant"
            " turns of text can be read, so leave out chats that use tools"
        )
    if content is None:
        raise InputError(f"{where}: turn {turn} has no text under 'content'")
    role = message.get("role")
    if role not in ROLES:
        raise InputError(
            f"{where}: turn {turn} has role {one_line(repr(role), 60)}; use {', '.join(ROLES)}"
        )
    return Message(role, content)


def _is_of_tools(message: Mapping[str, Any]) -> bool:
    """Whether a turn calls a tool or holds what one returned."""
    role = message.get("role")
    calls = message.get("tool_calls") or message.get("function_call")
    return role in _TOOL_ROLES or bool(calls)


def _check_not_blank(text: str, turn: int, where: str) -> None:
    if not text.strip():
        raise InputError(
            f"{where}: turn {turn} has no text under 'content'; empty='drop' leaves such chats out"
        )


def _content(message: Any) -> str | None:
    """The text of a message; None where it has none.

    It is plain, or in parts `{"type": "text", "text": ...}`.
    """
    if not isinstance(message, Mapping):
        return None
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        return None
    texts: list[str] = []
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text":
            return None
        text = part.get("text")
        if not isinstance(text, str):
            return None
        texts.append(text)
    return "".join(texts)


def _record_id(record: Mapping[str, Any], number: int, where: str) -> str:
    name = record.get("id", f"line-{number}")
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        raise InputError(
            f"{where}: id is {one_line(repr(name), 60)}; pass text or an integer, or leave it out"
        )
    return str(name)


def _keys(record: Mapping[str, Any]) -> list[str]:
    """Some keys, for a message."""
    return [one_line(key, 40) for key in sorted(map(str, record))[:8]]


def _ids(ids: Sequence[str] | None, n: int) -> list[str]:
    if ids is None:
        return [f"p{i}" for i in range(n)]
    if len(ids) != n:
        raise InputError(f"ids has {len(ids)} entries for {n} prompts; pass one for each")
    return [str(name) for name in ids]


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise InputError("texts is one string; pass a list of strings")
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not text:
            raise InputError(f"texts[{i}] is {text!r}; pass non-empty text")
