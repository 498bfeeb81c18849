"""How anything reaches the page.

As escaped text, as inert JSON, or as a script whose hash the policy names. Model text, question
text, names and settings are data. Nothing else in this package writes a value into HTML.
"""

import base64
import gzip
import hashlib
import html
import json
import re
from typing import Any

from emlens.figures.labels import printable

_FOLDERS = re.compile(r"(?:~|[A-Za-z]:)?[\\/]+(?:[^\\/\r\n]+[\\/]+)*([^\\/\r\n]+)[\\/]*")
"""An absolute path; its group is the last part."""


def escape(value: object) -> str:
    """Any value as HTML text: printable, with `&`, `<`, `>` and quotes escaped."""
    return html.escape(printable(value), quote=True)


def optional(template: str, value: str) -> str:
    """The template around an escaped text; nothing where the text is empty."""
    if not value:
        return ""
    return template.format(escape(value))


def inert_json(value: Any) -> str:
    """JSON that cannot end a script element or start markup.

    It is ASCII only, with `<`, `>` and `&` as escapes.
    """
    text = json.dumps(
        value, ensure_ascii=True, separators=(",", ":"), sort_keys=True, allow_nan=False
    )
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def packed(text: str) -> str:
    """A text as base64 of gzip, which the scripts of the page unpack.

    Tables and figures repeat themselves, and shrink tenfold.
    """
    # without a time, so that the same table gives the same bytes
    packed_bytes = gzip.compress(text.encode("utf-8"), compresslevel=9, mtime=0)
    return base64.b64encode(packed_bytes).decode("ascii")


def script_hash(script: str) -> str:
    """A source expression of a content security policy for exactly this inline script."""
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def without_folders(value: Any) -> Any:
    """The value with folders taken off absolute paths.

    So the page tells nothing about the machine that it was made on.
    """
    if isinstance(value, dict):
        return {str(key): without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    if isinstance(value, str) and (match := _FOLDERS.fullmatch(value)):
        return f"…/{match[1]}"
    return value
