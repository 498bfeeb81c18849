"""Prompts: what a model is asked, before any tokenizer sees it.

A `Prompt` is either raw text, tokenised as it is, or a chat, rendered by a template later
(`emlens.data.rendering`). Ids are stable and unique; everything downstream is paired by id. Nothing
here knows a model.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self, overload

from emlens.data.readers import read_jsonl
from emlens.foundation.errors import InputError, UnknownNameError
from emlens.foundation.files import one_line

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn of a chat: who speaks, and what."""

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
        InputError: no prompt, or an id that occurs twice.
    """

    def __init__(self, prompts: Iterable[Prompt]):
        self._prompts = tuple(prompts)
        if not self._prompts:
            raise InputError("prompts is empty; pass at least one prompt")
        self._by_id = {prompt.id: prompt for prompt in self._prompts}
        if len(self._by_id) != len(self._prompts):
            seen: set[str] = set()
            twice = next(p.id for p in self._prompts if p.id in seen or seen.add(p.id))  # type: ignore[func-returns-value]
            raise InputError(f"prompt id {one_line(twice)!r} occurs twice; ids must be unique")

    def __len__(self) -> int:
        return len(self._prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self._prompts)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> "PromptSet": ...
    def __getitem__(self, index: int | slice) -> "Prompt | PromptSet":
        return PromptSet(self._prompts[index]) if isinstance(index, slice) else self._prompts[index]

    def __repr__(self) -> str:
        groups = sorted(set(self.groups) - {""})
        return f"PromptSet({len(self)} prompts" + (f", {len(groups)} groups)" if groups else ")")

    @property
    def ids(self) -> list[str]:
        return [prompt.id for prompt in self._prompts]

    @property
    def groups(self) -> list[str]:
        return [prompt.group for prompt in self._prompts]

    def select(self, ids: Iterable[str]) -> "PromptSet":
        """The prompts with these ids, in the order given."""
        wanted = list(ids)
        for name in wanted:
            if name not in self._by_id:
                raise UnknownNameError(
                    f"prompt id {one_line(name)!r} is not in this set of {len(self)} prompts"
                )
        return PromptSet(self._by_id[name] for name in wanted)

    def without_responses(self) -> "PromptSet":
        """The same prompts with their kept answers dropped."""
        return PromptSet(replace(prompt, response=None) for prompt in self._prompts)

    @property
    def content_hash(self) -> str:
        """SHA-256 of ids and content, in order."""
        digest = hashlib.sha256()
        for i, p in enumerate(self._prompts):
            parts = [
                p.id,
                p.group,
                p.text,
                p.response or "",
                *(f"{m.role}\x1d{m.content}" for m in p.messages or ()),
            ]
            digest.update(("\x1f" * (i > 0) + "\x1e".join(parts)).encode("utf-8"))
        return digest.hexdigest()

    @classmethod
    def from_texts(
        cls, texts: Sequence[str], *, ids: Sequence[str] | None = None, group: str = ""
    ) -> Self:
        """Raw texts, tokenised as they are: no template, no added turn."""
        return cls(
            Prompt(name, text, group)
            for name, text in zip(_ids(ids, len(texts)), _checked(texts, "texts"), strict=True)
        )

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
        head = (Message("system", system),) if system is not None else ()
        names = _ids(ids, len(texts))
        kinds = [""] * len(texts) if groups is None else list(groups)
        if len(kinds) != len(texts):
            raise InputError(
                f"groups has {len(kinds)} entries for {len(texts)} texts; pass one for each"
            )
        return cls(
            Prompt(name, text, kind, (*head, Message("user", text)))
            for name, text, kind in zip(names, _checked(texts, "texts"), kinds, strict=True)
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
        """Chats as lists of `{"role", "content"}`; `upto="all"` keeps a closing assistant turn as
        the response.
        """
        return cls(
            chat_prompt(name, chat, group=group, upto=upto, where=f"chat {number}")
            for number, (name, chat) in enumerate(zip(_ids(ids, len(chats)), chats, strict=True))
        )

    @classmethod
    def from_jsonl(
        cls, path: str | Path, *, upto: Literal["last_user", "all"] = "last_user", group: str = ""
    ) -> Self:
        """Chats from a JSONL file with a `messages` list a line; other keys are ignored, `id` is
        kept where it stands.

        Args:
            upto: `"last_user"` drops what follows the last user turn; `"all"` keeps the answer,
                with its span.

        Raises:
            InputError: a line that is not a chat; the message has file, line and reason.
        """
        prompts: dict[str, Prompt] = {}
        lines: dict[str, int] = {}
        for number, record in read_jsonl(path):
            where = f"{path}, line {number}"
            if not isinstance(record.get("messages"), list):
                raise InputError(
                    f"{where}: has no list under 'messages'; found keys {_keys(record)}"
                )
            name = record.get("id", f"line-{number}")
            if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
                raise InputError(
                    f"{where}: id is {one_line(repr(name), 60)};"
                    " pass text or an integer, or leave it out"
                )
            name = str(name)
            if name in prompts:
                raise InputError(
                    f"{where}: prompt id {one_line(name, 60)!r} was given before at line"
                    f" {lines[name]}"
                )
            prompts[name], lines[name] = (
                chat_prompt(name, record["messages"], group=group, upto=upto, where=where),
                number,
            )
        if not prompts:
            raise InputError(f"{path}: holds no line")
        return cls(prompts.values())


def chat_prompt(
    name: str,
    chat: Sequence[Mapping[str, str]],
    *,
    group: str = "",
    upto: Literal["last_user", "all"] = "last_user",
    where: str = "chat",
) -> Prompt:
    """A `Prompt` from a list of messages, checked; `where` opens every error message."""
    if upto not in ("last_user", "all"):
        raise InputError(f"upto={upto!r} is unknown; pass 'last_user' or 'all'")
    messages = []
    for turn, message in enumerate(chat, start=1):
        content = _content(message)
        if content is None:
            raise InputError(f"{where}: turn {turn} has no text under 'content'")
        if message.get("role") not in ROLES:
            raise InputError(
                f"{where}: turn {turn} has role {one_line(repr(message.get('role')), 60)};"
                f" use {', '.join(ROLES)}"
            )
        messages.append(Message(message["role"], content))
    users = [i for i, message in enumerate(messages) if message.role == "user"]
    if not users:
        raise InputError(f"{where}: has no user turn")
    kept, rest = messages[: users[-1] + 1], messages[users[-1] + 1 :]
    response = None
    if upto == "all":
        if len(rest) != 1 or rest[0].role != "assistant":
            raise InputError(
                f"{where}: ends with {len(rest)} turns after the last user turn;"
                " upto='all' needs one assistant turn"
            )
        response = rest[0].content
    for turn, text in ((len(kept), kept[-1].content), (len(kept) + 1, response)):
        if text is not None and not text.strip():
            raise InputError(f"{where}: turn {turn} has no text under 'content'")
    return Prompt(name, kept[-1].content, group, tuple(kept), response)


def _content(message: Any) -> str | None:
    """The text of a message: plain, or in parts `{"type": "text", "text": ...}`; None where it has
    none.
    """
    content = message.get("content") if isinstance(message, Mapping) else None
    if (
        isinstance(content, list)
        and content
        and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content)
    ):
        texts = [part.get("text") for part in content]
        return "".join(texts) if all(isinstance(text, str) for text in texts) else None
    return content if isinstance(content, str) else None


def _keys(record: Mapping[str, Any]) -> list[str]:
    return [one_line(str(key), 40) for key in sorted(map(str, record))[:8]]


def _ids(ids: Sequence[str] | None, n: int) -> list[str]:
    if ids is None:
        return [f"p{i}" for i in range(n)]
    if len(ids) != n:
        raise InputError(f"ids has {len(ids)} entries for {n} prompts; pass one for each")
    return [str(name) for name in ids]


def _checked(texts: Sequence[str], name: str) -> Sequence[str]:
    if isinstance(texts, str):
        raise InputError(f"{name} is one string; pass a list of strings")
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not text:
            raise InputError(f"{name}[{i}] is {text!r}; pass non-empty text")
    return texts
