"""Blocks that two models of one capture have in common are run once (`emlens.models.trunks`).

The first model of a capture runs whole and keeps, for the rows of one shard, what enters the first
block of each other model that is its own, and what was kept of the sites below. The others start
there. What does not fit into the room for it, was cut differently or lies in a finished shard runs
whole: the values are the same.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from emlens.activations.memory import Key
from emlens.foundation.sites import Site
from emlens.models.batches import Batch
from emlens.models.hooked import HookedModel
from emlens.models.trunks import KeptStreams, keeping_streams, starting_at, trunk_of

logger = logging.getLogger("emlens")
Rows = tuple[int, ...]


@dataclass(eq=False)
class SharedTrunk:
    """Which models of a capture start where.

    Args:
        first: name of the model that runs whole.
        starts: name of another model → the first block that it runs.
        why_not: name of another model → why it runs all blocks.
    """

    first: str
    starts: Mapping[str, int]
    why_not: Mapping[str, str]
    _streams: KeptStreams = field(default_factory=KeptStreams)
    _values: dict[Rows, dict[Key, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, models: Mapping[str, HookedModel]) -> "SharedTrunk":
        """What the models have in common with the first of them."""
        first, *others = models
        starts: dict[str, int] = {}
        why_not: dict[str, str] = {}
        for name in others:
            found = trunk_of(models[first], models[name])
            if isinstance(found, int):
                starts[name] = found
            else:
                why_not[name] = found
                logger.info("%s runs every block: %s", name, found)
        return cls(first, starts, why_not)

    def record(self, name: str) -> dict[str, object] | None:
        """What provenance says of a model; None where nothing is to be said."""
        if name in self.starts:
            return {"with": self.first, "blocks": self.starts[name]}
        if name in self.why_not:
            return {"with": self.first, "blocks": 0, "why": self.why_not[name]}
        return None

    def of_model(self, name: str) -> "TrunkPasses | None":
        """How the passes of a model are run; None: as always."""
        if name in self.starts or (name == self.first and self.starts):
            return TrunkPasses(self, self.starts.get(name))
        return None

    def clear(self) -> None:
        """Forget the rows of the last shard."""
        self._streams.clear()
        self._values.clear()


@dataclass(frozen=True, eq=False)
class TrunkPasses:
    """The passes of one model of a capture.

    Args:
        start: its first own block; None: it is the first model.
    """

    trunk: SharedTrunk
    start: int | None

    def begin_shard(self) -> None:
        """Called before the first batch of a shard."""
        if self.start is None:
            self.trunk.clear()

    def known(self, batch: Batch, keys: Sequence[Key]) -> dict[Key, Tensor] | None:
        """Of a model that can start at its block: the values of these keys below it."""
        rows = tuple(batch.index)
        if self.start is None or rows not in self.trunk._values:
            return None
        known = {}
        for key, value in self.trunk._values[rows].items():
            if key in keys and _is_below(key, self.start):
                known[key] = value
        is_all = len(known) == len(keys)
        if is_all or self.trunk._streams.serves(batch, self.start):
            return known
        return None

    @contextmanager
    def running(self, model: HookedModel, *, from_start: bool) -> Iterator[None]:
        """Passes of the model inside keep streams, or with `from_start` start at its own block."""
        streams = self.trunk._streams
        if self.start is None:
            with keeping_streams(model, streams, frozenset(self.trunk.starts.values())):
                yield
        elif from_start:
            with starting_at(model, streams, self.start):
                yield
        else:
            yield

    def keep(self, batch: Batch, values: Mapping[Key, Tensor]) -> None:
        """Keep what the first model has at sites that other models do not compute."""
        if self.start is not None:
            return
        highest = max(self.trunk.starts.values())
        below = {key: value for key, value in values.items() if _is_below(key, highest)}
        self.trunk._values[tuple(batch.index)] = below


def _is_below(key: Key, block: int) -> bool:
    """Whether a site comes before anything that a block adds."""
    return not Site("resid_pre", block) < Site.parse(key[0])
