"""What a training callback is, and how it ends a run early."""

from collections.abc import Callable, Mapping
from typing import Any

TrainingCallback = Callable[[Any, int], Mapping[str, Any] | None]
"""`(model, step) -> mapping`: called after each optimiser step (1-based); what it returns joins
that step's log row.
"""


class StopRun(Exception):
    """Raised by a training callback to end the run after the present step; the checkpoint is saved
    and says why.

    `values` join that step's log row, as what the callback returns does otherwise.

    Args:
        reason: why, for the record of the run.
    """

    def __init__(self, reason: str, **values: Any):
        super().__init__(reason)
        self.reason = reason
        self.values = values
