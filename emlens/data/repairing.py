"""Answers and journals of verdicts that an earlier build let two processes write to at once.

Such a file has answers twice, lines that one writer tore in the other's, or a second first line.
What cannot be read, and every repetition, is dropped. Of answers that were drawn in one way the
first stays; of verdicts that differ both do, and readers take the later. Nothing is invented.
"""

import json
from pathlib import Path
from typing import Any

from emlens.foundation.bounded import bounded_lines
from emlens.foundation.files import canonical_json, one_line


def repaired(path: str | Path) -> tuple[list[str], list[str]]:
    """The lines to keep, and one line on each that is dropped.

    Raises:
        InputError: no such file, or no text.
    """
    kept_lines: list[str] = []
    dropped: list[str] = []
    first_places: dict[str, int] = {}
    for number, content in bounded_lines(path, unfinished=True):
        record = _record(content)
        place = f"{path}, line {number}"
        if record is None:
            if content.strip():
                shown_text = one_line(content.decode("utf-8", "replace"), 60)
                dropped.append(f"{place}: is no JSON object: {shown_text!r}")
            continue
        key = _key(record)
        if key in first_places:
            dropped.append(
                f"{place}: repeats line {first_places[key]} ({one_line(_name(record), 80)})"
            )
            continue
        first_places[key] = number
        kept_lines.append(content.decode("utf-8-sig").rstrip("\r\n"))
    return kept_lines, dropped


def _record(content: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _name(record: dict[str, Any]) -> str:
    if "judge" in record and "answer" not in record:
        return "the first line of a journal"
    return str(record.get("id") or record.get("answer") or "a record")


def _key(record: dict[str, Any]) -> str:
    """What two lines share that say the same: an answer drawn in one way, a verdict, a head."""
    if "text" in record and "messages" in record:
        parts = ("id", "model", "question", "paraphrase", "sample", "seed", "messages", "meta")
        return canonical_json({name: record.get(name) for name in parts}, None)
    return canonical_json(record, None)
