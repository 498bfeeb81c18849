"""A fingerprint of weights as they are in memory: a changed model is not taken for its file.

The hash of a checkpoint's files says what was loaded, not what is there now: `p.data += x`, a merge
or a training step changes weights and no file. The bits of every tensor are read as whole numbers,
those of each row are added modulo 2⁶⁴, and the sums are hashed with names, dtypes and shapes. Whole
numbers have no rounding, so the same weights have the same fingerprint in every process, on every
device, with any number of threads.

Small tensors (biases, norms, most adapters) are read as words of 32 bits, each multiplied by a key
of its place. An edit of one row is missed with a chance of about 2⁻³¹, had the keys been drawn
after it (multilinear hashing, Lemire and Kaser 2014). Large ones are read as words of 64 bits
without keys, since keys cost ten times as much. Two kinds of edits of one row are missed there:
words that change places, and changes that add up to 0. (When all signs of a few hundred float32
change, they add up to 0 in about one row of twenty.) An edit of many rows is missed only where it
is missed in every one of them.

Covered: every parameter that the model runs on, its selected adapter's included, and every buffer
that is saved with it. Not covered: buffers that are not saved (rotary frequencies); modules and
hooks. Cost: the weights are read once at the speed of memory. Measured: .05 s for 540 MB, 2 % of a
capture of 24 prompts on SmolLM2 in float32.
"""

import hashlib
from collections.abc import Collection, Iterator
from functools import lru_cache
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor, nn

from emlens.models.widening import own_dtype

_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SMALL = 1 << 16
"""Elements of a tensor that is read with keys."""
_ADAPTER = "adapter"
_WRAPPERS = ("base_layer", "original_module")
"""Where PEFT puts the weights of a module that it wraps."""


def weights_fingerprint(
    module: nn.Module,
    adapters: Collection[str] = (),
    active: str | None = None,
) -> str:
    """SHA-256 over the row sums of every weight in force.

    Args:
        adapters: names that PEFT gave to adapters on this module; the weights of all but `active`
            are left out, so that one that lies beside it changes nothing.
    """
    digest = hashlib.sha256()
    for name, value in sorted(_in_force(module, adapters, active), key=itemgetter(0)):
        value = value.to(own_dtype(value))  # as it is when no capture has widened it
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|{value.is_meta}|".encode())
        if not value.is_meta and value.numel():
            digest.update(row_sums(value).cpu().numpy().tobytes())
    return digest.hexdigest()


def row_sums(value: Tensor) -> Tensor:
    """The bits of each row, added as whole numbers modulo 2⁶⁴; those of a small tensor with keys.

    What is read as one number depends on shape and dtype alone, never on where the tensor lies.
    """
    rows = value.detach().contiguous()
    if rows.ndim == 0:
        rows = rows[None]
    rows = rows.reshape(-1, rows.shape[-1])
    if rows.is_complex():
        rows = torch.view_as_real(rows).flatten(1)
    if rows.numel() <= _SMALL:
        # no 64 bits: a change of the top bit would have the same product with every odd key
        words = _words(rows, 4)
        return (words * _keys(words.shape[-1]).to(words.device)).sum(-1)
    return _words(rows, 8).sum(-1, dtype=torch.int64)


def _words(rows: Tensor, size: int) -> Tensor:
    """The rows as whole numbers of `size` bytes where they can be cut so, else one an element."""
    if rows.shape[-1] * rows.element_size() % size:
        size = min(size, rows.element_size())
    if rows.storage_offset() * rows.element_size() % size:
        rows = rows.clone()
    return rows.view(_WORDS[size])


@lru_cache(maxsize=32)
def _keys(n: int) -> Tensor:
    """An odd number of 64 bits for each of `n` places: those of SplitMix64, the same everywhere."""
    state = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state = (state ^ (state >> np.uint64(31))) | np.uint64(1)
    return torch.from_numpy(state.view(np.int64))


def weight_versions(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Where every parameter lies and how often torch saw it change; costs next to nothing.

    A write through `.data` is not counted, so this only says that a fingerprint has to be taken
    again, never that it need not.
    """
    versions = []
    for parameter in module.parameters():
        count = -1 if parameter.is_inference() else parameter._version
        versions.append((parameter.data_ptr(), count))
    return tuple(versions)


def _in_force(
    module: nn.Module, adapters: Collection[str], active: str | None
) -> Iterator[tuple[str, Tensor]]:
    """Every weight under the name that it has whatever adapters lie beside it."""
    for path, owner in module.named_modules():
        kept = set(owner._buffers) - owner._non_persistent_buffers_set
        tensors = {**owner._parameters, **{name: owner._buffers[name] for name in kept}}
        for name, value in tensors.items():
            parts = [part for part in (*path.split("."), name) if part]
            owners = [part for part in parts if part in adapters]
            if value is None or any(part != active for part in owners):
                continue
            yield _plain_name(parts, adapters), value


def _plain_name(parts: list[str], adapters: Collection[str]) -> str:
    """The name without what PEFT puts into it where it wraps a module."""
    shown = []
    for part in parts:
        if part in adapters:
            shown.append(_ADAPTER)
        elif part not in _WRAPPERS:
            shown.append(part)
    return ".".join(shown)
