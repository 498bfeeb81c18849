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
