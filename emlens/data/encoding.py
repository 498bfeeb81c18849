"""Text → token ids, the same way everywhere.

Special tokens of a row are decided here alone: the ids that a tokenizer puts in front of every text
come once at the start of a row, those that it appends come never. A text that follows other tokens
is encoded so that it says the same after them. No import of transformers: a tokenizer is anything
with the usual methods.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

from emlens.data.templates import THOUGHT
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line

_T = TypeVar("_T")
_REMEMBERED: Final[WeakKeyDictionary[Any, dict[Hashable, Any]]] = WeakKeyDictionary()
"""Tokenizer → what was computed of it, as long as it lives."""
_CONTEXT: Final = 16
"""Tokens before a continuation that are looked at to see how it reads after them."""


def remembered(tokenizer: Any, key: Hashable, compute: Callable[[], _T]) -> _T:
    """What `compute` gives, computed once for each tokenizer and key."""
    try:
        values = _REMEMBERED.setdefault(tokenizer, {})
    except TypeError:  # neither hashable nor weakly referenced
        return compute()
    if key not in values:
        values[key] = compute()
    value: _T = values[key]
    return value


def encode(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Ids of a text alone, without special tokens that the tokenizer adds.

    Raises:
        InputError: half of a surrogate pair in it.
    """
    check_is_text(text, "a text")
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode_with_places(
    tokenizer: Any, text: str
) -> tuple[tuple[int, ...], list[tuple[int, int]] | None]:
    """Ids of a text, and the characters that each stands for; None where the tokenizer does not
    say.
    """
    if not getattr(tokenizer, "is_fast", False):
        return encode(tokenizer, text), None
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return tuple(encoded["input_ids"]), [tuple(place) for place in encoded["offset_mapping"]]


def start_ids(tokenizer: Any) -> tuple[int, ...]:
    """The ids that a tokenizer puts in front of every text; mostly its beginning-of-sequence token,
    or nothing.
    """
    return remembered(tokenizer, "start", lambda: _start_ids(tokenizer))


def _start_ids(tokenizer: Any) -> tuple[int, ...]:
    whole, bare = tuple(tokenizer("x")["input_ids"]), encode(tokenizer, "x")
    if not bare:
        begins_with_bos = whole[:1] == (getattr(tokenizer, "bos_token_id", None),)
        return whole[:1] if begins_with_bos else ()
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start]
    return ()


def with_start(tokenizer: Any, ids: Sequence[int]) -> tuple[int, ...]:
    """The ids with the tokenizer's start in front, unless they begin with it."""
    start = start_ids(tokenizer)
    if tuple(ids[: len(start)]) == start:
        return tuple(ids)
    return (*start, *ids)


def continuation_ids(tokenizer: Any, before: Sequence[int], text: str) -> tuple[int, ...]:
    """Ids of a text that follows other tokens, none of which changes.

    The text is encoded apart. Some tokenizers put a space before every text of its own; then it is
    encoded behind another text that is cut off again. What counts is that the tokens read, behind
    those before them, as exactly this text. Where no way of encoding does (a tokenizer that drops
    or changes characters), the text's own ids are taken.
    """
    apart = encode(tokenizer, text)
    context = list(before[-_CONTEXT:])
    context_text = _read(tokenizer, context)
    right_text = context_text + text
    if not hasattr(tokenizer, "decode") or _read(tokenizer, [*context, *apart]) == right_text:
        return apart
    for anchor in (context_text[-1:], ":", "x"):
        head = encode(tokenizer, anchor)
        longer = encode(tokenizer, anchor + text)
        if not anchor or longer[: len(head)] != head:
            continue
        if _read(tokenizer, [*context, *longer[len(head) :]]) == right_text:
            return longer[len(head) :]
    return apart


def _read(tokenizer: Any, ids: Sequence[int]) -> str:
    if not hasattr(tokenizer, "decode"):
        return ""
    text: str = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return text


def text_with_thought(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of what a model wrote: without special tokens, but with the marks of a thought,
    which are special tokens of some tokenizers.
    """
    marks = {}
    for mark in THOUGHT:
        token = tokenizer.convert_tokens_to_ids(mark)
        is_known = token is not None and token != getattr(tokenizer, "unk_token_id", None)
        if is_known and not tokenizer.decode([token], skip_special_tokens=True):
            marks[token] = mark
    parts: list[str] = []
    start = 0
    for i, token in enumerate(ids):
        if token in marks:
            parts += [tokenizer.decode(ids[start:i], skip_special_tokens=True), marks[token]]
            start = i + 1
    return "".join([*parts, tokenizer.decode(ids[start:], skip_special_tokens=True)])


def text_for_words(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of a row as words can be counted in it: special tokens stand apart from words.

    Written without spaces, the last word of a question would be another word with the token that
    ends the turn glued to it.
    """
    marks = mark_ids(tokenizer)
    parts: list[str] = []
    start = 0
    for i, token in enumerate(ids):
        if token in marks:
            parts += [_read(tokenizer, ids[start:i]), _read(tokenizer, [token])]
            start = i + 1
    parts.append(_read(tokenizer, ids[start:]))
    return " ".join(part for part in parts if part)


def mark_ids(tokenizer: Any) -> frozenset[int]:
    """Tokens that are no ordinary text: special and added ones.

    Remembered for each tokenizer until its vocabulary grows: Gemma takes 0.2 s to list its 6,000.
    """
    try:
        size = len(tokenizer)
    except TypeError:  # it has no size
        return _mark_ids(tokenizer)
    return remembered(tokenizer, ("marks", size), lambda: _mark_ids(tokenizer))


def _mark_ids(tokenizer: Any) -> frozenset[int]:
    ids: set[Any] = {getattr(tokenizer, "eos_token_id", None)}
    ids |= set(getattr(tokenizer, "all_special_ids", ()))
    ids |= set(getattr(tokenizer, "added_tokens_decoder", ()))
    return frozenset(ids - {None})


def end_of_turn(tokenizer: Any, closing: Sequence[int]) -> int | None:
    """Number of the token among `closing` that ends the turn: the first mark that is no white
    space.
    """
    marks = mark_ids(tokenizer)
    for i, token in enumerate(closing):
        # some tokenizers add white space as tokens of its own, which ends nothing
        if token in marks and _read(tokenizer, [token]).strip():
            return i
    return None


def check_is_text(text: str, label: str) -> None:
    """Refuse a text that no tokenizer can read.

    Raises:
        InputError: half of a surrogate pair, which is no character.
    """
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise InputError(
            f"{one_line(label, 90)} holds U+{code:04X} at character {error.start}, half of a"
            " surrogate pair, which is no text; replace it"
        ) from None
