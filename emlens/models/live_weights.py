"""A fingerprint of weights as they are in memory: a changed model is not taken for its file.

The hash of a checkpoint's files says what was loaded, not what is there now: `p.data += x`, a merge
or a training step changes weights and no file. Every tensor is read as words of 64 bits, the words
of each row are added modulo 2⁶⁴, and the sums are hashed with names, dtypes and shapes. Whole
numbers have no rounding, so the same weights have the same fingerprint in every process, on every
device, with any number of threads.

Covered: every parameter that the model runs on, its selected adapter's included, and every buffer
that is saved with it. Missed: words of one row that change places, or whose changes add up to 0
modulo 2⁶⁴ (no arithmetic edit does that but by chance, about 2⁻³² for a single row); buffers that
are not saved (rotary frequencies); modules and hooks. Cost: the weights are read once at the speed
of memory. Measured: .05 s for 540 MB, 2 % of a capture of 24 prompts on SmolLM2 in float32.
"""

import hashlib
from collections.abc import Collection, Iterator
from operator import itemgetter

import torch
from torch import Tensor, nn

from emlens.models.widening import own_dtype

_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
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
    """The bits of each row, added as whole numbers modulo 2⁶⁴."""
    rows = value.detach().contiguous()
    if rows.ndim == 0:
        rows = rows[None]
    rows = rows.reshape(-1, rows.shape[-1])
    if rows.is_complex():
        rows = torch.view_as_real(rows).flatten(1)
    # eight bytes at once where rows can be cut so: one pass at the speed of memory. It depends on
    # shape and dtype alone, never on where the tensor lies.
    if rows.shape[-1] * rows.element_size() % 8 == 0:
        if rows.storage_offset() * rows.element_size() % 8:
            rows = rows.clone()
        return rows.view(torch.int64).sum(-1)
    return rows.view(_WORDS[rows.element_size()]).sum(-1, dtype=torch.int64)


def weight_versions(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Where every parameter lies and how often torch saw it change: looked at in no time.

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
