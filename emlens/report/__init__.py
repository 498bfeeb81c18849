"""One HTML page a result."""

from emlens.report.writing import write_report

__all__ = [
    "write_report",
]
