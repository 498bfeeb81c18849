"""What a study leaves: tables with their columns, findings, sections, and the result on disk."""

from emlens.results.columns import Column, Measure
from emlens.results.sections import Plot, Section
from emlens.results.study_result import Finding, Part, StudyResult
from emlens.results.tables import Table

__all__ = [
    "Column",
    "Finding",
    "Measure",
    "Part",
    "Plot",
    "Section",
    "StudyResult",
    "Table",
]
