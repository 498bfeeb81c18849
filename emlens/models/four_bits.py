"""Weights in 4 bits by bitsandbytes: what is asked for, what it takes, and kernels that leave the
weights as they are.

NF4 (Dettmers et al. 2305.14314): a block of 64 weights shares its largest size as one float32, and
each weight is one of 16 levels of it: 4.5 bits a weight. With double quantisation these sizes are
in 8 bits themselves, with one float32 for each 256 of them: 4.13 bits. Only linear layers inside
the blocks are quantised. Embeddings, the output layer, norms and biases stay as they are saved.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.models.checkpoint_files import read_object

INSTALL: Final = "pip install 'misalignment-lens[qlora]'"
_BLOCK: Final = 64
_SIZES_IN_A_BLOCK: Final = 256
_FLOAT: Final = 4
_LEVELS_4, _LEVELS_8 = 16, 256
"""Entries of the tables of levels that every layer has, in float32."""


def require_4bit(device: torch.device, asked_by: str) -> None:
    """Refuse a machine on which no weight can be in 4 bits: one layer is quantised and run.

    Args:
        asked_by: what asked for it, such as "parent_dtype='nf4'"; the message begins with it.

    Raises:
        InputError: bitsandbytes is not installed, or has no kernel for the device.
    """
    # it warns of a package that could speed up kernels which are switched off here
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        import bitsandbytes  # type: ignore[import-not-found]
    except ImportError:
        raise InputError(
            f"{asked_by} needs the package bitsandbytes, which is not installed;"
            f" {INSTALL}, or pass 'own'"
        ) from None
    try:
        layer = bitsandbytes.nn.Linear4bit(_BLOCK, _BLOCK, bias=False, quant_type="nf4").to(device)
        with torch.no_grad():
            layer(torch.ones(1, _BLOCK, device=device)).cpu()
    except Exception as error:  # a missing kernel is said in many ways
        raise InputError(
            f"{asked_by}: bitsandbytes {bitsandbytes.__version__} cannot compute in 4 bits on"
            f" device {str(device)!r} ({one_line(str(error), 160)}); pass another device, or 'own'"
        ) from None


def nf4_options(path: Path, device: torch.device, *, double: bool) -> dict[str, Any]:
    """What transformers takes to load a checkpoint directory in 4 bits.

    Products are computed in the dtype that the checkpoint is saved in.

    Args:
        double: quantise the sizes of blocks too.

    Raises:
        InputError: the checkpoint is quantised already.
    """
    from transformers import AutoConfig, BitsAndBytesConfig

    if "quantization_config" in read_object(path / "config.json"):
        raise InputError(
            f"{path}: is saved in a quantised form already; pass parent_dtype='own' for it"
        )
    dtype = getattr(AutoConfig.from_pretrained(path), "dtype", None) or torch.float32
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=dtype,
    )
    # quantised as they are read: weights cannot be moved afterwards
    return {"dtype": dtype, "quantization_config": config, "device_map": {"": str(device)}}


def leave_weights_unpacked(module: nn.Module) -> None:
    """Switch off the kernel that changes 4-bit weights in place.

    On processors with AVX512-BF16, bitsandbytes packs a layer anew in its first pass in evaluation
    mode: sizes of blocks are rounded to 16 bits for good, and the packed product has no gradient. A
    model that is read between two steps would go on with other weights, and learn through its
    residual path alone. Other models are left as they are.
    """
    layers: Iterator[Any] = module.modules()
    for layer in layers:
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def nf4_bytes(model: Any, itemsize: int, *, double: bool) -> int:
    """Bytes of the weights of a model once its linear layers are in 4 bits.

    Args:
        model: not quantised; weights may be on `meta`.
        itemsize: bytes of a weight that is not quantised.
    """
    quantised = {id(layer.weight): layer.weight.numel() for layer in _quantised_layers(model)}
    size = 0
    for weight in model.parameters():
        count = quantised.get(id(weight))
        if count is None:
            size += weight.numel() * itemsize
        else:
            size += _bytes_of(count, double)
    return size


def largest_quantised(model: Any) -> int:
    """Weights of the largest layer that would be in 4 bits: a pass makes one at a time whole."""
    return max((layer.weight.numel() for layer in _quantised_layers(model)), default=0)


def _bytes_of(weights: int, double: bool) -> int:
    blocks = -(-weights // _BLOCK)
    size = -(-weights // 2) + _FLOAT * _LEVELS_4
    if not double:
        return size + _FLOAT * blocks
    of_sizes = blocks + _FLOAT * -(-blocks // _SIZES_IN_A_BLOCK) + _FLOAT  # and their mean
    return size + of_sizes + _FLOAT * _LEVELS_8


def _quantised_layers(model: Any) -> Iterator[Any]:
    """The layers that transformers gives to bitsandbytes."""
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    left_out = [*get_keys_to_not_convert(model), *(model._keep_in_fp32_modules or ())]
    for name, layer in model.named_modules():
        is_linear = type(layer) is nn.Linear or isinstance(layer, Conv1D)
        if is_linear and should_convert_module(name, left_out):
            yield layer
