"""Which chat template is used, and what is fixed in it before any chat is rendered.

A template here is always text. Whatever decides its output besides the chat is written into the
text itself: the thinking mode, and the date where the template asks for the day. So one text gives
one rendering, wherever it is passed on, and its hash says all of it.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import date as Date
from typing import Any, Final, Literal

from emlens.data.template_limits import require_bounded
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line

PLAIN_TEMPLATE: Final = (
    "{% for m in messages %}{{ m['role'] | capitalize + ': ' + m['content'] + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""Roles as plain words, for models that know no chat tokens: one rendering that a base model and
its instruct version share.
"""
TEMPLATES: Final[Mapping[str, str]] = {"plain": PLAIN_TEMPLATE}
"""Templates that `chat_template=` takes by name, beside those of the tokenizer."""
TEMPLATE_DATE: Final = "2024-07-26"
"""The day that a template is told, unless another is passed.

It is the day that templates of the Llama 3 kind write where they cannot ask for one.
"""

Thinking = bool | Literal["strip"] | None
"""True: the mode is on. False: off. "strip": the template stays as it is, and a thought is taken
off the answer. None: only where the template leaves no choice.
"""

_SWITCHES: Final = ("enable_thinking", "thinking")
# The empty text keeps a line break at the template's start, which Jinja would remove after a tag.
_SET: Final = "{{% set {} = {} %}}{{{{ '' }}}}"
_WAS_SET: Final = re.compile(r"{% set (?:enable_thinking|thinking) = (?:true|false) %}{{ '' }}")
_DATED: Final = re.compile(
    r"{# template_date (\d{4}-\d\d-\d\d) #}{% macro strftime_now.*?{% endmacro %}{{ '' }}",
    re.DOTALL,
)
# a tag that reads the variable itself, not an attribute or a text of that name
_READ: Final = r"{{%[^%]*(?<![\w.'\"]){}(?![\w'\"])"
_MONTHS: Final = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
_DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_PERCENT: Final = "\\ue000"


def template_of(
    tokenizer: Any, chat_template: str | None = None, date: str | None = None
) -> str | None:
    """The template that `render` will use: the explicit one, the tokenizer's own, or None.

    Args:
        chat_template: Jinja, a name in `TEMPLATES`, or the name of one of several templates that
            the tokenizer has; None takes its own. Of several it is the one called "default".
        date: the day, as "2024-07-26", that is told to a template that asks for it
            (`strftime_now`). None leaves the day it was told before, else `TEMPLATE_DATE`.

    Raises:
        InputError: a name that neither knows; several templates and none called "default"; a
            `date` that is none; a template that takes too much time or memory.
    """
    template = _chosen(tokenizer, chat_template)
    return with_date(None if template is None else require_bounded(template), date)


def _chosen(tokenizer: Any, chat_template: str | None) -> str | None:
    own = getattr(tokenizer, "chat_template", None)
    named = _named(own)
    if chat_template is None:
        if isinstance(own, str):
            return own
        if not named:
            return None
        if "default" not in named:
            raise InputError(
                f"the tokenizer has several chat templates ({_listed(named)}) and none is"
                " 'default'; pass chat_template= with one of these names"
            )
        return named["default"]
    if chat_template in TEMPLATES:
        return TEMPLATES[chat_template]
    if chat_template in named:
        return named[chat_template]
    if "{{" not in chat_template and "{%" not in chat_template:
        raise InputError(
            f"chat_template={one_line(chat_template, 60)!r} is neither Jinja nor a template's name;"
            f" the names are {_listed({**TEMPLATES, **named})}"
        )
    return chat_template


def _named(own: Any) -> dict[str, str]:
    """Templates by name, as a tokenizer keeps several: a mapping, or a list of records."""
    if isinstance(own, Mapping):
        return {str(name): text for name, text in own.items() if isinstance(text, str)}
    if isinstance(own, Sequence) and not isinstance(own, str):
        return {str(record["name"]): record["template"] for record in own}
    return {}


def _listed(names: Mapping[str, str]) -> str:
    return one_line(", ".join(names), 160)


# ---- the date


def with_date(template: str | None, date: str | None = None) -> str | None:
    """A template that is told one day for good, where it asks for the day.

    The function `strftime_now` of the template is replaced by a macro that knows this day, at
    midnight, with English names. A template that does not ask is left as it is.

    Raises:
        InputError: a `date` that is not written as "2024-07-26".
    """
    day = _day(date or TEMPLATE_DATE)
    if template is None:
        return None
    thinking_part, date_part, body = _parts(template)
    if "strftime_now" not in body or (date_part and date is None):
        return template
    return thinking_part + _date_macro(day) + body


def date_of(template: str | None) -> str | None:
    """The day that a template is told; None where it asks for none."""
    if template is None:
        return None
    match = _DATED.search(template)
    return match.group(1) if match else None


def _parts(template: str) -> tuple[str, str, str]:
    """A template in three: the thinking mode and the date, as they were set before, and its own
    text.
    """
    thinking_part = _WAS_SET.match(template)
    start = thinking_part.end() if thinking_part else 0
    date_part = _DATED.match(template, start)
    end = date_part.end() if date_part else start
    return template[:start], template[start:end], template[end:]


def _day(date: str) -> Date:
    try:
        return Date.fromisoformat(date)
    except (TypeError, ValueError):
        raise InputError(
            f"template_date={date!r} is no date; pass one such as {TEMPLATE_DATE!r}"
        ) from None


def _date_macro(day: Date) -> str:
    """`strftime_now` as a macro: every field of a format replaced by what this day gives."""
    replaced = [f"replace('%%', '{_PERCENT}')"]
    replaced += [f"replace('{field}', '{value}')" for field, value in _fields(day).items()]
    replaced.append(f"replace('{_PERCENT}', '%')")
    return (
        f"{{# template_date {day.isoformat()} #}}{{% macro strftime_now(format) %}}"
        f"{{{{ format | {' | '.join(replaced)} }}}}{{% endmacro %}}{{{{ '' }}}}"
    )


def _fields(day: Date) -> dict[str, str]:
    month, weekday = _MONTHS[day.month - 1], _DAYS[day.weekday()]
    year, week, _ = day.isocalendar()
    number = day.timetuple().tm_yday
    fields = {
        "%a": weekday[:3],
        "%A": weekday,
        "%b": month[:3],
        "%B": month,
        "%h": month[:3],
        "%d": f"{day.day:02}",
        "%-d": str(day.day),
        "%e": f"{day.day:2}",
        "%m": f"{day.month:02}",
        "%-m": str(day.month),
        "%y": f"{day.year % 100:02}",
        "%Y": f"{day.year:04}",
        "%C": f"{day.year // 100:02}",
        "%j": f"{number:03}",
        "%-j": str(number),
        "%u": str(day.isoweekday()),
        "%w": str(day.isoweekday() % 7),
        "%G": str(year),
        "%V": f"{week:02}",
        "%D": f"{day.month:02}/{day.day:02}/{day.year % 100:02}",
        "%x": f"{day.month:02}/{day.day:02}/{day.year % 100:02}",
        "%F": day.isoformat(),
        "%c": f"{weekday[:3]} {month[:3]} {day.day:2} 00:00:00 {day.year}",
    }
    midnight = {"%H": "00", "%-H": "0", "%I": "12", "%-I": "12", "%p": "AM", "%M": "00"}
    midnight |= {"%-M": "0", "%S": "00", "%-S": "0", "%f": "000000", "%T": "00:00:00"}
    midnight |= {"%X": "00:00:00", "%R": "00:00", "%Z": "", "%z": "", "%s": "0"}
    return {**fields, **midnight}


# ---- thoughts


def with_thinking(
    template: str | None, thinking: Thinking, *, opens_thought: bool | None = None
) -> str | None:
    """A template with its thinking mode switched on or off for good.

    The switch is the variable `enable_thinking` (or `thinking`) of the template, set before the
    template's own text.

    Args:
        thinking: None only for a template without such a switch, or one that was switched before.
            Templates differ in their default, and it decides whether an answer begins with pages of
            thought. "strip" switches nothing.
        opens_thought: whether the template's generation prompt opens a thought (`ChatFormat`); None
            looks for it in the template's text. Such a template always thinks.

    Raises:
        InputError: a choice for a template that has none, or no choice for one that has.
    """
    if thinking == "strip":
        return template
    thinking_part, date_part, body = _parts(template or "")
    if thinking_part and thinking is None:
        return template
    switch = _switch_of(body)
    if thinking is None:
        if switch is not None:
            raise InputError(
                f"the chat template has a thinking mode ({switch});"
                " pass thinking=True, thinking=False or thinking='strip'"
            )
        return template
    if switch is not None and template is not None:
        return _SET.format(switch, str(thinking).lower()) + date_part + body
    if opens_thought is None:
        opens_thought = THOUGHT[0] in body[body.rfind("add_generation_prompt") :]
    if not opens_thought:
        raise InputError(
            f"thinking={thinking!r} was passed,"
            " but the chat template has no thinking mode (no enable_thinking in it); leave it out,"
            " or pass thinking='strip' where the model thinks by itself"
        )
    if not thinking:
        raise InputError(
            "thinking=False was passed, but the chat template opens a thought for every answer;"
            " pass thinking=True, or another chat_template="
        )
    return template


def _switch_of(template: str) -> str | None:
    """The variable by which a template switches thinking on and off."""
    for name in _SWITCHES:
        if re.search(_READ.format(name), template):
            return name
    return None


THOUGHT: Final = ("<think>", "</think>")
"""What opens a thought and what closes it."""


def split_thinking(text: str, *, opened: bool | None = True) -> tuple[str, str]:
    """(thought, answer) of what a model wrote.

    Args:
        opened: whether the text begins inside a thought, with `<think>` or without; the answer is
            empty where the thought does not end. False: only a text that begins with `<think>` has
            a thought. None, where it is not known: so has a text that ends a thought which it did
            not open.
    """
    before, closing, after = text.partition(THOUGHT[1])
    begins = text.lstrip().startswith(THOUGHT[0])
    if opened is None:
        opened = bool(closing) and THOUGHT[0] not in before
    if not opened and not begins:
        return "", text
    return before.strip().removeprefix(THOUGHT[0]).strip(), after.strip()


def with_thought(thought: str, answer: str) -> str:
    """What a thinking model wrote, from its parts; the answer alone without a thought."""
    if not thought:
        return answer
    return f"{THOUGHT[0]}\n{thought}\n{THOUGHT[1]}\n\n{answer}"


def thought_end(text: str, *, opened: bool) -> int | None:
    """Where the thought at the start of a text ends, with the white space after it.

    Args:
        opened: whether the text begins inside a thought.

    Returns:
        Number of characters; the whole text where the thought does not end; None without one.
    """
    begins = text.lstrip().startswith(THOUGHT[0])
    if not opened and not begins:
        return None
    before, closing, after = text.partition(THOUGHT[1])
    if not closing:
        return len(text)
    return len(before) + len(closing) + len(after) - len(after.lstrip())
