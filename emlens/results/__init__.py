"""What a study leaves: tables with their columns, findings, sections, and the result on disk."""

from emlens.results.sections import Plot, Section
from emlens.results.study_result import Finding, Part, StudyResult

__all__ = [
    "Finding",
    "Part",
    "Plot",
    "Section",
    "StudyResult",
]
