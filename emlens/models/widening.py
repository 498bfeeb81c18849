"""Passes in a wider dtype than the weights are in: float32 for a difference of two 16-bit models.

Every value of bfloat16 or float16 is a value of float32, so weights are widened without a change
and narrowed again without a change. Memory: float32 weights in place of 16-bit ones. The weights
are shared by all models of a family, also by those on trees of modules of their own, so other
threads wait until they are as they were.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from emlens.foundation.errors import StateError
from emlens.models.turn_lock import TurnLock

if TYPE_CHECKING:
    from emlens.models.hooked import HookedModel

_OWN_DTYPE = "_emlens_own_dtype"


@contextmanager
def computing_in(models: Iterable["HookedModel"], dtype: torch.dtype | None) -> Iterator[None]:
    """Run passes of these models in `dtype` inside the block; None: each in its own.

    Raises:
        InputError: a dtype that cannot hold the weights; quantised or offloaded weights.
    """
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(model.computing_in(dtype))
        yield


def own_dtype(value: Tensor) -> torch.dtype:
    """The dtype of a weight, also while it is widened."""
    # kept on the tensor itself: several trees of modules may lie on the same weights
    dtype: torch.dtype = getattr(value, _OWN_DTYPE, value.dtype)
    return dtype


class Widening:
    """Which of the weights that several trees of modules share are widened now.

    `lock` is theirs: one thread at a time runs passes on them or widens them.
    """

    def __init__(self) -> None:
        self.lock = TurnLock()
        self._dtype: torch.dtype | None = None
        self._blocks = 0
        self._users: Counter[int] = Counter()  # id of a tensor → open blocks that need it wide

    @contextmanager
    def widened(self, module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
        """Parameters and buffers of fewer bits as `dtype` inside the block; other threads wait.

        Blocks of one dtype may lie inside each other and end in any order: a tensor is narrow again
        when the last block that needs it ends.

        Raises:
            StateError: inside a block of another dtype.
        """
        with self.lock, ExitStack() as stack:
            if self._dtype not in (None, dtype):
                raise StateError(
                    f"the weights are widened to {self._dtype} already, so passes cannot run in"
                    f" {dtype}; end the other capture first"
                )
            self._dtype = dtype
            self._blocks += 1
            stack.callback(self._close)
            for value in _floating(module):
                if can_widen(own_dtype(value), dtype):
                    self._widen(value, dtype)
                    stack.callback(self._narrow, value)
            yield

    @contextmanager
    def joined(self, module: nn.Module) -> Iterator[None]:
        """Weights that this tree has for itself are as wide as the shared ones inside the block."""
        with self.lock, ExitStack() as stack:
            if self._dtype is not None:
                stack.enter_context(self.widened(module, self._dtype))
            yield

    def _close(self) -> None:
        self._blocks -= 1
        if not self._blocks:
            self._dtype = None

    def _widen(self, value: Tensor, dtype: torch.dtype) -> None:
        if not self._users[id(value)]:
            wide = value.data.to(dtype)
            setattr(value, _OWN_DTYPE, value.dtype)
            value.data = wide
        self._users[id(value)] += 1

    def _narrow(self, value: Tensor) -> None:
        self._users[id(value)] -= 1
        if not self._users[id(value)]:
            del self._users[id(value)]
            value.data = value.data.to(own_dtype(value))
            value.__dict__.pop(_OWN_DTYPE, None)


def can_widen(own: torch.dtype, wide: torch.dtype) -> bool:
    """Whether every value of one dtype is a value of another one with more bits."""
    if own == wide:
        return False
    # of bits before and after the point: bfloat16 has more of the first than float16
    own_info, wide_info = torch.finfo(own), torch.finfo(wide)
    return own_info.eps >= wide_info.eps and own_info.max <= wide_info.max


def _floating(module: nn.Module) -> Iterator[Tensor]:
    for value in (*module.parameters(), *module.buffers()):
        if value.is_floating_point():
            yield value
