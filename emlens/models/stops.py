"""What ends an answer: token ids, or text where a template ends turns by no token of their own.

A model stops at its own end of sequence. On the template of another model (a base model that runs
on its instruct version's) that token never comes, and the answer would run on into turns that the
model invents. So the template is asked what it writes after an answer: its end of turn ends an
answer too. Where the tokenizer knows that mark as ordinary tokens only, or where the template
writes none, as the plain one does, an answer ends where the text of the mark, or the header of a
next turn, begins.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emlens.data.prompts import ROLES
from emlens.data.rendering import end_of_turn_id

Ends = Callable[[int, Sequence[int]], bool]
"""`(row, tokens so far) -> whether the text of these tokens ends the row's answer`."""

_QUESTION, _ANSWER, _NEXT = "Xqu", "Yan", "Znx"
"""Contents of the turns that are rendered to see what a template writes between them."""


@dataclass(frozen=True)
class Stops:
    """What ends an answer.

    Args:
        ids: tokens of which each ends it.
        texts: texts of which each ends it where it begins; empty where the template's end of turn
            is a token.
    """

    ids: frozenset[int]
    texts: tuple[str, ...] = ()

    def cut(self, text: str) -> str:
        """A text up to where the first stop text begins."""
        starts = [text.find(stop) for stop in self.texts if stop in text]
        if not starts:
            return text
        return text[: min(starts)]

    @property
    def window(self) -> int:
        """Last tokens of an answer in which a stop text that was just completed lies.

        A token has one character at least, but where a character takes several tokens; the stop
        texts are cut from templates, where such characters are few.
        """
        return 2 * max(map(len, self.texts), default=0) + 4


def never_ends(row: int, tokens: Sequence[int]) -> bool:
    """`Ends` where only tokens end an answer."""
    return False


def template_stops(tokenizer: Any, template: str | None) -> Stops:
    """How a template ends an answer; nothing without a template, or where it refuses such chats."""
    if template is None:
        return Stops(frozenset())
    chat = [_turn("user", _QUESTION), _turn("assistant", _ANSWER)]
    token = end_of_turn_id(tokenizer, template)
    if token is not None:
        return Stops(frozenset({token}))
    closing = _after_answer(tokenizer, template, chat)
    if closing is None:
        return Stops(frozenset())
    if closing.strip():
        return Stops(frozenset(), (closing.strip(),))
    headers = (_header(tokenizer, template, chat, role) for role in ROLES)
    return Stops(frozenset(), tuple(sorted({text for text in headers if text.strip()})))


def _turn(role: str, content: str) -> Mapping[str, str]:
    return {"role": role, "content": content}


def _after_answer(tokenizer: Any, template: str, chat: Sequence[Mapping[str, str]]) -> str | None:
    """What the template writes after the answer; None where it refuses the chat or hides it."""
    try:
        text: str = tokenizer.apply_chat_template(
            list(chat), chat_template=template, tokenize=False, add_generation_prompt=False
        )
    except Exception:  # a template raises what it likes
        return None
    _, found, rest = text.rpartition(_ANSWER)
    if not found:
        return None
    return rest


def _header(tokenizer: Any, template: str, chat: Sequence[Mapping[str, str]], role: str) -> str:
    """What stands between an answer and the content of a next turn of this role."""
    rest = _after_answer(tokenizer, template, [*chat, _turn(role, _NEXT)])
    if rest is None or _NEXT not in rest:
        return ""
    return rest.partition(_NEXT)[0].rstrip()
