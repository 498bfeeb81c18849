"""Which rows run together: rows in batches, longest first, and batches in shards.

A layout is planned from the rows alone: their lengths, and what they begin with. Rows that share
their first tokens are batched together, and each batch runs those tokens once. A batch that did not
fit into memory is cut into 2, 4, 8, … pieces of its rows. Cuts are recorded with every result, and
every model of a pair then runs the same pieces, so that a difference between two models never mixes
with a difference of batches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, chain, pairwise
from typing import Any

from emlens.foundation.provenance import hash_json
from emlens.models.batches import plan_batches
from emlens.models.prefix_plan import Ids, plan_shared_batches

SHARD_ROWS = 1024
SHARD_BYTES = 2**28


@dataclass(frozen=True)
class BatchLayout:
    """Rows in plan order, grouped into batches and shards.

    Args:
        order: row indices, longest row first.
        sizes: rows of each batch.
        shards: batches of each shard.
        cuts: batch → number of pieces, for the batches that did not fit into memory.
        shared: first tokens of each batch that all its rows share; empty where none does.
    """

    order: tuple[int, ...]
    sizes: tuple[int, ...]
    shards: tuple[int, ...]
    cuts: Mapping[int, int] = field(default_factory=dict)
    shared: tuple[int, ...] = ()

    @classmethod
    def plan(
        cls,
        lengths: Sequence[int],
        batch_tokens: int,
        row_bytes: int,
        token_bytes: int,
        threshold: int | None = None,
        rows: Sequence[Ids] | None = None,
    ) -> "BatchLayout":
        """Whole batches, grouped until a shard has `SHARD_ROWS` rows or keeps `SHARD_BYTES` bytes.

        Args:
            lengths: tokens of each row.
            batch_tokens: padded tokens per batch at most.
            threshold: rows of more tokens share no batch with the others.
            row_bytes, token_bytes: what is kept per row and per token.
            rows: token ids of each row, where first tokens that rows share are run once.
        """
        shared: tuple[int, ...] = ()
        if rows is None:
            batches = plan_batches(lengths, batch_tokens, threshold)
        else:
            shared_batches = plan_shared_batches(rows, batch_tokens, threshold)
            batches = [list(batch.rows) for batch in shared_batches]
            shared = tuple(batch.shared for batch in shared_batches)
        shards: list[int] = []
        n_rows = size = 0
        for batch in batches:
            if not shards or n_rows >= SHARD_ROWS or size >= SHARD_BYTES:
                shards.append(0)
                n_rows = size = 0
            shards[-1] += 1
            n_rows += len(batch)
            size += row_bytes * len(batch) + token_bytes * sum(lengths[i] for i in batch)
        order = tuple(chain.from_iterable(batches))
        return cls(
            order, tuple(map(len, batches)), tuple(shards), shared=shared if any(shared) else ()
        )

    @cached_property
    def _batch_starts(self) -> list[int]:
        """Where each batch starts in `order`, and the end."""
        return [0, *accumulate(self.sizes)]

    @cached_property
    def _shard_starts(self) -> list[int]:
        """The first batch of each shard, and the end."""
        return [0, *accumulate(self.shards)]

    def batches_of(self, shard: int) -> range:
        return range(self._shard_starts[shard], self._shard_starts[shard + 1])

    def rows_of(self, shard: int) -> tuple[int, ...]:
        """Row indices of a shard, ascending, so that reading it writes memory forwards."""
        batches = self.batches_of(shard)
        start, stop = self._batch_starts[batches.start], self._batch_starts[batches.stop]
        return tuple(sorted(self.order[start:stop]))

    def pieces(self, batch: int) -> list[tuple[int, ...]]:
        """The row indices that run together: the batch, or the pieces into which it was cut."""
        rows = self.order[self._batch_starts[batch] : self._batch_starts[batch + 1]]
        count = min(self.cuts.get(batch, 1), len(rows))
        edges = [round(i * len(rows) / count) for i in range(count + 1)]
        return [rows[start:stop] for start, stop in pairwise(edges)]

    @cached_property
    def _shared_of_row(self) -> dict[int, int]:
        sizes = zip(self.sizes, self.shared, strict=True)
        shared = chain.from_iterable([tokens] * size for size, tokens in sizes)
        return dict(zip(self.order, shared, strict=True))

    def shared_by(self, row: int) -> int:
        """How many first tokens a row's batch runs once; the pieces of a batch do, too."""
        return self._shared_of_row[row] if self.shared else 0

    def cuts_of(self, shard: int) -> dict[int, int]:
        return {batch: self.cuts[batch] for batch in self.batches_of(shard) if batch in self.cuts}

    def with_cut(self, batch: int) -> "BatchLayout":
        """The layout with one batch in twice as many pieces."""
        return self.with_cuts({batch: 2 * self.cuts.get(batch, 1)})

    def with_cuts(self, cuts: Mapping[int, int]) -> "BatchLayout":
        """The layout with these cuts too; where both cut a batch, the finer cut."""
        merged = dict(self.cuts)
        for batch, count in cuts.items():
            merged[batch] = max(count, self.cuts.get(batch, 1))
        return replace(self, cuts=dict(sorted(merged.items())))

    def can_cut(self, batch: int) -> bool:
        return self.cuts.get(batch, 1) < self.sizes[batch]

    @property
    def sha256(self) -> str:
        """Over the batches as they run; two captures may be paired only where these agree."""
        parts: list[Any] = [self.order, self.sizes, self.to_record()["replanned"]]
        if self.shared:
            parts.append(self.shared)
        return hash_json(parts)

    def to_record(self) -> dict[str, Any]:
        return {"replanned": {str(batch): count for batch, count in sorted(self.cuts.items())}}
