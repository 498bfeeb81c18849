"""What the tests of claims share: a claim, and everything that a part says."""

from collections.abc import Callable
from dataclasses import dataclass

from emlens.results import Finding
from emlens.results.study_result import Part


@dataclass(frozen=True)
class Claim:
    """Words of a sentence, findings of a table on which they are true, and of one on which not."""

    words: str
    true: Callable[[], list[Finding]]
    false: Callable[[], list[Finding]]


def said(part: Part) -> list[Finding]:
    """The findings of a part, and its warnings as findings."""
    return [*part.findings, *(Finding("warning", warning) for warning in part.warnings)]
