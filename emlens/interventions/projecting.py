"""Ablation: a direction, or a subspace, is projected out of the stream.

The plain form removes the whole component, the affine form only what differs from a baseline: an
activation at the baseline stays where it is. One matrix product of the rank down and one up, for
each site and pass.
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
from emlens.interventions.arithmetic import AffineMap, projection
from emlens.interventions.plain import PlainIntervention, by_site, check_held, named
from emlens.interventions.where import (
    At,
    BySite,
    Positions,
    basis_of,
    parse_at,
    parse_touched,
    resolve,
    site_values,
)

_ADDED = ("attn_out", "mlp_out")


@dataclass(frozen=True, eq=False)
class Ablation(PlainIntervention):
    """h ← h − B Bᵀ(h − μ), B orthonormal columns; μ = 0 where no baseline is given. Idempotent."""

    kind: ClassVar[str] = "ablate"
    basis: Float[Tensor, "d_model k"]
    at: At
    positions: Touched
    baseline: Float[Tensor, " d_model"] | Mapping[Site, Tensor] | None
    own_site: str | None
    _maps: dict[Site | None, AffineMap] = field(default_factory=dict, init=False, repr=False)

    @property
    def d_model(self) -> int:
        return self.basis.shape[0]

    def targets(self, sites: Sequence[Site]) -> list[Site]:
        found = resolve(
            self.at, None if self.own_site is None else Site.parse(self.own_site), sites
        )
        if isinstance(self.baseline, Mapping):
            return check_held(found, self.baseline, "baseline")
        if (
            self.baseline is not None
            and len({site.kind if site.kind in _ADDED else "stream" for site in found}) > 1
        ):
            raise InputError(
                "baseline is one vector, but at names the stream and what is added to it,"
                " which have other means; pass a mapping from sites to vectors"
            )
        return found

    def bind(self, site: Site, rows: PaddedRows) -> AffineMap:
        return self._map(site)

    def _map(self, site: Site | None) -> AffineMap:
        mu: Tensor | None
        if isinstance(self.baseline, Mapping):
            if site is None:
                raise InputError("baseline differs by site; pass site=")
            check_held([site], self.baseline, "baseline")
            mu = self.baseline[site]
        else:
            site, mu = None, self.baseline
        if site not in self._maps:
            self._maps[site] = projection(self.basis, mu)
        return self._maps[site]

    def apply(
        self,
        activation: Float[Tensor, "batch token d_model"],
        mask: Bool[Tensor, "batch token"] | None = None,
        site: str | Site | None = None,
    ) -> Float[Tensor, "batch token d_model"]:
        """The arithmetic alone, on any activation; `site` is needed where the baseline differs by
        site.
        """
        check_width(activation, self.d_model)
        return self._map(None if site is None else Site.parse(site))(activation, mask)

    def options(self) -> dict[str, Any]:
        return {
            "form": "plain" if self.baseline is None else "affine",
            "rank": self.basis.shape[1],
            "own_site": self.own_site,
        }

    def tensors(self) -> dict[str, Tensor]:
        if self.baseline is None:
            return {"basis": self.basis}
        return {
            "basis": self.basis,
            **(
                named(self.baseline, "baseline")
                if isinstance(self.baseline, Mapping)
                else {"baseline": self.baseline}
            ),
        }

    @classmethod
    def restored(
        cls, at: At, positions: Touched, options: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> "Ablation":
        baseline = tensors.get("baseline", by_site(tensors, "baseline") or None)
        return cls(tensors["basis"], at, positions, baseline, options["own_site"])


def check_width(activation: Tensor, d_model: int) -> None:
    if activation.shape[-1] != d_model:
        raise InputError(
            f"direction has {d_model} coordinates,"
            f" but the model's stream has {activation.shape[-1]}"
        )


def ablate(
    direction: Direction | Subspace | Tensor,
    at: At = "all_layers",
    positions: Positions = "all",
    baseline: BySite | None = None,
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
            one vector, or one for each site; None: plain projection.

    Returns:
        An intervention for `model.intervene([...])`. Idempotent: applying it twice at one site
        changes nothing more.

    Raises:
        InputError: a zero or misshapen vector, an unknown `at` or `positions`.

    Reference: Arditi et al., 2406.11717; the affine form: Marshall et al., 2411.09003.
    """
    at, touched = parse_at(at), parse_touched(positions)
    basis, own = basis_of(direction, "direction")
    mu: Tensor | dict[Site, Tensor] | None = None
    if isinstance(baseline, Mapping):
        mu = {
            site: value.to(torch.float64)
            for site, value in site_values(baseline, "baseline").items()
        }
    elif baseline is not None:
        mu = as_float64(baseline, "baseline")
    for value in mu.values() if isinstance(mu, dict) else [] if mu is None else [mu]:
        if value.shape != basis.shape[:1]:
            raise InputError(
                f"baseline has shape {tuple(value.shape)};"
                f" pass a vector of shape ({basis.shape[0]},)"
            )
    return Ablation(basis, at, touched, mu, None if own is None else str(own))
