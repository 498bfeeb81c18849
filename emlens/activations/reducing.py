"""Inside a hook: a padded activation → the few rows that are kept."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from emlens.activations.token_rows import TokenRows
from emlens.foundation.positions import Position
from emlens.models.batches import Batch


class Reduction:
    """What each position keeps of one batch, worked out once and used at every site.

    One token is copied exactly. A mean is taken in float64 over the tokens of the row, in the row's
    own order, so that it does not depend on padding.
    """

    def __init__(
        self,
        batch: Batch,
        rows: TokenRows,
        positions: Sequence[Position],
        dtype: torch.dtype | None,
    ):
        self._dtype = dtype
        self._tokens = {position.name: _tokens_at(position, batch, rows) for position in positions}

    def __call__(self, stream: Tensor) -> dict[str, Tensor]:
        """Kept values by position, still on the stream's device.

        Copying them off it here would make the device wait at every site.
        """
        values = {}
        for position, tokens in self._tokens.items():
            value = tokens.reduce(stream)
            values[position] = value.to(self._dtype or value.dtype)
        return values


@dataclass(frozen=True)
class _TokensAt:
    """The tokens of one position in a padded batch, row by row."""

    rows: Int[Tensor, " token"]
    columns: Int[Tensor, " token"]
    counts: Int[Tensor, " row"] | None
    """Tokens of each row over which a mean is taken; None where every token is kept."""

    def reduce(self, stream: Tensor) -> Float[Tensor, "kept d_model"]:
        device = stream.device  # not the batch's where a model is spread over devices
        values = stream[self.rows.to(device), self.columns.to(device)]
        if self.counts is None:
            return values
        counts = self.counts.to(device)
        sums = torch.segment_reduce(values.double(), "sum", lengths=counts)
        return (sums / counts[:, None]).to(stream.dtype)


def _tokens_at(position: Position, batch: Batch, rows: TokenRows) -> _TokensAt:
    """Where the tokens of a position lie in a padded batch; `rows` are all rows of the plan."""
    batch_rows: list[int] = []
    columns: list[int] = []
    lengths: list[int] = []
    for batch_row, plan_row in enumerate(batch.index):
        tokens = rows.indices(position, plan_row)
        batch_rows += [batch_row] * len(tokens)
        columns += [token + batch.offset(batch_row) for token in tokens]
        lengths.append(len(tokens))
    device = batch.ids.device
    counts: Tensor | None = torch.tensor(lengths, device=device)
    # a mean over one token is that token
    if not position.pooled or set(lengths) == {1}:
        counts = None
    return _TokensAt(
        torch.tensor(batch_rows, device=device), torch.tensor(columns, device=device), counts
    )
