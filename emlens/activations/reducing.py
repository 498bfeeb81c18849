"""Inside a hook: a padded activation → the few rows that are kept."""

from collections.abc import Sequence

import torch
from torch import Tensor

from emlens.activations.token_rows import CaptureRows
from emlens.foundation.positions import Position
from emlens.models.batches import Batch


class Reduction:
    """Which padded columns each position reads in one batch, worked out once and used at every
    site.

    One token is copied exactly; a mean is taken in float64 over the tokens of the row, in the row's
    own order, so that it does not depend on padding.
    """

    def __init__(
        self,
        batch: Batch,
        rows: CaptureRows,
        positions: Sequence[Position],
        dtype: torch.dtype | None,
    ):
        self._dtype = dtype
        device = batch.ids.device
        self._plans: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {}
        for position in positions:
            tokens = [rows.indices(position, i) for i in batch.index]
            columns = [[t + batch.offset(i) for t in row] for i, row in enumerate(tokens)]
            which = torch.tensor([i for i, row in enumerate(columns) for _ in row], device=device)
            flat = torch.tensor([c for row in columns for c in row], device=device)
            counts = torch.tensor([len(row) for row in columns], device=device)
            single = bool((counts == 1).all()) or not position.pooled
            self._plans[position.name] = (which, flat, None if single else counts)

    def __call__(self, stream: Tensor) -> dict[str, Tensor]:
        """Kept values by position, still on the stream's device: copying them off it would make
        every site wait.
        """
        kept = {}
        for name, (rows, columns, counts) in self._plans.items():
            picked = stream[rows.to(stream.device), columns.to(stream.device)]
            if counts is not None:
                sums = torch.segment_reduce(
                    picked.double(), "sum", lengths=counts.to(stream.device)
                )
                picked = (sums / counts.to(stream.device)[:, None]).to(stream.dtype)
            kept[name] = picked.to(self._dtype or picked.dtype)
        return kept
