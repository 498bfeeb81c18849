"""What a call takes for prompts: a string, a list of strings, a conversation, a list of them, a
data frame, or a set of this package.

A string is raw text: it is tokenised as it is. A conversation is a list of turns, each with `role`
and `content`; one that ends with an assistant turn keeps that turn as its answer. Refused: anything
else, and a mix.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import pandas as pd

from emlens.data.answers import Answers
from emlens.data.prompts import Prompt, PromptSet, chat_prompt
from emlens.data.questions import Question, QuestionSet
from emlens.foundation.errors import InputError

logger = logging.getLogger("emlens")
Turns = Sequence[Mapping[str, str]]
"""A conversation: turns with `role` and `content`."""
PromptsLike = (
    PromptSet
    | QuestionSet
    | Answers
    | pd.DataFrame
    | str
    | Iterable[Prompt]
    | Iterable[str]
    | Turns
    | Iterable[Turns]
)
BARE: Final = "bare_text"
"""Key of a prompt's `meta`: it came as a string, and not as a `Prompt` that its user made."""
TEXT_COLUMNS: Final = ("text", "prompt", "question")
CHAT_COLUMN: Final = "messages"


def as_prompts(prompts: PromptsLike) -> PromptSet:
    """The prompts that a call was given, as a `PromptSet`.

    Args:
        prompts: a string; strings; a conversation; conversations; a frame with the column
            `messages`, or `text`, `prompt` or `question`, and `id` and `group` where it has them; a
            `PromptSet`, `QuestionSet`, `Answers` (their texts are kept as responses), or prompts.

    Raises:
        InputError: says what came and what to pass; what a `PromptSet` refuses.
    """
    if isinstance(prompts, PromptSet):
        return prompts
    if isinstance(prompts, QuestionSet | Answers):
        return prompts.prompts()
    if isinstance(prompts, pd.DataFrame):
        return _from_frame(prompts)
    if isinstance(prompts, str):
        return _from_texts([prompts])
    if not isinstance(prompts, Iterable) or isinstance(prompts, Mapping | bytes):
        raise InputError(f"prompts is a {type(prompts).__name__}; {_WANTED}")
    items: list[Any] = list(prompts)
    if not items:
        raise InputError(f"prompts is empty; {_WANTED}")
    if all(isinstance(item, Prompt) for item in items):
        return PromptSet(items)
    if all(isinstance(item, str) for item in items):
        return _from_texts(items)
    if all(isinstance(item, Mapping) for item in items):
        return _from_chats([items])
    if all(_is_chat(item) for item in items):
        return _from_chats(items)
    kinds = ", ".join(dict.fromkeys(type(item).__name__ for item in items))
    raise InputError(f"prompts holds {kinds}; {_WANTED}")


def as_questions(questions: QuestionSet | str | Iterable[str]) -> QuestionSet:
    """The questions that a call was given: a `QuestionSet`, one text, or several, numbered from 0.

    Raises:
        InputError: anything else, no text, or a blank one.
    """
    if isinstance(questions, QuestionSet):
        return questions
    texts: list[Any] = []
    if isinstance(questions, str):
        texts = [questions]
    elif isinstance(questions, Iterable) and not isinstance(questions, Mapping):
        texts = list(questions)
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise InputError(
            f"questions is a {type(questions).__name__}; pass a QuestionSet, a text, or a list of"
            " texts"
        )
    return QuestionSet(Question(str(i), text) for i, text in enumerate(texts))


_WANTED = (
    "pass a string, a list of strings, a conversation (a list of turns with role and content), a"
    " list of them, a data frame, or a PromptSet, QuestionSet or Answers"
)


def warn_of_bare_texts(prompts: Sequence[Prompt], model: str, chat_template: str | None) -> None:
    """Warn, once a model, that strings are read as raw text although the model has a template."""
    if chat_template is None or model in _WARNED:
        return
    if any(isinstance(prompt, Prompt) and prompt.meta.get(BARE) for prompt in prompts):
        _WARNED.add(model)
        logger.warning(
            "%s has a chat template, and strings are read as raw text, without it; for questions"
            " pass PromptSet.from_questions([...]), or conversations",
            model,
        )


_WARNED: set[str] = set()
"""Models that were warned of."""


def _is_chat(item: object) -> bool:
    """Whether an item is a list of turns."""
    is_list = isinstance(item, Sequence) and not isinstance(item, str) and len(item) > 0
    return is_list and all(isinstance(turn, Mapping) for turn in item)  # type: ignore[attr-defined]


def _from_texts(
    texts: Sequence[str], ids: Sequence[str] | None = None, groups: Sequence[str] | None = None
) -> PromptSet:
    if not all(text.strip() for text in texts):
        raise InputError("prompts holds an empty text; pass texts that are not blank")
    names = ids or [str(i) for i in range(len(texts))]
    groups = groups or [""] * len(texts)
    triples = zip(names, texts, groups, strict=True)
    return PromptSet(Prompt(name, text, group, meta={BARE: True}) for name, text, group in triples)


def _from_chats(
    chats: Sequence[Turns], ids: Sequence[str] | None = None, groups: Sequence[str] | None = None
) -> PromptSet:
    names = ids or [str(i) for i in range(len(chats))]
    groups = groups or [""] * len(chats)
    prompts = []
    for name, chat, group in zip(names, chats, groups, strict=True):
        is_answered = chat[-1].get("role") == "assistant"
        upto: Any = "all" if is_answered else "last_user"
        where = f"prompts: chat {name}"
        prompts.append(chat_prompt(name, chat, group=group, upto=upto, where=where))
    return PromptSet(prompts)


def _from_frame(frame: pd.DataFrame) -> PromptSet:
    if not len(frame):
        raise InputError("prompts is a data frame without rows; pass one with at least one")
    ids = _strings(frame, "id")
    groups = _strings(frame, "group")
    if CHAT_COLUMN in frame.columns:
        return _from_chats(frame[CHAT_COLUMN].tolist(), ids, groups)
    for column in TEXT_COLUMNS:
        if column in frame.columns:
            return _from_texts(list(map(str, frame[column])), ids, groups)
    raise InputError(
        f"prompts is a data frame with the columns {', '.join(map(str, frame.columns))};"
        f" it needs {CHAT_COLUMN}, or one of {', '.join(TEXT_COLUMNS)}"
    )


def _strings(frame: pd.DataFrame, column: str) -> list[str] | None:
    return list(map(str, frame[column])) if column in frame.columns else None
