"""A card that is not there: tensors that say they are on `cuda:0` and compute on the processor.

What a real card refuses is refused here too: an operation on tensors of two devices (a number, an
index and a copy may cross), `.numpy()` without `.cpu()`, a draw with a generator of another device.
So code that forgot where its tensors are fails in a test on any machine.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

CARD = torch.device("cuda", 0)
PEAK = 7
"""Bytes that it says it held."""
_LEAVING = {
    Tensor.tolist,
    Tensor.item,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__bool__,
    Tensor.__index__,
    Tensor.__repr__,
    Tensor.__format__,
    Tensor.cpu,
}
"""Values as Python's own, or on the processor."""
_OF_CARD = {Tensor.device.__get__, Tensor.is_cuda.__get__, Tensor.is_cpu.__get__}  # type: ignore[attr-defined]
_CROSSING = {Tensor.copy_}


_CUDA: dict[str, Any] = {
    "get_device_name": lambda *_: "pretended",
    "synchronize": lambda *_: None,
    "set_device": lambda *_: None,
    "reset_peak_memory_stats": lambda *_: None,
    "max_memory_allocated": lambda *_: PEAK,
}


class OnCard(Tensor):
    """A tensor on the pretended card; `inner` holds its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnCard":
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=CARD,
            requires_grad=False,
        )
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any, **__: Any) -> Any:
        raise RuntimeError(f"{func} reached a tensor of the pretended card outside its block")


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, OnCard) else value


def _on_card(value: Any) -> Any:
    if isinstance(value, Tensor) and not isinstance(value, OnCard):
        return OnCard(value)
    return value


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _tensors(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


def _refuse_two_devices(func: Any, values: Any) -> None:
    """A tensor of the processor beside one of the card, if it is more than a number."""
    tensors = list(_tensors(values))
    there = [each for each in tensors if isinstance(each, OnCard)]
    here = [each for each in tensors if not isinstance(each, OnCard) and each.ndim > 0]
    if there and here:
        name = getattr(func, "__name__", func)
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found cuda:0 and cpu ({name})"
        )


def _names_card(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, str) and value.startswith("cuda")


def _names_processor(value: Any) -> bool:
    return value == "cpu" or (isinstance(value, torch.device) and value.type == "cpu")


class _Functions(TorchFunctionMode):
    """Every function of torch: its tensors are on one device, and what it gives is there too."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        values = (*args, *kwargs.values())
        is_on_card = any(isinstance(each, OnCard) for each in _tensors(values))
        named = any(map(_names_card, values))
        if (not is_on_card and not named) or func in _OF_CARD or func is torch.device:
            return func(*args, **kwargs)
        if kwargs.get("generator") is not None:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        if func in (Tensor.numpy, Tensor.__array__):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            # an index may lie on the processor, a value may not
            if not isinstance(args[0], OnCard):
                raise RuntimeError("indices should be on the device of the indexed tensor (cpu)")
            _refuse_two_devices(func, (args[0], *args[2:]))
        elif func is not Tensor.to and func not in _CROSSING:
            _refuse_two_devices(func, values)
        leaves = func in _LEAVING or any(map(_names_processor, values))
        if func is Tensor.to and len(args) > 1 and isinstance(args[1], Tensor):
            leaves = not isinstance(args[1], OnCard)
        inner = [tree_map(_moved_name, tree_map(_inner, each)) for each in args]
        by_name = {name: tree_map(_moved_name, tree_map(_inner, v)) for name, v in kwargs.items()}
        found = func(*inner, **by_name)
        if leaves:
            return found
        name = getattr(func, "__name__", "")
        if args and name.endswith("_") and not name.endswith("__"):
            return args[0]  # changed in place
        return tree_map(_on_card, found)


def _moved_name(value: Any) -> Any:
    return "cpu" if _names_card(value) else value


def _module_to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """`Module.to`, whose way of setting weights does not know another class of tensor."""
    values = (*args, *kwargs.values())
    if not any(map(_names_card, values)):
        return _MODULE_TO(module, *args, **kwargs)
    dtypes = [each for each in values if isinstance(each, torch.dtype)]
    return moved(_MODULE_TO(module, *dtypes) if dtypes else module)


_MODULE_TO = nn.Module.to


@contextmanager
def pretended_card() -> Iterator[torch.device]:
    """Inside, tensors can be made on `CARD` and moved there."""
    with (
        _Functions(),
        patch.multiple(torch.cuda, **_CUDA),
        patch.object(nn.Module, "to", _module_to),
    ):
        yield CARD


def moved(model: Any) -> Any:
    """A model with its weights on the pretended card."""
    module = getattr(model, "module", model)
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None and not isinstance(weight, OnCard):
                there = OnCard(weight.detach().requires_grad_(weight.requires_grad))
                there._is_param = True  # what makes it an nn.Parameter
                part._parameters[name] = there
        for name, buffer in part._buffers.items():
            if buffer is not None and not isinstance(buffer, OnCard):
                part._buffers[name] = OnCard(buffer)
    if module is not model:
        model.device = CARD
    return model
