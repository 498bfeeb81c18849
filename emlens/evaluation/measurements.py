"""What was measured of models under edits, kept for everything in a block that asks for it again.

The arms, doses and transfers of a study ask for the same things: each model unedited, the control
that does not depend on a direction, an arm as a cell of the transfer matrix. Each `Trials` keeps
what it measured. Inside `shared_measurements` all of them keep it together, so it is measured once,
and on disk where a folder is given, so that a block that was cut goes on from there.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from emlens.models.lower_blocks import LowerStreams
from emlens.models.pass_memory import TEXT_LOGITS

Key = tuple[str, int | None]
"""A hash of what a measurement depends on, and which score made it, if one did."""


@dataclass(eq=False)
class Measurements:
    """Tables by what they depend on, and log-probabilities of unedited models.

    Args:
        out: where those with a score that has a name are also kept; None: in memory alone.
        below_edits: what passes under edits start from.
        scores: kept, so that none of them gives its place in memory to another.
    """

    out: Path | None = None
    tables: dict[Key, pd.DataFrame] = field(default_factory=dict)
    below_edits: LowerStreams = field(default_factory=LowerStreams)
    scores: list[Any] = field(default_factory=list)
    _unedited: OrderedDict[str, list[Tensor] | None] = field(default_factory=OrderedDict)

    def unedited(self, key: str, make: Callable[[], list[Tensor] | None]) -> list[Tensor] | None:
        """Those of one model on some text; the models that were used last are kept, as many as fit
        into the memory that is meant for one text.
        """
        if key not in self._unedited:
            self._unedited[key] = make()
        self._unedited.move_to_end(key)
        while len(self._unedited) > 1 and self._held() > TEXT_LOGITS:
            self._unedited.popitem(last=False)
        return self._unedited[key]

    def _held(self) -> int:
        return sum(rows.numel() for kept in self._unedited.values() for rows in kept or ())


_SHARED: ContextVar[Measurements | None] = ContextVar("shared measurements", default=None)


@contextmanager
def shared_measurements(out: str | Path | None = None) -> Iterator[None]:
    """Inside, every `Trials` knows what the others measured.

    For a block in which no weight changes.

    Args:
        out: directory for records of finished measurements, of every `Trials` that has none of its
            own and whose score has a name; None keeps them in memory.
    """
    token = _SHARED.set(Measurements(None if out is None else Path(out)))
    try:
        yield
    finally:
        _SHARED.reset(token)


def measurements() -> Measurements:
    """Those of the block around, or new ones outside of any."""
    return _SHARED.get() or Measurements()
