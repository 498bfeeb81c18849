"""An argument that takes one of a few words."""

from typing import get_args

from emlens.foundation.errors import InputError


def require_choice(value: object, name: str, choices: object) -> None:
    """Refuse a value that an argument does not take.

    Args:
        name: of the argument. choices: a `Literal`.

    Raises:
        InputError: `value` is none of the choices.
    """
    words = get_args(choices)
    if value not in words:
        raise InputError(
            f"{name}={value!r} is unknown; pass {' or '.join(map(repr, words))}",
            name=value,
            known=words,
        )


def require_kind(value: object, kind: type, name: str, remedy: str) -> None:
    """Refuse a value of another kind, in one line.

    Args:
        name: of the argument. remedy: what to pass.

    Raises:
        InputError: `value` is no `kind`.
    """
    if not isinstance(value, kind):
        raise InputError(f"{name} is a {type(value).__name__}; pass {remedy}")
