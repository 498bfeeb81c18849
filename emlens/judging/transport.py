"""The bytes of a reply: bounded after they are decoded, whatever the server says they are.

The client asks for bytes as they are. A server, or a proxy before it, that compresses all the same
is read as far as the bound: a few kilobytes can hold gigabytes, so nothing is decoded whole. One
layer of gzip or deflate is read; other encodings are refused by name.
"""

import ipaddress
import json
import zlib
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, Protocol

from emlens.foundation.files import one_line
from emlens.judging.keys import Key
from emlens.judging.replies import Fault


class Streamed(Protocol):
    """A response of the client, whose body is still coming."""

    @property
    def headers(self) -> Mapping[str, str]: ...
    def aiter_raw(self) -> AsyncIterator[bytes]: ...


MOST_BYTES: Final = 4 * 2**20
"""Of one reply, decoded. A reply of 4,000 tokens with 20 candidates each is half of it."""
_PLAIN = ("", "identity")
_ZLIB = ("gzip", "x-gzip", "deflate")
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
"""zlib's word for: either header."""


async def read_body(response: Streamed, most: int = MOST_BYTES) -> bytes:
    """The decoded body of a reply that is being streamed.

    Raises:
        Fault: `too long`, as sent or as decoded; `encoding` that is not read, or damaged.
    """
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in (*_PLAIN, *_ZLIB):
        raise Fault("encoding", f"content encoding {one_line(encoding, 40)!r} was not asked for")
    unpacker = zlib.decompressobj(_GZIP_OR_ZLIB) if encoding in _ZLIB else None
    body = bytearray()
    sent = 0
    async for part in response.aiter_raw():
        sent += len(part)
        if unpacker is None:
            body += part
        else:
            body += _unpacked(unpacker, part, most + 1 - len(body))
        if max(len(body), sent) > most:
            raise Fault("too long", f"more than {most} bytes received")
    if unpacker is not None and not unpacker.eof:
        raise Fault("encoding", f"{encoding} that ends too early", passing=True)
    return bytes(body)


def _unpacked(unpacker: Any, part: bytes, most: int) -> bytes:
    """What a part decodes to, `most` bytes of it."""
    try:
        return bytes(unpacker.decompress(part, most))
    except zlib.error as error:
        raise Fault("encoding", f"damaged: {error}", passing=True) from None


def json_of(body: bytes, key: Key) -> Any:
    """The JSON of a body, without the key in any of its texts.

    Raises:
        Fault: `not JSON`, worth another attempt.
    """
    try:
        content = json.loads(body)
        return key.hidden_in(content) if key.may_be_in(body) else content
    except (ValueError, RecursionError):
        raise Fault(
            "not JSON", f"{len(body)} bytes that are not one whole JSON", passing=True
        ) from None


def is_private(scheme: str, host: str) -> bool:
    """Whether what is sent stays unread on its way: over TLS, or on this machine."""
    if scheme == "https" or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
