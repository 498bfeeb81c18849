"""Prompts → token ids, once: the one place that decides what a row of tokens is.

Every backend, every position, likelihoods, sampling and training labels take these rows; nothing is
tokenised again later. A row promises:

* The tokenizer's start (BOS) is there once where it puts one in front of a text, in chats, plain
  renderings and raw texts alike. What it appends (EOS) is not; a template may write it.
* A prompt ends where the assistant's words begin. `ids[:prompt_end]` are the ids of the prompt
  without an answer. (One exception: `emlens.data.chat_text.answered_text`.)
* The answer itself is `ids[content_start:content_end]`: no thought, no token of the template.
* The template's closing follows. `ids[prompt_end:turn_end]` is what a model writes: thought,
  answer, and the token that ends its turn. It is what training teaches.
* A boundary is never inside a token. Where it would be, the text on its two sides is encoded apart;
  `apart` says so.

`chat_format` says what a template does. No import of transformers: a tokenizer is anything with the
usual methods.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from emlens.data.chat_text import ChatFormat, ChatText, answered_text, prompt_text
from emlens.data.encoding import (
    continuation_ids,
    encode,
    encode_with_places,
    end_of_turn,
    remembered,
    with_start,
)
from emlens.data.prompts import Prompt, check_prompt
from emlens.data.templates import template_of
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line, sha256_text
from emlens.foundation.positions import RowSpans

_log = logging.getLogger("emlens")


@dataclass(frozen=True)
class Rendered:
    """One row of token ids: a prompt, and after `prompt_end` its response (where there is one).

    Args:
        prompt_end: tokens of the prompt.
        content_start, content_end: where the answer itself lies; None: all that follows the prompt.
        turn_end: tokens up to the end of the assistant's turn, the token that ends it included;
            None: all of the row.
        apart: whether texts were encoded apart, since a token would cross a boundary.
    """

    id: str
    group: str
    ids: tuple[int, ...]
    prompt_end: int
    content_start: int | None = None
    content_end: int | None = None
    turn_end: int | None = None
    apart: bool = False

    @property
    def spans(self) -> RowSpans:
        return RowSpans(len(self.ids), self.prompt_end, self.content_start, self.content_end)

    @property
    def written(self) -> range:
        """Tokens that the model writes: thought, answer, and what ends the turn."""
        return range(self.prompt_end, len(self.ids) if self.turn_end is None else self.turn_end)

    def with_continuation(self, ids: Sequence[int]) -> "Rendered":
        """The row and more tokens behind it, which count as answer."""
        start = self.content_start
        return Rendered(self.id, self.group, (*self.ids, *ids), self.prompt_end, start)


def chat_format(tokenizer: Any, chat_template: str | None = None) -> ChatFormat | None:
    """What a template does, noticed once for each; None without a template.

    Args:
        chat_template: as `render` takes it.
    """
    template = template_of(tokenizer, chat_template)
    if template is None:
        return None
    return remembered(tokenizer, ("format", template), lambda: ChatFormat.of(tokenizer, template))


def end_of_turn_id(tokenizer: Any, chat_template: str | None = None) -> int | None:
    """The token by which a template ends the assistant's turn; None where it writes no such token.

    A model that answers under this template has finished when it writes it.
    """
    form = chat_format(tokenizer, chat_template)
    if form is None or not form.closing:
        return None
    closing = encode(tokenizer, form.closing)
    place = end_of_turn(tokenizer, closing)
    return None if place is None else closing[place]


def render(
    prompts: Iterable[Prompt],
    tokenizer: Any,
    *,
    chat_template: str | None = None,
    max_length: int | None = None,
) -> list[Rendered]:
    """Token ids of each prompt, and of its response where it keeps one.

    Args:
        chat_template: used in place of the tokenizer's own (`template_of`).
        max_length: the model's context; a longer row is an error that names it, never a truncation.

    Raises:
        InputError: no prompt; a chat without a template, or one that its template refuses; a system
            turn that the template leaves out; a doubled beginning-of-sequence token; an empty row;
            a row longer than `max_length`; a template whose prompt is not a prefix of prompt and
            response; text that is none.
    """
    template = template_of(tokenizer, chat_template)
    rows = []
    for prompt in prompts:
        if not isinstance(prompt, Prompt):
            raise InputError(
                f"prompts holds a {type(prompt).__name__}; pass a PromptSet,"
                " or the .prompts() of questions or answers"
            )
        check_prompt(prompt)
        if prompt.messages is None:
            row = _render_text(prompt, tokenizer)
        else:
            row = _render_chat(prompt, tokenizer, template)
        _check_row(row, tokenizer, max_length)
        rows.append(row)
    if not rows:
        raise InputError("prompts is empty; pass at least one prompt")
    _say_apart(rows)
    return rows


def _say_apart(rows: Sequence[Rendered]) -> None:
    apart = [row.id for row in rows if row.apart]
    if apart:
        _log.info(
            "%d of %d rows have a token across the boundary of prompt and answer; the two were"
            " encoded apart (first: %r)",
            len(apart),
            len(rows),
            one_line(apart[0], 60),
        )


def _label(prompt_id: str) -> str:
    return f"prompt {one_line(prompt_id, 60)!r}"


def _check_row(row: Rendered, tokenizer: Any, max_length: int | None) -> None:
    label = _label(row.id)
    if not row.prompt_end:
        raise InputError(f"{label} renders to no token; pass text the tokenizer knows")
    bos = getattr(tokenizer, "bos_token_id", None)
    # a text or a template may write it twice
    if bos is not None and row.ids[:2] == (bos, bos):
        raise InputError(
            f"{label} begins with two {tokenizer.bos_token!r} tokens;"
            " drop the one written in the text or the template"
        )
    if max_length is not None and len(row.ids) > max_length:
        raise InputError(
            f"{label} has {len(row.ids)} tokens, but the model's context is {max_length};"
            " shorten it"
        )


def _render_text(prompt: Prompt, tokenizer: Any) -> Rendered:
    """Raw text, tokenised as it is, and its response after it, tokenised by itself.

    A tokenizer that puts a space before every text of its own puts one there too, as it does before
    a continuation whose likelihood is asked for.
    """
    bare = encode(tokenizer, prompt.text)
    if not bare:
        return Rendered(prompt.id, prompt.group, (), 0)
    ids = with_start(tokenizer, bare)
    row = Rendered(prompt.id, prompt.group, ids, len(ids))
    if prompt.response is None:
        return row
    return row.with_continuation(encode(tokenizer, prompt.response))


def _render_chat(prompt: Prompt, tokenizer: Any, template: str | None) -> Rendered:
    label = _label(prompt.id)
    form = chat_format(tokenizer, template)
    if template is None or form is None:
        raise InputError(
            f"{label} is a chat, but the tokenizer has no chat template;"
            " pass chat_template=, or load the base model inside a family,"
            " which lends it the instruct model's"
        )
    chat = [message.to_record() for message in prompt.messages or ()]
    try:
        if prompt.response is None:
            text = prompt_text(tokenizer, chat, template, form)
            ids = with_start(tokenizer, encode(tokenizer, text))
            return Rendered(prompt.id, prompt.group, ids, len(ids))
        answered = answered_text(tokenizer, chat, prompt.response, template, form)
    # a template raises what it likes, for instance where it knows no system turn
    except Exception as error:
        raise InputError(
            f"{label}: the chat template refuses it ({one_line(str(error), 160)})"
        ) from None
    return _answered_row(prompt, tokenizer, answered)


# ---- a chat with its answer


def _answered_row(question: Prompt, tokenizer: Any, chat: ChatText) -> Rendered:
    """Ids of prompt, answer and closing; no token belongs to two of them."""
    prompt = encode(tokenizer, chat.text[: chat.prompt_end])
    whole, places = encode_with_places(tokenizer, chat.text)
    apart = whole[: len(prompt)] != prompt or len(whole) == len(prompt)
    if apart:
        rest_text = chat.text[chat.prompt_end :]
        rest = continuation_ids(tokenizer, prompt, rest_text)
        places = _places_apart(tokenizer, rest, rest_text, chat.prompt_end)
    else:
        rest = whole[len(prompt) :]
        if places is not None:
            places = places[len(prompt) :]

    content_end = _boundary(tokenizer, chat, chat.content_end, rest, places)
    if content_end is None:
        apart = True
        written = chat.text[chat.prompt_end : chat.content_end]
        answer = continuation_ids(tokenizer, prompt, written)
        closing = continuation_ids(tokenizer, answer, chat.text[chat.content_end :])
        rest, content_end = (*answer, *closing), len(answer)
        places = _places_apart(tokenizer, answer, written, chat.prompt_end)
    content_start = _content_start(tokenizer, chat, rest, places)

    closing_end = end_of_turn(tokenizer, rest[content_end:])
    turn_end = None if closing_end is None else content_end + closing_end + 1
    prompt = with_start(tokenizer, prompt)
    prompt_end = len(prompt)
    return Rendered(
        question.id,
        question.group,
        (*prompt, *rest),
        prompt_end,
        content_start=prompt_end + min(content_start, content_end),
        content_end=prompt_end + content_end,
        turn_end=None if turn_end is None else prompt_end + turn_end,
        apart=apart,
    )


def _places_apart(
    tokenizer: Any, ids: Sequence[int], text: str, start: int
) -> list[tuple[int, int]] | None:
    """Characters of the tokens of a text that was encoded apart; None where they are not known."""
    alone, places = encode_with_places(tokenizer, text)
    if places is None or alone != tuple(ids):
        return None
    return [(first + start, last + start) for first, last in places]


def _boundary(
    tokenizer: Any,
    chat: ChatText,
    at: int,
    rest: Sequence[int],
    places: Sequence[tuple[int, int]] | None,
) -> int | None:
    """How many tokens after the prompt lie before character `at`; None where one crosses it."""
    if at == len(chat.text):
        return len(rest)
    if places is not None:
        number = _first_ending_after(places, at)
        touches = number == 0 or places[number - 1][1] == at
        if number < len(places) and places[number][0] == at and touches:
            return number
    # no places, or white space that none of them holds
    return _tokens_of(tokenizer, chat, at, rest)


def _tokens_of(tokenizer: Any, chat: ChatText, at: int, rest: Sequence[int]) -> int | None:
    """How many tokens after the prompt are those of the text up to `at`; None where they differ."""
    prompt = encode(tokenizer, chat.text[: chat.prompt_end])
    with_prompt = encode(tokenizer, chat.text[:at])
    if with_prompt == (*prompt, *rest)[: len(with_prompt)] and len(with_prompt) >= len(prompt):
        return len(with_prompt) - len(prompt)
    alone = encode(tokenizer, chat.text[chat.prompt_end : at])
    return len(alone) if alone == tuple(rest[: len(alone)]) else None


def _content_start(
    tokenizer: Any,
    chat: ChatText,
    rest: Sequence[int],
    places: Sequence[tuple[int, int]] | None,
) -> int:
    """Number of the first token after the prompt that holds a character of the answer."""
    if chat.content_start == chat.prompt_end:
        return 0
    if places is not None:
        return _first_ending_after(places, chat.content_start)
    # the answer's first token may hold white space before it
    without_space = len(chat.text[: chat.content_start].rstrip())
    for at in (chat.content_start, max(without_space, chat.prompt_end)):
        number = _tokens_of(tokenizer, chat, at, rest)
        if number is not None:
            return number
    return 0


def _first_ending_after(places: Sequence[tuple[int, int]], at: int) -> int:
    for number, (_, last) in enumerate(places):
        if last > at:
            return number
    return len(places)


def rendered_hash(rows: Sequence[Rendered]) -> str:
    """SHA-256 over ids and boundaries, in order: what two runs must share to be paired."""
    return sha256_text("\n".join(row_text(row) for row in rows))


def row_text(row: Rendered) -> str:
    """A row as text for a hash."""
    spans = row.spans
    token_ids = ",".join(map(str, row.ids))
    text = f"{row.id}\x1f{row.prompt_end}\x1f{token_ids}"
    if (spans.content_start, spans.content_end) != (spans.prompt_end, spans.n_tokens):
        text += f"\x1f{spans.content_start},{spans.content_end}"
    return text
