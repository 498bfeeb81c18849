"""`RowCache`: keys and values of a changing set of rows.

It is transformers' cache, written in place, with rows dropped and added. Every layer keeps whole
rows, sliding windows included (masks cut them). Rows are padded on the left, so that the last
column is the last token of every row. Cost: rows × columns, and a copy of it whenever rows change
or the spare room is used up.
"""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

_ROOM = 64


class _RowsLayer(DynamicLayer):
    """One layer.

    Transformers' own layer makes a longer copy of everything for every token; this one writes into
    spare room after the last column. `keys` and `values` are views of the used columns.
    """

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._room: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return key_states, value_states
        used = self.keys.shape[-2]
        added = key_states.shape[-2]
        width = used + added
        if self._room is None or self._room[0].shape[-2] < width:
            keys = _with_room([self.keys], used, added + _ROOM)
            values = _with_room([self.values], used, added + _ROOM)
            self.use(keys, values, used)
        for room, states in zip(self._room or (), (key_states, value_states), strict=True):
            room[..., used:width, :] = states
        return self._view(width)

    def use(self, keys: Tensor, values: Tensor, width: int) -> None:
        """Take tensors with spare room, whose first `width` columns are in use."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self._room = (keys, values)
        self._view(width)

    def _view(self, width: int) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (room[..., :width, :] for room in self._room or ())
        return self.keys, self.values


class RowCache(Cache):
    """The cache of a set of rows, handed to a model as `past_key_values`."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=_RowsLayer)

    @classmethod
    def join(
        cls, blocks: Sequence[tuple["RowCache", Int[Tensor, " row"], int]], width: int
    ) -> "RowCache":
        """Rows of other caches, one block below the other, `width` columns wide.

        Args:
            blocks: a cache, its rows to take (one may be taken several times), and its first column
                to take.
        """
        joined = cls()
        for i in range(len(blocks[0][0].layers)):
            keys, values = [], []
            for cache, rows, start in blocks:
                layer = cache.layers[i]
                keys.append(layer.keys.index_select(0, rows)[..., start:, :])
                values.append(layer.values.index_select(0, rows)[..., start:, :])
            layer = _RowsLayer()
            layer.use(_with_room(keys, width), _with_room(values, width), width)
            joined.layers.append(layer)
        return joined


def _with_room(blocks: Sequence[Tensor], width: int, spare: int = _ROOM) -> Tensor:
    """Blocks of (row, head, column, d), one below the other, each ending at column `width`.

    After that column is spare room.
    """
    first = blocks[0]
    rows = sum(len(block) for block in blocks)
    room = first.new_zeros(rows, first.shape[1], width + spare, first.shape[-1])
    row = 0
    for block in blocks:
        room[row : row + len(block), :, width - block.shape[-2] : width] = block
        row += len(block)
    return room
