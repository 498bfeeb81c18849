"""How a result shows itself: one line at the prompt, a plain table in a notebook. Never a tensor in
full; everything escaped.
"""

import html
from collections.abc import Mapping

from emlens.foundation.files import one_line

LONGEST = 120


def in_a_line(name: str, facts: Mapping[str, object]) -> str:
    """`Name(fact=value, ...)`, values shortened, on one line."""
    parts = []
    for key, value in facts.items():
        parts.append(f"{one_line(key, LONGEST)}={one_line(str(value), LONGEST)}")
    return f"{name}({', '.join(parts)})"


def as_table(name: str, facts: Mapping[str, object]) -> str:
    """A two-column HTML table headed by the name; keys and values are text, never markup."""
    rows = "".join(
        f"<tr><th>{_text(key)}</th><td>{_text(value)}</td></tr>" for key, value in facts.items()
    )
    return (
        "<table><thead><tr><th"
        f' colspan="2">{html.escape(name)}</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def _text(value: object) -> str:
    return html.escape(one_line(str(value), LONGEST))
