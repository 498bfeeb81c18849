"""The key of an endpoint: sent in one header, and shown nowhere.

Servers echo keys: in an error's body, in a header, in any field of a reply. What comes from a
server passes `Key.hidden_in` before anything reads it, errors pass `Key.hidden`, and the loggers of
the HTTP client pass a filter while requests are under way.
"""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import quote

from emlens.foundation.errors import InputError

SHORTEST: Final = 12
"""Keys below that are placeholders such as EMPTY, which answers may hold by chance."""
SHOWN: Final = "<key>"
_ESCAPE: Final = re.compile(r"\\u([0-9a-fA-F]{4})")
_LOGGERS: Final = (
    "httpx",
    "httpcore",
    "httpcore.connection",
    "httpcore.http11",
    "httpcore.http2",
    "httpcore.proxy",
    "httpcore.socks",
    "asyncio",
)
"""Loggers of the client, which write response headers at the level DEBUG."""


class Key:
    """A secret that does not show itself.

    Args:
        source: where it came from, for messages.

    Raises:
        InputError: it has characters that no header can have, such as a line break inside; a later
            error, of the client, would show the key.
    """

    def __init__(self, value: str | None, source: str):
        self._value = (value or "").strip()
        if not self._value.isascii() or not self._value.isprintable() or " " in self._value:
            raise InputError(
                f"the key in {source} holds a space, a line break or a character that no key has;"
                " set it again (it is not shown here)"
            )

    def __repr__(self) -> str:
        return SHOWN if self._value else "<no key>"

    def __reduce__(self) -> Any:
        raise TypeError("a key is not pickled; name its environment variable and read it there")

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._value}"} if self._value else {}

    def hidden(self, text: str, *, at_least: int = 1) -> str:
        """`text` without the key, where the key is long enough to be one."""
        if not self._value or len(self._value) < at_least:
            return text
        for spelling in {self._value, quote(self._value, safe="")}:
            text = text.replace(spelling, SHOWN)
        return text

    def hidden_in(self, value: Any) -> Any:
        """JSON without the key in any text or name; a key that is too short to be one stays."""
        if not self._value or len(self._value) < SHORTEST:
            return value
        return self._without(value)

    def _without(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.hidden(value)
        if isinstance(value, list):
            return [self._without(part) for part in value]
        if isinstance(value, dict):
            return {self.hidden(name): self._without(part) for name, part in value.items()}
        return value

    def may_be_in(self, body: bytes) -> bool:
        """Whether JSON may hold the key; an escape can spell any letter of it."""
        return bool(self._value) and (b"\\" in body or b"%" in body or self._value.encode() in body)

    def hidden_in_error(self, body: bytes) -> str:
        """An error's body as text without the key, also where JSON escapes spell it."""
        text = body.decode("utf-8", "replace")
        if b"\\" in body:
            try:
                text = json.dumps(self._without(json.loads(text)), ensure_ascii=False)
            except (ValueError, RecursionError):
                text = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text).replace("\\", "")
        return self.hidden(text)

    @contextmanager
    def kept_out_of_logs(self) -> Iterator[None]:
        """While the block runs, what the HTTP client logs is without the key."""

        def hides(record: logging.LogRecord) -> bool:
            record.msg, record.args = self.hidden(record.getMessage()), ()
            return True

        loggers = [logging.getLogger(name) for name in _LOGGERS if self._value]
        for logger in loggers:
            logger.addFilter(hides)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(hides)
