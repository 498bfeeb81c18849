"""How a result shows itself: one line at the prompt, a plain table in a notebook. Never a tensor in full; everything escaped."""

import html
from collections.abc import Mapping

from emlens.foundation.files import one_line

LONGEST = 120


def in_a_line(name: str, facts: Mapping[str, object]) -> str:
    """`Name(fact=value, ...)`, values shortened, on one line."""
    return f"{name}({', '.join(f'{one_line(key, LONGEST)}={one_line(str(value), LONGEST)}' for key, value in facts.items())})"


def as_table(name: str, facts: Mapping[str, object]) -> str:
    """A two-column HTML table headed by the name; keys and values are text, never markup."""
    rows = "".join(f"<tr><th>{_text(key)}</th><td>{_text(value)}</td></tr>" for key, value in facts.items())
    return f'<table><thead><tr><th colspan="2">{html.escape(name)}</th></tr></thead><tbody>{rows}</tbody></table>'


def _text(value: object) -> str:
    return html.escape(one_line(str(value), LONGEST))
