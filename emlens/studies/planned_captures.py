"""Captures that the parts of a study would share, for its plan: nothing is written."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from emlens.activations import Activations
from emlens.activations.stored_captures import MOST_BYTES, StoredCaptures
from emlens.models import HookedModel


@dataclass(eq=False)
class PlannedCaptures(StoredCaptures):
    """What was captured in a rehearsal, in memory.

    Args:
        vector_bytes: of one vector of the real models.
    """

    vector_bytes: int = 0
    _kept: dict[str, Activations] = field(default_factory=dict)

    @classmethod
    def of(cls, model: HookedModel) -> "PlannedCaptures":
        """For models as wide as this one."""
        return cls(Path(), vector_bytes=model.d_model * model.dtype.itemsize)

    def get(self, key: str) -> Activations | None:
        return self._kept.get(key)

    def add(self, key: str, activations: Activations) -> None:
        self._kept[key] = activations

    @property
    def stored(self) -> int:
        """Bytes on disk of what was captured so far."""
        vectors = 0
        for activations in self._kept.values():
            vectors += sum(len(activations.value(key)) for key in activations.keys)
        return min(vectors * self.vector_bytes, MOST_BYTES)

    def so_far(self) -> "PlannedCaptures":
        """A copy, to which what follows is not added."""
        return replace(self, _kept=dict(self._kept))
