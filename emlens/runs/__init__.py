"""Plan, publish, resume; progress."""

from emlens.runs.progress import progress_bar
from emlens.runs.units import UnitLog, exclusive

__all__ = ["UnitLog", "exclusive", "progress_bar"]
