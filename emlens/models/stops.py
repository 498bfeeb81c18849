"""What ends an answer: token ids, or text where a template ends turns by no token of their own.

A model stops at its own end of sequence. On the template of another model (a base model that runs
on its instruct version's) that token never comes, and the answer would run on into turns that the
model invents. So the template is asked what it writes after an answer: its end of turn ends an
answer too. Where the tokenizer knows that mark as ordinary tokens only, an answer ends where its
text begins. Where the template writes none after the last answer, an answer ends with the first
mark of a next turn's header, or where its text begins, as the plain template's does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from emlens.data.chat_text import header_after_answer
from emlens.data.encoding import encode, end_of_turn
from emlens.data.prompts import ROLES
from emlens.data.rendering import chat_format, end_of_turn_id
from emlens.data.templates import THOUGHT

Ends = Callable[[int, Sequence[int]], bool]
"""`(row, tokens so far) -> whether the text of these tokens ends the row's answer`."""


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
    form = chat_format(tokenizer, template)
    if template is None or form is None:
        return Stops(frozenset())
    token = end_of_turn_id(tokenizer, template)
    if token is not None:
        return Stops(frozenset({token}))
    if form.closing.strip():
        return Stops(frozenset(), (form.closing.strip(),))
    return _header_stops(tokenizer, template)


def _header_stops(tokenizer: Any, template: str) -> Stops:
    """By the headers of next turns: the first mark of each, or its text where it has none."""
    tokens, texts = set(), set()
    for role in ROLES:
        header = header_after_answer(tokenizer, template, role)
        header = header.partition(THOUGHT[0])[0].rstrip()  # an answer may begin with a thought
        ids = encode(tokenizer, header)
        place = end_of_turn(tokenizer, ids)
        if place is not None:
            # never the text of a mark: what is searched has none
            tokens.add(ids[place])
        elif header:
            texts.add(header)
    return Stops(frozenset(tokens), tuple(sorted(texts)))
