"""Checks of shape, dtype and finiteness that name the argument and show what was given."""

import torch
from torch import Tensor

from emlens.foundation.errors import InputError


def as_float64(value: Tensor, name: str) -> Tensor:
    """`value` in float64 on its device.

    Raises:
        InputError: not a floating-point tensor, or it holds NaN or infinity.
    """
    _require_tensor(value, name)
    if not value.is_floating_point():
        raise InputError(f"{name} has dtype {value.dtype}; pass a floating-point tensor")
    wide = value.detach().to(torch.float64)
    bad = int((~torch.isfinite(wide)).sum())
    if bad:
        raise InputError(
            f"{name} holds {bad} values that are NaN or infinite, of {wide.numel()};"
            " drop or fix them first"
        )
    return wide


def require_ndim(value: Tensor, at_least: int, name: str, shape: str) -> None:
    _require_tensor(value, name)
    if value.ndim < at_least:
        raise InputError(f"{name} has shape {tuple(value.shape)}; pass {shape}")


def _require_tensor(value: object, name: str) -> None:
    if isinstance(value, Tensor):
        return
    kind = type(value).__name__
    remedy = "a torch tensor"
    if kind in ("Activations", "ActivationStore"):
        remedy = "one site of it, such as acts['resid_post.3']"
    elif hasattr(type(value), "direction"):
        remedy = "its direction"
    raise InputError(f"{name} is a {kind}; pass {remedy}")


def require_same_width(a: Tensor, b: Tensor, name_a: str, name_b: str) -> None:
    if a.shape[-1] != b.shape[-1]:
        raise InputError(
            f"{name_a} has {a.shape[-1]} coordinates and {name_b} has {b.shape[-1]};"
            " pass vectors of one residual stream"
        )
