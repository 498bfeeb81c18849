"""Arithmetic of adapters as updates of weights: norms, sums, lines between two, random ones beside
one. Nothing here depends on the gauge.

An adapter is a vector of weight updates ΔW = scale · B A, one a module; its norm is Frobenius over
all modules. Sums are exact: factors are set side by side, so that ranks add up, and no ΔW is
formed. Adding B to B and A to A instead would be another update, one that hangs on how each adapter
splits its ΔW. Memory: the adapters' own size. What comes out can be saved, applied and loaded as
any adapter.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from emlens.foundation.errors import InputError
from emlens.foundation.seeds import torch_rng
from emlens.interventions.lora import LoraAdapter, LoraFactors
from emlens.interventions.weight_edits import scaled


def update_product(first: LoraFactors, second: LoraFactors) -> float:
    """Frobenius inner product of two updates of one module, tr(ΔW₁ᵀ ΔW₂), from r × r matrices
    alone.

    Raises:
        InputError: updates of other shapes.
    """
    if first.a.shape[1] != second.a.shape[1] or first.b.shape[0] != second.b.shape[0]:
        shapes = [(f.b.shape[0], f.a.shape[1]) for f in (first, second)]
        raise InputError(
            f"the updates have shapes {shapes[0]} and {shapes[1]}; pass updates of one module"
        )
    written = first.b.double().T @ second.b.double()
    read = first.a.double() @ second.a.double().T
    return first.scale * second.scale * float((written * read).sum())


def update_norm(adapter: LoraAdapter) -> float:
    """Frobenius norm of the whole update, over all modules."""
    return math.sqrt(
        max(0.0, sum(update_product(factors, factors) for factors in adapter.modules.values()))
    )


def combined(parts: Sequence[tuple[LoraAdapter, float]]) -> LoraAdapter:
    """The adapter whose update is Σ weight · update; a module that a part lacks counts as unchanged
    there.

    Raises:
        InputError: no part, a weight that is not finite, or updates of other shapes.
    """
    if not parts or not all(math.isfinite(weight) for _, weight in parts):
        raise InputError(
            f"parts holds the weights {[weight for _, weight in parts]};"
            " pass at least one adapter, each with a finite weight"
        )
    modules: dict[str, LoraFactors] = {}
    for path in dict.fromkeys(path for adapter, _ in parts for path in adapter.modules):
        found = [
            (adapter.modules[path], weight) for adapter, weight in parts if path in adapter.modules
        ]
        shapes = {(factors.b.shape[0], factors.a.shape[1]) for factors, _ in found}
        if len(shapes) > 1:
            raise InputError(
                f"module {path!r} has updates of shapes {sorted(shapes)};"
                " pass adapters of one model"
            )
        a = torch.cat([factors.a.float() for factors, _ in found])
        b = torch.cat(
            [factors.b.float() * (factors.scale * weight) for factors, weight in found], dim=1
        )
        modules[path] = LoraFactors(a, b, 1.0, found[0][0].embedding)
    edit: Mapping[str, Any] = {"kind": "combined", "weights": [weight for _, weight in parts]}
    kept = {key: value for key, value in parts[0][0].config.items() if key == "fan_in_fan_out"}
    return LoraAdapter(modules, kept, (edit,))


def interpolated(first: LoraAdapter, second: LoraAdapter, t: float) -> LoraAdapter:
    """The adapter at (1 − t) · first + t · second, on the straight line between two updates; t may
    lie outside 0 to 1.
    """
    return combined([(first, 1.0 - t), (second, t)])


def with_norm(adapter: LoraAdapter, norm: float) -> LoraAdapter:
    """The adapter rescaled so that its update has this Frobenius norm.

    Raises:
        InputError: a negative norm, or an update that is zero.
    """
    own = update_norm(adapter)
    if not (own > 0 and math.isfinite(norm) and norm >= 0):
        raise InputError(
            f"norm={norm!r} of an update whose norm is {own:g};"
            " pass a norm of 0 or more and an update that is not zero"
        )
    return scaled(adapter, norm / own)


def random_update(like: LoraAdapter, seed: int) -> LoraAdapter:
    """A random update of the same rank and norm as `like` in each module, and orthogonal to it
    there.

    Gaussian factors, less what lies along `like`; the projection adds the rank of `like`.

    Raises:
        InputError: an update that is zero.
    """
    modules = {}
    for path, factors in like.modules.items():
        size = update_product(factors, factors)
        if not size > 0:
            raise InputError(
                f"the update of {path!r} is zero, so nothing can be random beside it;"
                " pass a trained adapter"
            )
        generator = torch_rng(seed, "random_update", path)
        a, b = (torch.randn(side.shape, generator=generator) for side in (factors.a, factors.b))
        drawn = LoraFactors(a, b, 1.0, factors.embedding)
        along = update_product(drawn, factors) / size
        a, b = (
            torch.cat([a, factors.a.float()]),
            torch.cat([b, -along * factors.scale * factors.b.float()], dim=1),
        )
        left = LoraFactors(a, b, 1.0, factors.embedding)
        modules[path] = LoraFactors(
            a, b * math.sqrt(size / update_product(left, left)), 1.0, factors.embedding
        )
    kept = {key: value for key, value in like.config.items() if key == "fan_in_fan_out"}
    return LoraAdapter(modules, kept, ({"kind": "random", "seed": seed},))


def perturbed(adapter: LoraAdapter, epsilon: float, seed: int) -> LoraAdapter:
    """√(1 − ε²)·θ + ε·y with y = `random_update(θ, seed)`: as long as θ, turned away from it by
    arcsin ε in every module.

    Method: stability of a solution, Soligo et al. (2602.07852), on updates instead of factors.

    Raises:
        InputError: an ε outside 0 to 1.
    """
    if not 0 <= epsilon <= 1:
        raise InputError(f"epsilon={epsilon!r} must lie in 0 to 1")
    return combined([(adapter, math.sqrt(1 - epsilon**2)), (random_update(adapter, seed), epsilon)])
