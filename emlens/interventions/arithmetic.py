"""The pure functions that interventions become.

Three kinds: low-rank affine maps, steps in units of the norm, and values put in place. Arithmetic
runs in float32 (float64 for float64 input) and returns the activation's dtype; inputs are never
written to. An affine map costs two matrix products of its rank, however many interventions were
joined into it.
"""

from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from emlens.foundation.intervention import Edit

_Key = tuple[torch.dtype, torch.device]


class Converted:
    """Tensors in the dtype and on the device of an activation, converted once per pair of these."""

    def __init__(self, *tensors: Tensor):
        self._originals = tensors
        self._converted: dict[_Key, tuple[Tensor, ...]] = {}

    def like(self, value: Tensor) -> tuple[Tensor, ...]:
        key = (value.dtype, value.device)
        if key not in self._converted:
            self._converted[key] = tuple(
                tensor.to(value).contiguous() for tensor in self._originals
            )
        return self._converted[key]


def wide(activation: Tensor) -> Tensor:
    """At least float32: bfloat16 rounds at 1 in 256, so a projection in it leaves some behind."""
    if activation.dtype in (torch.float32, torch.float64):
        return activation
    return activation.float()


def where_touched(mask: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    """`new` in the dtype of `old` at touched tokens, `old` itself elsewhere."""
    new = new.to(old.dtype)
    if mask is None:
        return new
    return torch.where(mask[..., None], new, old)


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
        if bool((shift != 0).any()):
            # the shift as one more coordinate that reads nothing (0) and is always 1, so that
            # it needs no addition of its own in each pass
            read = torch.cat([read, torch.zeros_like(read[:, :1])], dim=1)
            bias = torch.cat([bias, torch.ones_like(bias[:1])])
            write = torch.cat([write, shift[None]])
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
            # h' = h + (h·R + b)·W + s, put into h'' = h' + (h'·R2 + b2)·W2 + s2: the second map
            # reads h·(R2 + R·(W·R2)) + b2 + b·(W·R2) + s·R2, so the two have one map of rank k + k2
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
    basis: Float[Tensor, "d_model k"],
    baseline: Float[Tensor, " d_model"] | None,
    scales: Float[Tensor, " d_model"] | None = None,
) -> AffineMap:
    """h ← h − B Qᵀ(h − μ) for orthonormal columns B; for one column r̂: h − ((h − μ)·q)r̂.

    Without scales Q = B. With them Q = D⁻¹B(BᵀD⁻¹B)⁻¹, D the diagonal matrix of the scales.
    Plain projection, h − (h·r̂)r̂, is the case μ = 0 without scales.
    """
    read = basis
    if scales is not None:
        weighted = basis / scales[:, None]
        read = weighted @ torch.linalg.inv(basis.T @ weighted)
    # read h·Q − μ·Q, write it with a minus sign: idempotent, since QᵀB = 1
    if baseline is None:
        bias = torch.zeros_like(basis[0])
    else:
        bias = -(baseline @ read)
    return AffineMap(read, bias, -basis.T, torch.zeros_like(basis[:, 0]))


def shifting(vector: Float[Tensor, " d_model"]) -> AffineMap:
    """h ← h + v."""
    return AffineMap(
        vector.new_zeros(len(vector), 0),
        vector.new_zeros(0),
        vector.new_zeros(0, len(vector)),
        vector,
    )


class NormStep(Edit):
    """h ← h + ‖h‖·v, with the norm of each token's own activation."""

    def __init__(self, step: Float[Tensor, " d_model"]):
        self._step = Converted(step)

    def __call__(
        self,
        activation: Float[Tensor, "batch token d_model"],
        mask: Bool[Tensor, "batch token"] | None,
    ) -> Float[Tensor, "batch token d_model"]:
        h = wide(activation)
        (step,) = self._step.like(h)
        norms = torch.linalg.vector_norm(h, dim=-1, keepdim=True)
        return where_touched(mask, torch.addcmul(h, norms, step), activation)


class Placing(Edit):
    """Touched tokens take the values of other rows: all of each value, or its part in a span.

    Args:
        source: the rows to choose from (choice, d_model), and, where only a part is placed,
            orthonormal columns of its span.
        index: which row each token takes, by column of the padded batch; None: all take row 0.
    """

    def __init__(self, source: Converted, index: Int[Tensor, "row column"] | None):
        self._source, self._index = source, index

    def over(self, start: int, stop: int) -> "Placing":
        if self._index is None:
            return self
        return Placing(self._source, self._index[:, start:stop])

    def __call__(
        self,
        activation: Float[Tensor, "batch token d_model"],
        mask: Bool[Tensor, "batch token"] | None,
    ) -> Float[Tensor, "batch token d_model"]:
        h = wide(activation)
        rows, *basis = self._source.like(h)
        if self._index is None:
            new = rows[0]
        else:
            new = rows[self._index.to(h.device)]
        if basis:
            # h + B Bᵀ(x − h): x inside the span, h outside it
            new = h + ((new - h) @ basis[0]) @ basis[0].T
        return where_touched(mask, new.expand_as(h), activation)
