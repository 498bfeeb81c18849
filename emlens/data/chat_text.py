"""A chat as its template writes it: the text, and which characters are prompt, answer and closing.

Where the assistant's words begin and end is found without knowing the template: the chat is
rendered with the answer and with another answer in its place. What differs is the answer. So a
template may trim the answer, put a space before it, or move a thought; what it writes around it is
never taken for content.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from emlens.data.templates import THOUGHT, thought_end
from emlens.foundation.errors import InputError

GenerationPrompt = Literal["on request", "always", "never", "not needed"]
"""How a template opens the answer: when `add_generation_prompt` is set; whether asked or not; not
at all, though it heads an answer; or there is nothing to write between question and answer.
"""
_OTHER: Final = "QZ"
"""Letters of the answer that stands in for the real one."""
_SOME, _ELSE = "Q1Q", "Z2Z"
"""Two contents that differ from their first to their last character."""
_MARK: Final = re.compile(r"[<\[][^>\]]*[>\]]")
"""A mark such as `<|im_end|>` or `[/INST]`."""
_PLAIN_CHATS: Final = (
    [{"role": "user", "content": "x"}],
    [{"role": "system", "content": "y"}, {"role": "user", "content": "x"}],
)
"""Chats on which a template is looked at: a question, and one behind a system turn. Some templates
want the second.
"""


@dataclass(frozen=True)
class ChatText:
    """A rendered chat.

    Args:
        text: as the template writes it.
        prompt_end: characters of the prompt, the opening of the answer included; what follows is
            written by the assistant.
        content_start: where the answer itself begins: after a thought, and after white space that
            the template puts before an answer.
        content_end: where it ends; the template's closing of the turn follows.
    """

    text: str
    prompt_end: int
    content_start: int
    content_end: int


@dataclass(frozen=True)
class ChatFormat:
    """What a template does, noticed on a chat of one question.

    Args:
        generation_prompt: how it opens an answer.
        header: what it writes before an answer but not at the end of a prompt; prompts get it.
        repeated: the opening of the next answer, which it writes after an answer too ("always").
        opens_thought: whether the opening of an answer opens a thought as well.
        closing: what it writes after an answer.
    """

    generation_prompt: GenerationPrompt = "on request"
    header: str = ""
    repeated: str = ""
    opens_thought: bool = False
    closing: str = ""

    @classmethod
    def of(cls, tokenizer: Any, template: str) -> "ChatFormat":
        """What this template does.

        Where it refuses a plain question, with and without a system turn: what most templates do.
        """
        for chat in _PLAIN_CHATS:
            try:
                return cls._noticed(tokenizer, template, chat)
            except Exception:  # a template raises what it likes; each chat is rendered by itself
                continue
        return cls()

    @classmethod
    def _noticed(cls, tokenizer: Any, template: str, chat: list[dict[str, str]]) -> "ChatFormat":
        question = chat_text(tokenizer, chat, template, opens_answer=False)
        prompt = chat_text(tokenizer, chat, template, opens_answer=True)
        text = chat_text(tokenizer, [*chat, _answer(_SOME)], template, opens_answer=False)
        other_text = chat_text(tokenizer, [*chat, _answer(_ELSE)], template, opens_answer=False)
        start, end = _differing(text, other_text)
        closing = text[end:]
        opens_thought = prompt.rstrip().endswith(THOUGHT[0])
        if question != prompt:
            return cls("on request", opens_thought=opens_thought, closing=closing)
        before_answer = text[:start].rstrip(" ")
        header = ""
        if before_answer.startswith(prompt):
            header = before_answer.removeprefix(prompt)
        repeated = _repeated_opening(prompt, closing)
        kind: GenerationPrompt = "never" if header else "not needed"
        if repeated:
            kind = "always"
        closing = closing.removesuffix(repeated)
        return cls(kind, header, repeated, opens_thought, closing)


def header_after_answer(tokenizer: Any, template: str, role: str) -> str:
    """What a template writes between an answer and the content of a next turn of this role.

    The closing of the answer is part of it. "" where the template refuses such a chat, or hides the
    answer or the next turn.
    """
    next_turn, other_turn = {"role": role, "content": _SOME}, {"role": role, "content": _ELSE}
    for chat in _PLAIN_CHATS:
        chats = (
            [*chat, _answer(_SOME), next_turn],
            [*chat, _answer(_ELSE), next_turn],
            [*chat, _answer(_SOME), other_turn],
        )
        try:
            texts = [chat_text(tokenizer, c, template, opens_answer=False) for c in chats]
        except Exception:  # a template raises what it likes
            continue
        text, other_answer, other_next = texts
        answer_start, answer_end = _differing(text, other_answer)
        next_start, next_end = _differing(text, other_next)
        if answer_start < answer_end and next_start < next_end:
            return text[answer_end:next_start]
    return ""


def chat_text(
    tokenizer: Any, chat: list[dict[str, str]], template: str, *, opens_answer: bool
) -> str:
    """The chat as the template writes it."""
    text: str = tokenizer.apply_chat_template(
        chat, chat_template=template, tokenize=False, add_generation_prompt=opens_answer
    )
    return text


def prompt_text(tokenizer: Any, chat: list[dict[str, str]], template: str, form: ChatFormat) -> str:
    """What a model is given: the chat and the opening of the answer.

    Where the template writes no opening, it is the header of its answers.

    Raises:
        InputError: a system turn that the template leaves out.
    """
    text = chat_text(tokenizer, chat, template, opens_answer=True)
    if _drops_system(text, tokenizer, chat, template):
        raise InputError("it leaves the system turn out")
    return text + form.header


def answered_text(
    tokenizer: Any,
    chat: list[dict[str, str]],
    answer: str,
    template: str,
    form: ChatFormat,
) -> ChatText:
    """The chat with an answer.

    The prompt is what `prompt_text` gives, with one exception. Where it opens a thought and the
    answer brings none, or it closes the thought and the answer brings one, the template's own
    rendering of the answered chat is kept, and the prompt ends before the thought.

    Raises:
        InputError: the answer is empty, the template does not write it, or writes another prompt
            before it.
    """
    prompt = prompt_text(tokenizer, chat, template, form)
    text = chat_text(tokenizer, [*chat, _answer(answer)], template, opens_answer=False)
    stand_in = chat_text(
        tokenizer, [*chat, _answer(_stand_in(answer))], template, opens_answer=False
    )
    start, end = _differing(text, stand_in)
    if start >= end:
        if text != stand_in:  # another answer is written
            raise InputError("its answer is empty (after the template trimmed it)")
        raise InputError("it leaves the answer out")
    if text[end:].endswith(form.repeated):
        text = text.removesuffix(form.repeated)
    if text.startswith(prompt) and start >= len(prompt):
        return _content_after_thought(
            ChatText(text, len(prompt), start, end), opened=form.opens_thought
        )

    shared = shared_start(text[:start], prompt)
    opening = prompt.rfind(THOUGHT[0], 0, shared)
    if opening >= 0 and THOUGHT[1] not in prompt[opening:shared]:
        shared = opening
    surplus = prompt[shared:].strip()
    has_thought = THOUGHT[1] in answer
    if surplus.startswith(THOUGHT[0]) and surplus.endswith(THOUGHT[1]) and not has_thought:
        # a thought that was closed at once: what follows it is the answer
        moved = len(prompt) - start
        return ChatText(prompt + text[start:], len(prompt), len(prompt), end + moved)
    if surplus == THOUGHT[0] and has_thought:
        # whole, as the model wrote it: some templates drop the thoughts of answers
        written = answer.lstrip().removeprefix(THOUGHT[0]).lstrip("\n").rstrip()
        stop = len(prompt + written)
        whole = ChatText(prompt + written + text[end:], len(prompt), len(prompt), stop)
        return _content_after_thought(whole, opened=True)
    if surplus.startswith(THOUGHT[0]):
        return _content_after_thought(ChatText(text, shared, max(start, shared), end), opened=False)
    raise InputError(
        "it renders prompt and answer so that the prompt is not a prefix of them;"
        " the answer's tokens cannot be distinguished"
    )


def _content_after_thought(row: ChatText, *, opened: bool) -> ChatText:
    """The same row, whose content begins after the thought that the assistant wrote first."""
    written = row.text[row.prompt_end : row.content_end]
    length = thought_end(written, opened=opened and THOUGHT[1] in written)
    if length is None:
        return row
    if row.content_start >= row.prompt_end + len(written[:length].rstrip()):
        return row  # the template wrote the thought; the answer begins where it was put
    start = max(row.content_start, row.prompt_end + length)
    return ChatText(row.text, row.prompt_end, min(start, row.content_end), row.content_end)


def _answer(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def _stand_in(answer: str) -> str:
    """An answer that begins and ends otherwise than this one."""
    words = answer.strip() or " "
    return f"{_other_letter(words[0])}0{_other_letter(words[-1])}"


def _other_letter(letter: str) -> str:
    return _OTHER[1] if letter == _OTHER[0] else _OTHER[0]


def _differing(text: str, other: str) -> tuple[int, int]:
    """Start and end of the part of `text` that differs from `other`."""
    start = shared_start(text, other)
    same = shared_start(text[start:][::-1], other[start:][::-1])
    return start, len(text) - same


def shared_start(text: Sequence[Any], other: Sequence[Any]) -> int:
    """How many characters, or tokens, both begin with."""
    for i, (a, b) in enumerate(zip(text, other, strict=False)):
        if a != b:
            return i
    return min(len(text), len(other))


def _repeated_opening(prompt: str, closing: str) -> str:
    """The opening of the next answer, which some templates write after an answer too.

    It follows the end of the turn: white space, and one mark such as `<|im_end|>`.
    """
    rest = closing.lstrip()
    mark = _MARK.match(rest)
    if mark is not None:
        rest = rest[mark.end() :].lstrip()
    return rest if rest and prompt.endswith(rest) else ""


def _drops_system(text: str, tokenizer: Any, chat: list[dict[str, str]], template: str) -> bool:
    """Whether there are system turns that make no difference to the text."""
    without_system = [message for message in chat if message["role"] != "system"]
    if len(without_system) == len(chat):
        return False
    try:
        return chat_text(tokenizer, without_system, template, opens_answer=True) == text
    except Exception:  # a template that wants a system turn does not drop it
        return False
