"""Which rows run together: batches longest first, batches grouped into shards, and batches cut
after running out of memory.

A layout is planned from row lengths alone. Where a batch did not fit into memory it is cut into 2,
4, 8, … parts of its rows; that is a re-plan, recorded with every result, and every model of a pair
then runs the same parts, so that a difference between two models never mixes with a difference of
batches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

from emlens.foundation.provenance import hash_json
from emlens.models.batches import plan_batches

SHARD_ROWS = 1024
SHARD_BYTES = 2**28


@dataclass(frozen=True)
class BatchLayout:
    """Rows in plan order, cut into batches and shards.

    Args:
        order: row indices, longest row first.
        sizes: rows of each batch.
        shards: batches of each shard.
        parts: batch → into how many parts it was cut, where it was.
    """

    order: tuple[int, ...]
    sizes: tuple[int, ...]
    shards: tuple[int, ...]
    parts: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def plan(
        cls, lengths: Sequence[int], batch_tokens: int, row_bytes: int, token_bytes: int
    ) -> "BatchLayout":
        """Whole batches, grouped until a shard holds `SHARD_ROWS` rows or `SHARD_BYTES` bytes of
        what is kept of them.
        """
        batches = plan_batches(lengths, batch_tokens)
        shards: list[int] = []
        rows = size = 0
        for batch in batches:
            if not shards or rows >= SHARD_ROWS or size >= SHARD_BYTES:
                shards.append(0)
                rows = size = 0
            shards[-1] += 1
            rows += len(batch)
            size += row_bytes * len(batch) + token_bytes * sum(lengths[i] for i in batch)
        return cls(
            tuple(i for batch in batches for i in batch),
            tuple(len(batch) for batch in batches),
            tuple(shards),
        )

    @cached_property
    def _row_at(self) -> list[int]:
        return [0, *accumulate(self.sizes)]

    @cached_property
    def _batch_at(self) -> list[int]:
        return [0, *accumulate(self.shards)]

    def batches_of(self, shard: int) -> range:
        return range(self._batch_at[shard], self._batch_at[shard + 1])

    def rows_of(self, shard: int) -> tuple[int, ...]:
        """Row indices of a shard, in the order in which it keeps them: ascending, so that reading
        writes memory forwards.
        """
        batches = self.batches_of(shard)
        return tuple(sorted(self.order[self._row_at[batches.start] : self._row_at[batches.stop]]))

    def pieces(self, batch: int) -> list[tuple[int, ...]]:
        """The row indices that run together: the batch, or the parts into which it was cut."""
        rows = self.order[self._row_at[batch] : self._row_at[batch + 1]]
        count = min(self.parts.get(batch, 1), len(rows))
        cuts = [round(i * len(rows) / count) for i in range(count + 1)]
        return [rows[a:b] for a, b in pairwise(cuts)]

    def parts_of(self, shard: int) -> dict[int, int]:
        return {batch: self.parts[batch] for batch in self.batches_of(shard) if batch in self.parts}

    def cut(self, batch: int) -> "BatchLayout":
        """The layout with one batch in twice as many parts."""
        return self.merged({batch: 2 * self.parts.get(batch, 1)})

    def merged(self, parts: Mapping[int, int]) -> "BatchLayout":
        """The finer of this layout's parts and those given, batch by batch."""
        both = {
            **self.parts,
            **{batch: max(count, self.parts.get(batch, 1)) for batch, count in parts.items()},
        }
        return BatchLayout(self.order, self.sizes, self.shards, dict(sorted(both.items())))

    def can_cut(self, batch: int) -> bool:
        return self.parts.get(batch, 1) < self.sizes[batch]

    @property
    def sha256(self) -> str:
        """Over the batches as they run; two captures may be paired only where these agree."""
        return hash_json([self.order, self.sizes, self.record()["replanned"]])

    def record(self) -> dict[str, Any]:
        return {"replanned": {str(batch): count for batch, count in sorted(self.parts.items())}}
