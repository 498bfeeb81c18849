"""How much memory a gradient takes beyond the model that is there already; for plans.

What a pass keeps for its gradient grows with the tokens of the batch. Per block and token it is
about 34 values of the width of the stream in half precision (Korthikanti et al. 2022, equation 1
without attention scores), so twice that in bytes here, where training is in float32. Logits, which
are computed at the answers alone, are kept three times: as they are, as log-probabilities, and as
their gradient. Checkpoints of
activations keep less, where a recipe has them.
"""

from collections.abc import Sequence
from typing import Final

from emlens.data.rendering import Rendered
from emlens.models import HookedModel
from emlens.models.checkpoint import CheckpointModel
from emlens.models.four_bits import nf4_bytes
from emlens.training.recipes import FOUR_BITS, ParentDtype

_BYTES: Final = 4
"""Of a value in float32."""
_KEPT: Final = 68
"""Bytes kept per block, token and coordinate of the stream."""
_LOGITS: Final = 3


def weight_bytes(model: HookedModel, dtype: ParentDtype = "float32") -> int:
    """Bytes of a copy of a model; 0 for one without weights here.

    Args:
        dtype: of the copy; "own": that of the model; in 4 bits: what is not quantised has that of
            the model.
    """
    if not isinstance(model, CheckpointModel):
        return 0
    if dtype in FOUR_BITS:
        return nf4_bytes(model.module, model.dtype.itemsize, double=dtype == "nf4_double")
    size = 0
    for weight in model.module.parameters():
        size += weight.numel() * (weight.element_size() if dtype == "own" else _BYTES)
    return size


def batch_bytes(
    model: HookedModel,
    rows: Sequence[Rendered],
    *,
    itemsize: int = _BYTES,
    checkpoints: bool = False,
) -> int:
    """Bytes that one batch of chats keeps for its gradient.

    Args:
        itemsize: bytes of an activation.
        checkpoints: whether only the input of each block is kept, and all of one block.
    """
    padded = len(rows) * max(len(row.ids) for row in rows)
    answered = sum(len(row.written) for row in rows)
    values = _KEPT // _BYTES * model.n_layers
    if checkpoints:
        values = model.n_layers + _KEPT // _BYTES
    of_blocks = padded * itemsize * values * model.d_model
    return of_blocks + answered * _LOGITS * _BYTES * model.vocab_size
