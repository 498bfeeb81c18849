"""How a result shows itself: one line at the prompt, a plain table in a notebook. Never a tensor in
full; everything escaped.
"""

import dataclasses
import html
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

from emlens.foundation.files import one_line

LONGEST = 120
MOST_ROWS = 10
"""Items of a set that are drawn in a notebook."""
MOST_NAMES = 6
"""Keys or items of a value that are written out."""


@runtime_checkable
class Picture(Protocol):
    """What `.plot()` of a result gives: it shows itself in a notebook, and can be saved.

    It is a plotly figure (`emlens.figures.drawing`), so plotly's own methods work on it too.
    """

    def save(self, path: str | Path) -> Path:
        """Write it: `.html`, `.json`, or an image (`.svg`, `.png`) where kaleido is there."""
        ...

    def _repr_html_(self) -> str: ...


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


def as_rows(name: str, head: Sequence[str], rows: Iterable[Sequence[object]], total: int) -> str:
    """An HTML table with a row an item, headed by the name: the first items, and how many more.

    Cells are text, never markup.

    Args:
        rows: of the first items; at most MOST_ROWS are drawn.
    """
    drawn = [_html_row("td", row) for row in islice(rows, MOST_ROWS)]
    if total > len(drawn):
        more = f"… {total - len(drawn)} more"
        drawn.append(f'<tr><td colspan="{len(head)}">{more}</td></tr>')
    caption = f"<caption>{html.escape(name)}</caption>"
    titles = f"<thead>{_html_row('th', head)}</thead>"
    return f"<table>{caption}{titles}<tbody>{''.join(drawn)}</tbody></table>"


def _html_row(tag: str, cells: Iterable[object]) -> str:
    return f"<tr>{''.join(f'<{tag}>{_text(cell)}</{tag}>' for cell in cells)}</tr>"


class Brief:
    """Gives a dataclass a repr and an HTML table that name each field in a few words.

    The dataclass is made with `repr=False`. A tensor, an array or a table is named by its shape.
    """

    def _facts(self) -> dict[str, object]:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return {field.name: in_words(getattr(self, field.name)) for field in fields if field.repr}

    def __repr__(self) -> str:
        return in_a_line(type(self).__name__, self._facts())

    def _repr_html_(self) -> str:
        return as_table(type(self).__name__, self._facts())


def in_words(value: object) -> str:
    """A value in a few words: numbers to four digits, what is large by its size."""
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and len(shape) > 0:
        return f"{type(value).__name__} {' × '.join(map(str, shape))}"
    if isinstance(shape, tuple):
        value = float(value)  # type: ignore[arg-type]  # a number of torch or numpy
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        names = ", ".join(map(str, list(value)[:MOST_NAMES]))
        return f"{{{names}{', …' if len(value) > MOST_NAMES else ''}}}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _items_in_words(value)
    return one_line(str(value), LONGEST)


def _items_in_words(items: Sequence[object]) -> str:
    """Few and short items as they are; otherwise how many there are."""
    texts = [in_words(item) for item in items[:MOST_NAMES]]
    if len(items) <= MOST_NAMES and len("".join(texts)) <= LONGEST // 2:
        return f"[{', '.join(texts)}]"
    return f"{len(items)} items"


def _text(value: object) -> str:
    return html.escape(one_line(str(value), LONGEST))
