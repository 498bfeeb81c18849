"""Checks of shape, dtype and finiteness that name the argument and show what was given."""

import torch
from torch import Tensor

from emlens.foundation.errors import InputError


def as_float64(value: Tensor, name: str) -> Tensor:
    """`value` in float64 on its device.

    Raises:
        InputError: not a floating-point tensor, or it holds NaN or infinity.
    """
    if not isinstance(value, Tensor):
        raise InputError(f"{name} is a {type(value).__name__}; pass a torch tensor")
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
    if value.ndim < at_least:
        raise InputError(f"{name} has shape {tuple(value.shape)}; pass {shape}")


def require_same_width(a: Tensor, b: Tensor, name_a: str, name_b: str) -> None:
    if a.shape[-1] != b.shape[-1]:
        raise InputError(
            f"{name_a} has {a.shape[-1]} coordinates and {name_b} has {b.shape[-1]};"
            " pass vectors of one residual stream"
        )
