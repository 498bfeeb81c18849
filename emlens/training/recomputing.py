"""Training in less memory at no cost: cheap activations are computed again in the backward pass.

Of what a pass keeps for its gradient, two fifths follow from the rest by work that costs next to
nothing beside a matrix product: a norm's output from its input, an activation function's from its
input, the product of a gated MLP from its two factors, and the float32 copy that each adapter makes
of a 16-bit input. Here these are not kept. Whatever else an operation saves is kept as ever.

The first pass compares: an activation that is not had again bit for bit stays kept. So gradients,
and the weights that come of them, have the same bytes as without this.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from emlens.foundation.errors import StateError

_NORM: Final = re.compile(r"(RMS|Layer)Norm$")
_ACTIVATIONS: Final = (nn.SiLU, nn.GELU, nn.ReLU)
_Compute = Callable[..., Tensor]


class _Kept:
    """A tensor that is kept for the backward pass."""

    __slots__ = ("_tensor", "_version")

    def __init__(self, tensor: Tensor):
        # detached: an operation that keeps its own result would hold itself in memory
        self._tensor = tensor.detach()
        self._version = tensor._version

    def value(self) -> Tensor:
        if self._tensor._version != self._version:
            raise StateError(
                "an activation was changed in place between the forward and the backward pass, so"
                " its gradient would be wrong; change a copy"
            )
        return self._tensor


class _Again:
    """A tensor that is computed when it is asked for, once."""

    __slots__ = ("_compute", "_inputs", "_made", "version")

    def __init__(self, compute: _Compute, inputs: "Sequence[_Saved]", version: int):
        self._compute = compute
        self._inputs = inputs
        self._made: Tensor | None = None
        self.version = version

    def value(self) -> Tensor:
        if self._made is None:
            with torch.no_grad():
                self._made = self._compute(*(each.value() for each in self._inputs))
            self._inputs = ()
        return self._made


class _View:
    """A view of a tensor that is computed again."""

    __slots__ = ("_base", "_layout")

    def __init__(self, base: _Again, view: Tensor):
        self._base = base
        self._layout = view.size(), view.stride(), view.storage_offset()

    def value(self) -> Tensor:
        return self._base.value().as_strided(*self._layout)


_Saved = _Kept | _Again | _View


class Recomputed:
    """Which activations of a model are computed again; `active` puts it into force."""

    def __init__(self, model: nn.Module):
        self._model = model
        self._again: Any = WeakTensorKeyDictionary()
        self._proved: dict[int, bool] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Passes inside keep less for their gradient."""
        handles: list[Any] = []
        for module in self._model.modules():
            handles.extend(self._watched(module))
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack):
                yield
        finally:
            for handle in handles:
                handle.remove()
            self._again.clear()

    def _pack(self, tensor: Tensor) -> _Saved:
        base = tensor._base if tensor._is_view() else tensor
        again = self._again.get(base)
        # one that was changed in place since is no longer what would be computed
        if again is None or base is None or again.version != base._version:
            return _Kept(tensor)
        return again if base is tensor else _View(again, tensor)

    def _learn(self, key: int, made: Tensor, compute: _Compute, *inputs: Tensor) -> None:
        """Note that `made` is `compute(*inputs)`; proved at the first time.

        Args:
            key: of the place in the model.
        """
        if not torch.is_grad_enabled() or not made.requires_grad or made._is_view():
            return
        if key not in self._proved:
            with torch.no_grad():
                again = compute(*inputs)
            same_layout = again.stride() == made.stride() and again.dtype == made.dtype
            self._proved[key] = same_layout and torch.equal(again, made)
        if self._proved[key]:
            saved = [self._pack(each) for each in inputs]
            self._again[made] = _Again(compute, saved, made._version)

    def _watched(self, module: nn.Module) -> Iterator[Any]:
        """Hooks on one module."""
        if _is_function(module) or _NORM.search(type(module).__name__):
            yield module.register_forward_hook(self._after_function)
        if all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
            yield from self._gated(module)
        if hasattr(module, "lora_A") and hasattr(module, "base_layer"):
            yield from self._adapted(module)

    def _after_function(self, module: nn.Module, args: tuple[Any, ...], made: Any) -> None:
        if len(args) == 1 and isinstance(args[0], Tensor) and isinstance(made, Tensor):
            self._learn(id(module), made, module.forward, args[0])

    def _gated(self, mlp: Any) -> Iterator[Any]:
        """The product of a gated MLP: the input of its last layer."""
        factors: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            def after(_module: nn.Module, _args: Any, made: Any) -> None:
                if isinstance(made, Tensor) and torch.is_grad_enabled():
                    factors[name] = made

            return after

        def before_last(module: nn.Module, args: tuple[Any, ...]) -> None:
            found = [factors.pop(name, None) for name in ("act_fn", "up_proj")]
            gate, up = found
            if args and gate is not None and up is not None and gate.shape == up.shape:
                self._learn(id(module), args[0], torch.mul, gate, up)

        yield mlp.act_fn.register_forward_hook(keep("act_fn"))
        yield mlp.up_proj.register_forward_hook(keep("up_proj"))
        yield mlp.down_proj.register_forward_pre_hook(before_last)

    def _adapted(self, layer: Any) -> Iterator[Any]:
        """The copy of an adapter's input in the dtype of the adapter."""
        given: list[Tensor] = []

        def before(_module: nn.Module, args: tuple[Any, ...]) -> None:
            given[:] = args[:1]

        def before_product(module: nn.Module, args: tuple[Any, ...]) -> None:
            if given and args[0] is not given[0] and args[0].dtype != given[0].dtype:
                dtype = args[0].dtype
                self._learn(id(module), args[0], lambda x: x.to(dtype), given[0])

        def after(_module: nn.Module, _args: Any, _made: Any) -> None:
            given.clear()

        yield layer.register_forward_pre_hook(before)
        yield layer.register_forward_hook(after)
        for product in layer.lora_A.values():
            yield product.register_forward_pre_hook(before_product)


def _unpack(saved: _Saved) -> Tensor:
    return saved.value()


def _is_function(module: nn.Module) -> bool:
    """Whether it is an activation function: it has no weights, and no random numbers."""
    of_transformers = type(module).__module__ == "transformers.activations"
    return isinstance(module, _ACTIVATIONS) or of_transformers
