"""Ablation: a direction, or a subspace, is projected out of the stream.

The plain form removes the whole component along the direction. The affine form removes only the
difference from a baseline, so an activation at the baseline stays where it is. With scales each
coordinate is read in units of its own. Cost: two matrix products per site and pass, one down to the
rank of the basis and one up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.intervention import PaddedRows, Touched
from emlens.foundation.shapes import as_float64
from emlens.foundation.sites import Site
from emlens.geometry import Direction, Subspace
from emlens.interventions.arguments import (
    At,
    BySite,
    Positions,
    basis_of,
    parse_at,
    parse_touched,
    require_width,
    resolve,
    site_values,
)
from emlens.interventions.arithmetic import AffineMap, projection
from emlens.interventions.plain_intervention import (
    PlainIntervention,
    require_values,
    tensors_by_name,
    tensors_by_site,
)

Baseline = Float[Tensor, " d_model"] | Mapping[Site, Tensor] | None
_ADDED = ("attn_out", "mlp_out")


@dataclass(frozen=True, eq=False, repr=False)
class Ablation(PlainIntervention):
    """h ← h − B Qᵀ(h − μ), B orthonormal columns, QᵀB = 1; Q = B where no scales are given, μ = 0
    where no baseline is. Idempotent.
    """

    kind: ClassVar[str] = "ablate"
    basis: Float[Tensor, "d_model k"]
    at: At
    positions: Touched
    baseline: Baseline
    own_site: str | None
    scales: Baseline = None
    _maps: dict[Site | None, AffineMap] = field(default_factory=dict, init=False, repr=False)

    @property
    def d_model(self) -> int:
        return self.basis.shape[0]

    def targets(self, sites: Sequence[Site]) -> list[Site]:
        targets = resolve(self.at, self.own_site, sites)
        for name, values in (("baseline", self.baseline), ("scales", self.scales)):
            if isinstance(values, Mapping):
                require_values(targets, values, name)
            elif values is not None:
                _require_one_space(targets, name)
        return targets

    def bind(self, site: Site, rows: PaddedRows) -> AffineMap:
        return self._map(site)

    def _map(self, site: Site | None) -> AffineMap:
        """The projection at a site; one that all sites share is kept under None."""
        differs = any(isinstance(values, Mapping) for values in (self.baseline, self.scales))
        key = site if differs else None
        if key not in self._maps:
            mu = _at_site(self.baseline, site, "baseline")
            scales = _at_site(self.scales, site, "scales")
            self._maps[key] = projection(self.basis, mu, scales)
        return self._maps[key]

    def apply(
        self,
        activation: Float[Tensor, "batch token d_model"],
        mask: Bool[Tensor, "batch token"] | None = None,
        site: str | Site | None = None,
    ) -> Float[Tensor, "batch token d_model"]:
        """The arithmetic alone, on any activation.

        Args:
            site: needed where baseline or scales differ by site.
        """
        require_width(activation, self.d_model)
        return self._map(None if site is None else Site.parse(site))(activation, mask)

    def options(self) -> dict[str, Any]:
        return {
            "form": "plain" if self.baseline is None else "affine",
            "rank": self.basis.shape[1],
            "own_site": self.own_site,
        }

    def tensors(self) -> dict[str, Tensor]:
        tensors = {"basis": self.basis}
        for name, values in (("baseline", self.baseline), ("scales", self.scales)):
            if isinstance(values, Mapping):
                tensors.update(tensors_by_name(values, name))
            elif values is not None:
                tensors[name] = values
        return tensors

    @classmethod
    def restored(
        cls, at: At, positions: Touched, options: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> "Ablation":
        baseline, scales = (
            tensors.get(name, tensors_by_site(tensors, name) or None)
            for name in ("baseline", "scales")
        )
        return cls(tensors["basis"], at, positions, baseline, options["own_site"], scales)


def _at_site(values: Baseline, site: Site | None, name: str) -> Tensor | None:
    """What counts at a site."""
    if not isinstance(values, Mapping):
        return values
    if site is None:
        raise InputError(f"{name} differs by site; pass site=")
    require_values([site], values, name)
    return values[site]


def _require_one_space(targets: Sequence[Site], name: str) -> None:
    """One vector cannot be the mean, or the scales, of the stream and of what is added to it."""
    spaces = set()
    for site in targets:
        spaces.add(site.kind if site.kind in _ADDED else "stream")
    if len(spaces) > 1:
        raise InputError(
            f"{name} is one vector, but at names the stream and what is added to it,"
            " which have other means; pass a mapping from sites to vectors"
        )


def ablate(
    direction: Direction | Subspace | Tensor,
    at: At = "all_layers",
    positions: Positions = "all",
    baseline: BySite | None = None,
    scales: BySite | None = None,
) -> Ablation:
    """Project a direction, or a subspace, out of the stream.

    Args:
        direction: a `Direction`, a `Subspace`, or a vector of shape (d_model,); only its span
            matters.
        at: `"all_layers"`: this direction after every block; `"own_site"`: where the direction was
            read; `"inputs_and_writes"`: at every block's input, attention output and MLP output, so
            that no module reads or writes it; or a list of sites.
        positions: `"all"` tokens, those of the `"prompt"`, or of the `"response"` (generated tokens
            included); `"last_prompt"`, `"last"`, `Index(...)`, `Span(...)` or a callable for single
            tokens.
        baseline: μ of the affine form h − ((h − μ)·r̂) r̂, which leaves an activation at μ alone:
            one vector, or one vector per site; None: plain projection.
        scales: of each coordinate, above 0; one vector, or one per site. The component is then
            read as h·q with q = D⁻¹r̂/(r̂ᵀD⁻¹r̂), so that each coordinate counts in units of its
            scale: with standard deviations, coordinates that vary by thousands no longer decide
            what is removed; with variances it is the reading of generalised least squares for
            independent coordinates. What an update adds along r̂ is removed whole, since q·r̂ = 1.
            None: h·r̂.

    Returns:
        An intervention for `model.intervene([...])`. Idempotent: applying it twice at one site
        changes nothing more.

    Raises:
        InputError: a zero or misshapen vector, scales that are not above 0, an unknown `at` or
            `positions`.

    Reference: Arditi et al., 2406.11717; the affine form: Marshall et al., 2411.09003.
    """
    at, touched = parse_at(at), parse_touched(positions)
    basis, own_site = basis_of(direction, "direction")
    mu, sizes = _parsed(baseline, "baseline", len(basis)), _parsed(scales, "scales", len(basis))
    for size in sizes.values() if isinstance(sizes, Mapping) else [sizes]:
        if size is not None and not bool((size > 0).all()):
            raise InputError(f"scales hold {float(size.min()):g}; pass numbers above 0")
    return Ablation(basis, at, touched, mu, own_site, sizes)


def _parsed(values: BySite | None, name: str, d_model: int) -> Baseline:
    """One vector, or one per site, in float64."""
    if values is None:
        return None
    if not isinstance(values, Mapping):
        vector = as_float64(values, name)
        _require_shape(vector, name, d_model)
        return vector
    by_site = {}
    for site, value in site_values(values, name).items():
        by_site[site] = value.to(torch.float64)
        _require_shape(value, name, d_model)
    return by_site


def _require_shape(value: Tensor, name: str, d_model: int) -> None:
    if value.shape != (d_model,):
        raise InputError(
            f"{name} has shape {tuple(value.shape)}; pass a vector of shape ({d_model},)"
        )
