"""Data that the scripts of the page read: JSON in elements that run nothing."""

from typing import Any

from emlens.report.escaping import escape, inert_json, packed

MOST_PLAIN_BYTES = 4_000_000
"""What figures take together before the rest is packed, which old browsers cannot read."""
MOST_FIGURE_BYTES = 5_000_000
"""What the figures of a page may take together, so that the page stays below 12 MB."""


class DataBlocks:
    """Data blocks of a page, in order."""

    def __init__(self) -> None:
        self._blocks: list[str] = []
        self._figure_bytes = 0

    def add(self, name: str, value: Any) -> None:
        """Add a value that can be written as JSON, under an id."""
        self._blocks.append(_block(name, value))

    def add_figure(self, name: str, value: Any) -> bool:
        """Add a figure, unless the figures of the page would take more bytes than they may.

        It is packed (base64 of gzip, which shrinks it about tenfold) where those before it take
        their room.
        """
        block = _block(name, value)
        if self._figure_bytes + len(block) > MOST_PLAIN_BYTES:
            block = _block(name, packed(inert_json(value)))
        if self._figure_bytes + len(block) > MOST_FIGURE_BYTES:
            return False
        self._figure_bytes += len(block)
        self._blocks.append(block)
        return True

    def html(self) -> str:
        """One block per line."""
        return "\n".join(self._blocks)


def _block(name: str, value: Any) -> str:
    return f'<script type="application/json" id="{escape(name)}">{inert_json(value)}</script>'
