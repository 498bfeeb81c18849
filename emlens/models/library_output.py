"""What other libraries print while they load somebody else's files, without what steers a terminal.

Names of tensors, types and templates come from the files, and reports of the libraries repeat them
as they are. Here colours are left out and control characters are shown as escapes (`\\x1b`); line
ends and tabs stay.

One thread loads at a time. transformers changes functions of its own and of torch while it builds a
model, and undoes it in an order that two threads would mix up: afterwards no model of the process
could be loaded.
"""

import logging
import re
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from emlens.models.turn_lock import TurnLock

_LOADING: Final = TurnLock(
    "loading a model, for which libraries change themselves", "start the child with 'spawn'"
)
_LIBRARIES: Final = ("", "transformers", "peft", "accelerate", "huggingface_hub", "safetensors")
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")


def escaped(text: str) -> str:
    """Text without colours; control and direction characters as escapes."""
    plain = _COLOUR.sub("", text)
    if plain.isprintable():
        return plain
    return "".join(_shown(character) for character in plain)


def _shown(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf"):
        return character
    return character.encode("unicode_escape").decode("ascii")


@contextmanager
def escaped_output() -> Iterator[None]:
    """While the block runs, logs and warnings of the libraries are escaped on their way out.

    Other threads wait with their own blocks until it ends.

    Raises:
        StateError: in a process that was forked while another thread was in such a block.
    """
    with _LOADING, _escaping():
        yield


@contextmanager
def _escaping() -> Iterator[None]:
    def escapes(record: logging.LogRecord) -> bool:
        record.msg, record.args = escaped(record.getMessage()), ()
        return True

    handlers = [
        handler for name in _LIBRARIES for handler in logging.getLogger(name or None).handlers
    ]
    for handler in handlers:
        handler.addFilter(escapes)
    original = warnings.formatwarning

    def formatted(*arguments: Any, **options: Any) -> str:
        return escaped(original(*arguments, **options))

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = original
        for handler in handlers:
            handler.removeFilter(escapes)
