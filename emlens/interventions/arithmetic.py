"""The pure functions that interventions become: low-rank affine maps, steps by the norm, values put
in place.

Arithmetic runs in float32 (float64 for float64 input) and returns the activation's dtype; inputs
are never written to. An affine map costs two matrix products of its rank, however many
interventions were joined into it.
"""

from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from emlens.foundation.intervention import Edit

_Key = tuple[torch.dtype, torch.device]


class Converted:
    """Tensors in the dtype and on the device of what they meet, converted once for each."""

    def __init__(self, *tensors: Tensor):
        self._given = tensors
        self._made: dict[_Key, tuple[Tensor, ...]] = {}

    def like(self, value: Tensor) -> tuple[Tensor, ...]:
        key = (value.dtype, value.device)
        if key not in self._made:
            self._made[key] = tuple(tensor.to(value).contiguous() for tensor in self._given)
        return self._made[key]


def wide(activation: Tensor) -> Tensor:
    return activation if activation.dtype in (torch.float32, torch.float64) else activation.float()


def where_touched(mask: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    """`new` in the dtype of `old` at touched tokens, `old` itself elsewhere."""
    new = new.to(old.dtype)
    return new if mask is None else torch.where(mask[..., None], new, old)


class AffineMap(Edit):
    """h ← h + (h·read + bias)·write + shift.

    Args:
        read, bias, write: of rank k, which may be 0: then the map only shifts.
    """

    def __init__(
        self,
        read: Float[Tensor, "d_model k"],
        bias: Float[Tensor, " k"],
        write: Float[Tensor, "k d_model"],
        shift: Float[Tensor, " d_model"],
    ):
        self._maps = (read, bias, write, shift)
        self._joined: WeakKeyDictionary[Edit, AffineMap] = WeakKeyDictionary()
        self._shifts_only = read.shape[1] == 0
        if self._shifts_only:
            self._converted = Converted(shift)
            return
        if bool((shift != 0).any()):  # one more coordinate that is always 1
            read = torch.cat([read, torch.zeros_like(read[:, :1])], dim=1)
            bias, write = (
                torch.cat([bias, torch.ones_like(bias[:1])]),
                torch.cat([write, shift[None]]),
            )
        self._converted = Converted(read, bias, write)

    def __call__(
        self,
        activation: Float[Tensor, "batch token d_model"],
        mask: Bool[Tensor, "batch token"] | None,
    ) -> Float[Tensor, "batch token d_model"]:
        h = wide(activation)
        if self._shifts_only:
            return where_touched(mask, h + self._converted.like(h)[0], activation)
        read, bias, write = self._converted.like(h)
        flat = h.reshape(-1, h.shape[-1])
        moved = torch.addmm(flat, torch.addmm(bias, flat, read), write)
        return where_touched(mask, moved.view(h.shape), activation)

    def then(self, after: Edit) -> "AffineMap | None":
        if not isinstance(after, AffineMap):
            return None
        if after not in self._joined:
            read, bias, write, shift = self._maps
            read2, bias2, write2, shift2 = after._maps
            across = write @ read2
            self._joined[after] = AffineMap(
                torch.cat([read, read2 + read @ across], dim=1),
                torch.cat([bias, bias2 + bias @ across + shift @ read2]),
                torch.cat([write, write2]),
                shift + shift2,
            )
        return self._joined[after]


def projection(
    basis: Float[Tensor, "d_model k"], baseline: Float[Tensor, " d_model"] | None
) -> AffineMap:
    """h ← h − B Bᵀ(h − μ) for orthonormal columns B."""
    bias = torch.zeros_like(basis[0]) if baseline is None else -(baseline @ basis)
    return AffineMap(basis, bias, -basis.T, torch.zeros_like(basis[:, 0]))


def shifting(vector: Float[Tensor, " d_model"]) -> AffineMap:
    """h ← h + v."""
    return AffineMap(
        vector.new_zeros(len(vector), 0),
        vector.new_zeros(0),
        vector.new_zeros(0, len(vector)),
        vector,
    )


class NormStep(Edit):
    """h ← h + ‖h‖·v, the norm that of each token."""

    def __init__(self, step: Float[Tensor, " d_model"]):
        self._step = Converted(step)

    def __call__(
        self,
        activation: Float[Tensor, "batch token d_model"],
        mask: Bool[Tensor, "batch token"] | None,
    ) -> Float[Tensor, "batch token d_model"]:
        h = wide(activation)
        (step,) = self._step.like(h)
        return where_touched(
            mask,
            torch.addcmul(h, torch.linalg.vector_norm(h, dim=-1, keepdim=True), step),
            activation,
        )


class Placing(Edit):
    """Touched tokens take given values: all of them, or only their part in a span.

    Args:
        held: the rows to choose from (choice, d_model), and, where only a part is placed,
            orthonormal columns of its span.
        index: which row each token takes, by column of the padded batch; None: all take row 0.
    """

    def __init__(self, held: Converted, index: Int[Tensor, "row column"] | None):
        self._held, self._index = held, index

    def over(self, start: int, stop: int) -> "Placing":
        return self if self._index is None else Placing(self._held, self._index[:, start:stop])

    def __call__(
        self,
        activation: Float[Tensor, "batch token d_model"],
        mask: Bool[Tensor, "batch token"] | None,
    ) -> Float[Tensor, "batch token d_model"]:
        h = wide(activation)
        values, *basis = self._held.like(h)
        given = values[0] if self._index is None else values[self._index.to(h.device)]
        if basis:
            given = h + ((given - h) @ basis[0]) @ basis[0].T
        return where_touched(mask, given.expand_as(h), activation)
