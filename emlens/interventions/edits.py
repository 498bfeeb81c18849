"""Interventions as plain data: where they act, on which tokens, and a pure function on activations.

`ablate` projects a direction (or a subspace) out; `steer` adds one. Neither touches a weight; a model applies them
inside `with model.intervene([...])` and nowhere else. The arithmetic runs in float32 (float64 for float64 input) and
returns the activation's dtype.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.intervention import TokenScope
from emlens.foundation.provenance import hash_tensors
from emlens.foundation.shapes import as_float64
from emlens.foundation.sites import Site
from emlens.geometry import Direction, Subspace

At = Literal["all_layers", "own_site"] | Sequence[str | Site]
_SCOPES = ("all", "prompt", "response")


def _resolve(at: At, own: str | None, sites: Sequence[Site]) -> list[Site]:
    """Concrete sites of the model, or an error that says what matched nothing."""
    if at == "all_layers":
        return [site for site in sites if site.kind == "resid_post"]
    if at == "own_site":
        if own is None:
            raise InputError("at='own_site' needs a Direction that knows its site; pass at=['resid_post.3'] or at='all_layers'")
        names: Sequence[str | Site] = [own]
    else:
        names = at
    if not names:
        raise InputError("at is an empty list; pass at least one site")
    n_layers = 1 + max(site.layer for site in sites if site.layer is not None)
    found = sorted({Site.parse(name, n_layers) for name in names}, key=lambda site: site.order)
    for site in found:
        if site not in sites:
            raise InputError(f"site {site} matches nothing in this model; it has {sites[0]} to {sites[-1]}")
    return found


def _checked(at: At, positions: TokenScope) -> None:
    if positions not in _SCOPES:
        raise InputError(f"positions={positions!r} is unknown; pass one of {', '.join(_SCOPES)}")
    if (isinstance(at, str) and at not in ("all_layers", "own_site")) or not isinstance(at, str | Sequence):
        raise InputError(f"at={at!r} is unknown; pass 'all_layers', 'own_site' or a list of sites")


def _width(activation: Tensor, vector: Tensor) -> None:
    if activation.shape[-1] != vector.shape[0]:
        raise InputError(f"direction has {vector.shape[0]} coordinates, but the model's stream has {activation.shape[-1]}")


def _wide(activation: Tensor) -> Tensor:
    return activation if activation.dtype == torch.float64 else activation.float()


@dataclass(frozen=True, eq=False)
class Ablation:
    """h ← h − ((h − μ)·r̂) r̂ for one direction; for a subspace with orthonormal basis B: h ← h − B Bᵀ(h − μ). μ = 0 where no baseline is given."""

    basis: Float[Tensor, "d_model k"]
    at: At
    positions: TokenScope
    baseline: Float[Tensor, " d_model"] | None
    own_site: str | None

    def targets(self, sites: Sequence[Site]) -> list[Site]:
        return _resolve(self.at, self.own_site, sites)

    def apply(
        self, activation: Float[Tensor, "batch token d_model"], mask: Bool[Tensor, "batch token"]
    ) -> Float[Tensor, "batch token d_model"]:
        _width(activation, self.basis)
        h = _wide(activation)
        basis = self.basis.to(h)
        centred = h if self.baseline is None else h - self.baseline.to(h)
        removed = h - (centred @ basis) @ basis.T
        return torch.where(mask[..., None], removed.to(activation.dtype), activation)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "ablate",
            "form": "plain" if self.baseline is None else "affine",
            "rank": self.basis.shape[1],
            "at": self.at if isinstance(self.at, str) else [str(site) for site in self.at],
            "positions": self.positions,
            "own_site": self.own_site,
            "sha256": hash_tensors({"basis": self.basis, **({} if self.baseline is None else {"baseline": self.baseline})}),
        }


@dataclass(frozen=True, eq=False)
class Steering:
    """h ← h + c·v at the chosen tokens; in units of the residual norm: h ← h + c·‖h‖·v̂."""

    vector: Float[Tensor, " d_model"]
    coefficient: float
    unit: Literal["vector", "unit", "resid_norm"]
    at: At
    positions: TokenScope
    own_site: str | None

    def targets(self, sites: Sequence[Site]) -> list[Site]:
        return _resolve(self.at, self.own_site, sites)

    def apply(
        self, activation: Float[Tensor, "batch token d_model"], mask: Bool[Tensor, "batch token"]
    ) -> Float[Tensor, "batch token d_model"]:
        _width(activation, self.vector)
        h = _wide(activation)
        vector = self.vector.to(h)
        if self.unit != "vector":
            vector = vector / vector.norm()
        step = self.coefficient * vector
        added = h + (step * h.norm(dim=-1, keepdim=True) if self.unit == "resid_norm" else step)
        return torch.where(mask[..., None], added.to(activation.dtype), activation)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "steer",
            "coefficient": self.coefficient,
            "unit": self.unit,
            "at": self.at if isinstance(self.at, str) else [str(site) for site in self.at],
            "positions": self.positions,
            "own_site": self.own_site,
            "sha256": hash_tensors({"vector": self.vector}),
        }


def _vector(direction: Direction | Tensor, argument: str) -> tuple[Tensor, str | None]:
    if isinstance(direction, Direction):
        return as_float64(direction.vector, argument), str(direction.site)
    vector = as_float64(direction, argument)
    if vector.ndim != 1 or float(vector.norm()) == 0:
        raise InputError(f"{argument} has shape {tuple(vector.shape)} and norm {float(vector.norm()):.3g}; pass a non-zero vector of shape (d_model,)")
    return vector, None


def ablate(
    direction: Direction | Subspace | Tensor,
    at: At = "all_layers",
    positions: TokenScope = "all",
    baseline: Float[Tensor, " d_model"] | None = None,
) -> Ablation:
    """Project a direction, or a subspace, out of the stream.

    Args:
        direction: a `Direction`, a `Subspace`, or a vector of shape (d_model,); only its span matters.
        at: `"all_layers"`: this direction after every block; `"own_site"`: where the direction was read; or a list of sites.
        positions: `"all"` tokens, those of the `"prompt"`, or of the `"response"` (generated tokens included).
        baseline: μ of the affine form h − ((h − μ)·r̂) r̂, which leaves an activation at μ alone; None: plain projection.

    Returns:
        An intervention for `model.intervene([...])`. Idempotent: applying it twice at one site changes nothing more.

    Raises:
        InputError: a zero or misshapen vector, an unknown `at` or `positions`.

    Reference: Arditi et al., 2406.11717; the affine form: Marshall et al., 2411.09003.
    """
    _checked(at, positions)
    if isinstance(direction, Subspace):
        basis, own = as_float64(direction.basis, "direction"), None
        if basis.ndim != 2:
            raise InputError(f"direction holds a batch of subspaces, basis of shape {tuple(basis.shape)}; pass one of shape (d_model, k)")
    else:
        vector, own = _vector(direction, "direction")
        basis = (vector / vector.norm())[:, None]
    mu = None if baseline is None else as_float64(baseline, "baseline")
    if mu is not None and mu.shape != basis.shape[:1]:
        raise InputError(f"baseline has shape {tuple(mu.shape)}; pass a vector of shape ({basis.shape[0]},)")
    return Ablation(basis, at, positions, mu, own)


def steer(
    direction: Direction | Tensor,
    coefficient: float,
    unit: Literal["vector", "unit", "resid_norm"] = "vector",
    at: At = "own_site",
    positions: TokenScope = "all",
) -> Steering:
    """Add a direction to the stream.

    Args:
        coefficient: how much; negative steers away.
        unit: `"vector"` adds coefficient × the direction as it is; `"unit"` × its unit vector; `"resid_norm"` × its unit
            vector × the norm of each token's own activation.
        at, positions: as in `ablate`.

    Raises:
        InputError: a zero vector, a coefficient that is not finite, an unknown `unit`, `at` or `positions`.

    Reference: h ← h + αv, 2506.11618.
    """
    _checked(at, positions)
    vector, own = _vector(direction, "direction")
    if unit not in ("vector", "unit", "resid_norm"):
        raise InputError(f"unit={unit!r} is unknown; pass 'vector', 'unit' or 'resid_norm'")
    if not abs(float(coefficient)) < float("inf"):
        raise InputError(f"coefficient={coefficient} is not a finite number")
    return Steering(vector, float(coefficient), unit, at, positions, own)
