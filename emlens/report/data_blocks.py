"""Data that the scripts of the page read: JSON in elements that run nothing."""

from typing import Any

from emlens.report.escaping import escape, inert_json


class DataBlocks:
    """Data blocks of a page, in order."""

    def __init__(self) -> None:
        self._blocks: list[str] = []

    def add(self, name: str, value: Any) -> None:
        """Add a value that can be written as JSON, under an id."""
        block = f'<script type="application/json" id="{escape(name)}">{inert_json(value)}</script>'
        self._blocks.append(block)

    def html(self) -> str:
        """One block per line."""
        return "\n".join(self._blocks)
