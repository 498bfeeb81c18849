"""Keys and values of rows that come and go: transformers' cache, written in place, with rows
dropped and joined.

Every layer keeps whole rows, sliding windows included (masks cut them). Rows are padded on the
left, so that the last column is the last token of every row. Cost: rows × columns, and a copy of it
whenever rows change or the room is used up.
"""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

_ROOM = 64


class _Rows(DynamicLayer):
    """One layer. What transformers appends by making a longer copy for every token is written into
    spare room here.
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
        width = used + key_states.shape[-2]
        if self._room is None or self._room[0].shape[-2] < width:
            keys, values = (
                _with_room([part], used, key_states.shape[-2] + _ROOM)
                for part in (self.keys, self.values)
            )
            self.hold(keys, values, used)
        for room, new in zip(self._room or (), (key_states, value_states), strict=True):
            room[..., used:width, :] = new
        return self._show(width)

    def hold(self, keys: Tensor, values: Tensor, width: int) -> None:
        """Take rooms whose first `width` columns are in use."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self._room = (keys, values)
        self._show(width)

    def _show(self, width: int) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (room[..., :width, :] for room in self._room or ())
        return self.keys, self.values


class RowCache(Cache):
    """The cache of a set of rows, handed to a model as `past_key_values`."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=_Rows)

    @classmethod
    def of(
        cls, parts: Sequence[tuple["RowCache", Int[Tensor, " row"], int]], width: int
    ) -> "RowCache":
        """Rows of other caches, one below the other, `width` columns wide.

        Args:
            parts: a cache, its rows to take (one may be taken several times), and its first column
                to take.
        """
        made = cls()
        for i in range(len(parts[0][0].layers)):
            layer = _Rows()
            layers = [(cache.layers[i], rows, start) for cache, rows, start in parts]
            keys, values = (
                _with_room(
                    [
                        getattr(layer, name).index_select(0, rows)[..., start:, :]
                        for layer, rows, start in layers
                    ],
                    width,
                )
                for name in ("keys", "values")
            )
            layer.hold(keys, values, width)
            made.layers.append(layer)
        return made


def _with_room(blocks: Sequence[Tensor], width: int, spare: int = _ROOM) -> Tensor:
    """Blocks of (row, head, column, d), one below the other, each ending at column `width`, with
    spare room behind it.
    """
    first = blocks[0]
    room = first.new_zeros(
        sum(len(block) for block in blocks), first.shape[1], width + spare, first.shape[-1]
    )
    at = 0
    for block in blocks:
        room[at : at + len(block), :, width - block.shape[-2] : width] = block
        at += len(block)
    return room
