"""Arithmetic of adapters as updates of weights: norms, sums, interpolation, random updates.

An adapter is a vector of weight updates ΔW = scale · B A, one per module; its norm is the Frobenius
norm over all modules. Sums are exact: factors are set side by side, so that ranks add up, and no ΔW
is formed. Adding B to B and A to A instead would give another update, one that depends on how each
adapter splits its ΔW into factors (the gauge). Memory: the adapters' own size. The results can be
saved, applied and loaded like any adapter.
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
    """Frobenius inner product of two updates of one module, tr(ΔW₁ᵀ ΔW₂).

    Raises:
        InputError: updates of other shapes.
    """
    if first.update_shape != second.update_shape:
        raise InputError(
            f"the updates have shapes {first.update_shape} and {second.update_shape};"
            " pass updates of one module"
        )
    # tr(A₁ᵀB₁ᵀ B₂A₂) = Σᵢⱼ (B₁ᵀB₂)ᵢⱼ (A₁A₂ᵀ)ᵢⱼ, from r × r matrices alone
    written = first.b.double().T @ second.b.double()
    read = first.a.double() @ second.a.double().T
    return first.scale * second.scale * float((written * read).sum())


def update_norm(adapter: LoraAdapter) -> float:
    """Frobenius norm of the whole update, over all modules.

    Args:
        adapter: of `LoraAdapter.load`.
    """
    squared = sum(update_product(factors, factors) for factors in adapter.modules.values())
    # rounding can leave a tiny negative number
    return math.sqrt(max(0.0, squared))


def combined(parts: Sequence[tuple[LoraAdapter, float]]) -> LoraAdapter:
    """The adapter whose update is Σ weight · update.

    A module that one of the adapters does not change adds nothing to the sum there.

    Args:
        parts: adapters, each with its weight.

    Raises:
        InputError: no part, a weight that is not finite, or updates of other shapes.
    """
    weights = [weight for _, weight in parts]
    if not parts or not all(map(math.isfinite, weights)):
        raise InputError(
            f"parts holds the weights {weights};"
            " pass at least one adapter, each with a finite weight"
        )
    terms_by_module: dict[str, list[tuple[LoraFactors, float]]] = {}
    for adapter, weight in parts:
        for path, factors in adapter.modules.items():
            terms_by_module.setdefault(path, []).append((factors, weight))
    modules = {path: _sum_of_terms(path, terms) for path, terms in terms_by_module.items()}
    edit: Mapping[str, Any] = {"kind": "combined", "weights": weights}
    return LoraAdapter(modules, _layout_of(parts[0][0]), (edit,))


def _sum_of_terms(path: str, terms: Sequence[tuple[LoraFactors, float]]) -> LoraFactors:
    """Σ wᵢ sᵢ BᵢAᵢ = [w₁s₁B₁ w₂s₂B₂ …] · [A₁; A₂; …]: factors side by side, ranks added."""
    shapes = {factors.update_shape for factors, _ in terms}
    if len(shapes) > 1:
        raise InputError(
            f"module {path!r} has updates of shapes {sorted(shapes)}; pass adapters of one model"
        )
    a = torch.cat([factors.a.float() for factors, _ in terms])
    b = torch.cat(
        [factors.b.float() * (factors.scale * weight) for factors, weight in terms], dim=1
    )
    return LoraFactors(a, b, 1.0, terms[0][0].embedding)


def _layout_of(adapter: LoraAdapter) -> dict[str, Any]:
    """The part of an adapter's configuration that is about the model, not about training."""
    if "fan_in_fan_out" not in adapter.config:
        return {}
    return {"fan_in_fan_out": adapter.config["fan_in_fan_out"]}


def interpolated(first: LoraAdapter, second: LoraAdapter, t: float) -> LoraAdapter:
    """The adapter at (1 − t) · first + t · second, on the straight line between two updates.

    t may lie outside 0 to 1.
    """
    return combined([(first, 1.0 - t), (second, t)])


def with_norm(adapter: LoraAdapter, norm: float) -> LoraAdapter:
    """The adapter rescaled so that its update has this Frobenius norm.

    Raises:
        InputError: a negative norm, or an update that is zero.
    """
    current = update_norm(adapter)
    if not (current > 0 and math.isfinite(norm) and norm >= 0):
        raise InputError(
            f"norm={norm!r} of an update whose norm is {current:g};"
            " pass a norm of 0 or more and an update that is not zero"
        )
    return scaled(adapter, norm / current)


def random_update(like: LoraAdapter, seed: int) -> LoraAdapter:
    """A random update with the norm of `like` in each module, and orthogonal to it there.

    Gaussian factors of the rank of `like`, less what lies along it; the projection adds its rank
    once more.

    Raises:
        InputError: an update that is zero.
    """
    modules = {}
    for path, factors in like.modules.items():
        squared_norm = update_product(factors, factors)
        if not squared_norm > 0:
            raise InputError(
                f"the update of {path!r} is zero, so no random update can have its norm;"
                " pass a trained adapter"
            )
        generator = torch_rng(seed, "random_update", path)
        a = torch.randn(factors.a.shape, generator=generator)
        b = torch.randn(factors.b.shape, generator=generator)
        random = LoraFactors(a, b, 1.0, factors.embedding)
        # R − (⟨R, W⟩/⟨W, W⟩) W, written as factors side by side
        along = update_product(random, factors) / squared_norm
        a = torch.cat([a, factors.a.float()])
        b = torch.cat([b, -along * factors.scale * factors.b.float()], dim=1)
        orthogonal = LoraFactors(a, b, 1.0, factors.embedding)
        rescale = math.sqrt(squared_norm / update_product(orthogonal, orthogonal))
        modules[path] = LoraFactors(a, b * rescale, 1.0, factors.embedding)
    return LoraAdapter(modules, _layout_of(like), ({"kind": "random", "seed": seed},))


def perturbed(adapter: LoraAdapter, epsilon: float, seed: int) -> LoraAdapter:
    """The adapter turned by arcsin ε in every module, with its norm unchanged.

    √(1 − ε²)·θ + ε·y with y = `random_update(θ, seed)`, which is orthogonal to θ and as long.

    Method: stability of a solution, Soligo et al. (2602.07852), on updates instead of factors.

    Args:
        epsilon: ε, from 0 (no change) to 1 (another update of the same norm).

    Raises:
        InputError: an ε outside 0 to 1.
    """
    if not 0 <= epsilon <= 1:
        raise InputError(f"epsilon={epsilon!r} must lie in 0 to 1")
    random = random_update(adapter, seed)
    return combined([(adapter, math.sqrt(1 - epsilon**2)), (random, epsilon)])
