"""Formulas of a page become MathML when the site is built, so that no script and no network is
needed to read them.

`pymdownx.arithmatex` finds the formulas; this hook of MkDocs converts what it found.
"""

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def on_page_content(html_of_page: str, **_: Any) -> str:
    """Called by MkDocs with the HTML of each page."""
    return _FORMULA.sub(_as_mathml, html_of_page)


def _as_mathml(found: re.Match[str]) -> str:
    display = "block" if found["tag"] == "div" else "inline"
    return convert(html.unescape(found["tex"]), display=display)
