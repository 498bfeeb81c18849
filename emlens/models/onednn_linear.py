"""Float32 linear layers of wide models through oneDNN, on a processor.

torch hands a float32 `linear` on x86 to MKL, and one in bfloat16 to oneDNN. On AMD's processors MKL
uses half of the width that a core has: oneDNN takes 0.4 to 0.5 of its time there for the same
product (`docs/performance.md`). torch has no setting for this, but carries the operation, which its
compiler uses. Values differ by rounding, as they do between two sizes of a batch.

Passes and training run inside `by_onednn`. No module is touched: torch shows a block of code each
call of its functions, in its own thread.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

LEAST_WIDTH = 256
"""Coordinates of the stream below which everything is left to torch, without a look at each call.
"""
LEAST_PRODUCT = 2**21
"""Multiplications below which a product is left to torch: a call of oneDNN costs more than one of
MKL, and one row of a thousand numbers is read no faster.
"""


def by_onednn(width: int) -> AbstractContextManager[Any]:
    """A block in which float32 linear layers on the processor are computed by oneDNN.

    Args:
        width: coordinates of the model's stream, `d_model`.
    """
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    if not has_both or width < LEAST_WIDTH:
        return nullcontext()
    return _LinearByOneDnn()


class _LinearByOneDnn(TorchFunctionMode):
    """Sees every torch function that is called in its block and answers `linear` itself."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is functional.linear and not kwargs and _is_plain(args) and _is_large(args):
            if torch.is_grad_enabled() and any(_needs_gradient(tensor) for tensor in args):
                return _Linear.apply(*args)
            return _product(*args)
        return func(*args, **(kwargs or {}))


def _is_plain(tensors: Iterable[Tensor | None]) -> bool:
    """Whether all are dense float32 tensors of the processor, and are to stay in float32."""
    if torch.is_autocast_enabled("cpu"):
        return False
    return all(tensor is None or _is_plain_tensor(tensor) for tensor in tensors)


def _is_plain_tensor(tensor: Tensor) -> bool:
    # a subclass may hold anything: packed weights, a part of a tensor, a tensor without values
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.dtype != torch.float32:
        return False
    return tensor.device.type == "cpu" and tensor.layout == torch.strided


def _is_large(tensors: Sequence[Tensor]) -> bool:
    values, weight = tensors[:2]
    return values.numel() * len(weight) >= LEAST_PRODUCT


def _needs_gradient(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.requires_grad


def _product(
    values: Float[Tensor, "... d_in"],
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, " d_out"] | None = None,
) -> Float[Tensor, "... d_out"]:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(values, weight, bias, "none", [], "")
    return product


class _Linear(torch.autograd.Function):
    """The same with its gradient, which the operation does not bring."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Float[Tensor, "... d_in"],
        weight: Float[Tensor, "d_out d_in"],
        bias: Float[Tensor, " d_out"] | None = None,
    ) -> Float[Tensor, "... d_out"]:
        # of a frozen weight the values are not needed, and are not kept
        ctx.save_for_backward(values if ctx.needs_input_grad[1] else None, weight)
        return _product(values, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "... d_out"]) -> tuple[Tensor | None, ...]:
        values, weight = ctx.saved_tensors
        of_values = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_values = _product(gradient, weight.t())
        flat = gradient.flatten(0, -2)
        if ctx.needs_input_grad[1]:
            of_weight = _product(flat.t(), values.flatten(0, -2).t())
        if len(ctx.needs_input_grad) > 2 and ctx.needs_input_grad[2]:
            of_bias = flat.sum(0)
        return of_values, of_weight, of_bias
