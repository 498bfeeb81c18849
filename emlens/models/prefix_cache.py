"""Keys and values of a beginning that rows share, for the pass over the rest of each row.

They are kept once. A block of the rest's pass sees them before its own keys and values, and nothing
of the rest is kept, so that the pass takes no more memory than one over whole rows, but for the
shared tokens themselves.
"""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from emlens.models.row_cache import RowCache


class _PrefixLayer(DynamicLayer):
    """One layer; `keys` and `values` are those of the distinct beginnings."""

    def __init__(self, keys: Tensor, values: Tensor, rows: Int[Tensor, " row"]):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self._rows = rows.to(keys.device)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys = torch.cat([self._of_rows(self.keys), key_states], -2)
        return keys, torch.cat([self._of_rows(self.values), value_states], -2)

    def _of_rows(self, states: Tensor) -> Tensor:
        if len(states) == 1:
            return states.expand(len(self._rows), -1, -1, -1)
        return states.index_select(0, self._rows)


class PrefixCache(Cache):
    """The cache of a pass over the rest of rows whose beginnings were run.

    Args:
        beginnings: what the pass over the distinct beginnings left.
        rows: for each row, which of them is its own.
    """

    def __init__(self, beginnings: RowCache, rows: Int[Tensor, " row"]):
        super().__init__(
            layers=[_PrefixLayer(layer.keys, layer.values, rows) for layer in beginnings.layers]
        )
