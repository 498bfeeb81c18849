"""Settings that a command reads as `--set NAME=VALUE`.

An option of its own has what almost every call passes; what is rarely changed is a setting, so that
the help of a command stays short. docs/command_line.md lists them all.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Setting(NamedTuple):
    """How a value is read.

    Args:
        read: from text; raises ValueError where it does not fit.
        kind: what it must be, for messages.
        description: for the page; what it is set to without `--set` included.
    """

    read: Callable[[str], Any]
    kind: str
    description: str


def whole_number(description: str) -> Setting:
    """A setting that is a whole number."""
    return Setting(int, "a whole number", description)


def count(description: str) -> Setting:
    """A setting that is a whole number of 1 or more."""
    return Setting(_count, "a whole number of at least 1", description)


def number(description: str) -> Setting:
    """A setting that is a number."""
    return Setting(float, "a number", description)


def dimension(description: str) -> Setting:
    """A setting that is a count, a share of variance, or `elbow`."""
    return Setting(_dimension, "a whole number, a share such as 0.95, or elbow", description)


def text(description: str) -> Setting:
    """A setting that is a text."""
    return Setting(str, "a text", description)


def names(description: str) -> Setting:
    """A setting that is several names, with commas between them."""
    return Setting(split_names, "names with commas between them", description)


def yes_or_no(description: str) -> Setting:
    """A setting that is yes or no."""
    return Setting(_yes_or_no, "yes or no", description)


def split_names(words: str) -> tuple[str, ...]:
    """Names with commas between them; blanks around them and empty ones do not count."""
    return tuple(filter(None, (name.strip() for name in words.split(","))))


ENDPOINT_SETTINGS: Mapping[str, Setting] = {
    "key_env": text("environment variable that holds the endpoint's key (OPENAI_API_KEY)"),
    "concurrency": whole_number("requests under way at once (8)"),
    "requests_per_minute": number("rate limit (none)"),
    "max_requests": whole_number("budget of requests, repeated ones included (none)"),
}
"""Of a command that asks an endpoint."""


def layer_numbers(words: str) -> list[int] | None:
    """The blocks of `--layers`; None where all are meant.

    Raises:
        InputError: a word that is no whole number.
    """
    from emlens.foundation.errors import InputError

    try:
        return [int(word) for word in split_names(words)] or None
    except ValueError:
        raise InputError(f"--layers {words!r} are no whole numbers; pass 0,8,16") from None


def lines_of_text(path: Path) -> list[str]:
    """The lines of a text file that are not blank.

    Raises:
        InputError: no such file, not UTF-8, no line of text.
    """
    from emlens.data.readers import read_text
    from emlens.foundation.errors import InputError

    lines = [line for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{path}: holds no line of text")
    return lines


def read_settings(words: Sequence[str], settings: Mapping[str, Setting]) -> dict[str, Any]:
    """The values of `NAME=VALUE` words.

    Raises:
        InputError: a word without `=`, a setting that is unknown, given twice, or has another kind
            of value.
    """
    from emlens.foundation.errors import InputError

    values: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in settings:
            raise InputError(
                f"--set {word}: pass NAME=VALUE with one of the names {', '.join(settings)}",
                name=name,
                known=settings,
            )
        if name in values:
            raise InputError(f"--set {word}: {name} was given twice; pass it once")
        try:
            values[name] = settings[name].read(value)
        except ValueError:
            raise InputError(f"--set {word}: pass {settings[name].kind}") from None
    return values


def help_text(settings: Mapping[str, Setting]) -> str:
    """What the help of a command says of its settings."""
    return f"NAME=VALUE, repeatable: {', '.join(settings)} (see docs/command_line.md)."


def _count(word: str) -> int:
    if int(word) < 1:
        raise ValueError
    return int(word)


def _dimension(word: str) -> int | float | str:
    if word == "elbow":
        return word
    try:
        return _count(word)
    except ValueError:
        share = float(word)
    if not 0 < share < 1:
        raise ValueError
    return share


def _yes_or_no(word: str) -> bool:
    if word.lower() not in ("yes", "no"):
        raise ValueError
    return word.lower() == "yes"
