"""The errors emlens raises on purpose.

Each is an `EmlensError` and also the built-in a caller would expect, so `except ValueError` keeps
working. A message names the argument, shows what was given, and says what to pass. Nothing here
formats tracebacks or logs.
"""

from collections.abc import Iterable

from emlens.foundation.suggestions import did_you_mean


class EmlensError(Exception):
    """Base of every error raised on purpose."""


class NamingError(EmlensError):
    """Base of the errors that a wrong name causes.

    Args:
        message: what was passed where, and what there is.
        name: what was passed for a name, and `known`: the names there are; the one that was
            probably meant is put at the end of the message.
    """

    def __init__(self, message: str = "", *, name: object = None, known: Iterable[object] = ()):
        super().__init__(message + did_you_mean(name, known))


class InputError(NamingError, ValueError):
    """An argument, a file or a configuration holds something that cannot be used."""


class UnknownNameError(NamingError, KeyError):
    """A name was looked up that does not exist; the message lists those that do."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0]) if self.args else ""


class LoadError(EmlensError, OSError):
    """A model, an adapter or a file could not be loaded."""


class MissingExtraError(EmlensError, ImportError):
    """An optional dependency is missing; the message says what to install."""


class StateError(EmlensError, RuntimeError):
    """The call is valid but not now: a hook that never fired, a nested use that cannot be."""


class NotFiniteError(StateError):
    """A model computed NaN or an infinite value; the message says where first."""


class IntegrityError(EmlensError, RuntimeError):
    """Something on disk, or two things that should belong together, do not fit."""
