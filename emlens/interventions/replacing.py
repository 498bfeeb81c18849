"""Replacing: touched tokens take a mean, a random row of other activations, or what another run had
there.

Mean ablation keeps what all inputs share at a site; resample ablation keeps what its donors have
one by one, so it stays where real activations lie; a swap (activation patching) puts another run's
own values in. With `direction=` only the part in its span is replaced. Which donor a token gets
depends on seed, prompt id and token alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.intervention import PaddedRows, Touched
from emlens.foundation.seeds import derive_seed, numpy_rng
from emlens.foundation.sites import Site
from emlens.geometry import Direction, Subspace
from emlens.interventions.arithmetic import Converted, Placing
from emlens.interventions.plain import PlainIntervention, by_site, check_held, named
from emlens.interventions.where import (
    At,
    Positions,
    kept_sites,
    parse_touched,
    resolve,
    site_values,
    span_of,
)

Per = Literal["token", "prompt"]


@dataclass(frozen=True, eq=False)
class Replacement(PlainIntervention):
    """What mean and resample ablation and swaps share: values by site, and the span in which they
    are put.
    """

    values: Mapping[Site, Tensor]
    basis: Float[Tensor, "d_model k"] | None
    at: At
    positions: Touched

    @property
    def d_model(self) -> int:
        return int(next(iter(self.values.values())).shape[-1])

    def held(self, values: Tensor) -> Converted:
        """Rows to place, and the span in which they are placed."""
        return Converted(values) if self.basis is None else Converted(values, self.basis)

    @cached_property
    def held_by_site(self) -> dict[Site, Converted]:
        return {
            site: self.held(value[None] if value.ndim == 1 else value)
            for site, value in self.values.items()
        }

    def targets(self, sites: Sequence[Site]) -> list[Site]:
        return check_held(resolve(self.at, None, sites), self.values, self.kind)

    def options(self) -> dict[str, Any]:
        return {"rank": None if self.basis is None else self.basis.shape[1]}

    def tensors(self) -> dict[str, Tensor]:
        return {
            **named(self.values, "values"),
            **({} if self.basis is None else {"basis": self.basis}),
        }


@dataclass(frozen=True, eq=False)
class MeanAblation(Replacement):
    """h ← μ, the mean given for the site; with a basis B: h ← h − B Bᵀ(h − μ)."""

    kind: ClassVar[str] = "mean_ablate"

    def bind(self, site: Site, rows: PaddedRows) -> Placing:
        return Placing(self.held_by_site[site], None)

    @classmethod
    def restored(
        cls, at: At, positions: Touched, options: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> "MeanAblation":
        return cls(by_site(tensors, "values"), tensors.get("basis"), at, positions)


@dataclass(frozen=True, eq=False)
class ResampleAblation(Replacement):
    """h ← x, a row drawn from the donors of the site; the same donor at every site."""

    kind: ClassVar[str] = "resample_ablate"
    by_prompt: ClassVar[bool] = True
    seed: int
    per: Per

    def bind(self, site: Site, rows: PaddedRows) -> Placing:
        n = len(self.values[site])
        drawn = [
            self.drawn(name, spans.n_tokens + rows.new_tokens, n)[list(tokens)].tolist()
            for name, spans, tokens in zip(
                rows.ids, rows.spans, rows.touched(self.positions), strict=True
            )
        ]
        return Placing(self.held_by_site[site], rows.by_column(drawn, self.positions))

    def drawn(self, prompt_id: str, length: int, n: int) -> NDArray[np.int64]:
        """Which of `n` donors the tokens of a prompt take; a longer row draws the same and
        goes on.
        """
        if self.per == "prompt":
            return np.full(length, derive_seed(self.seed, "resample", prompt_id) % n)
        return numpy_rng(self.seed, "resample", prompt_id).integers(n, size=length)

    def options(self) -> dict[str, Any]:
        return {**super().options(), "seed": self.seed, "per": self.per}

    @classmethod
    def restored(
        cls, at: At, positions: Touched, options: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> "ResampleAblation":
        return cls(
            by_site(tensors, "values"),
            tensors.get("basis"),
            at,
            positions,
            options["seed"],
            options["per"],
        )


def mean_ablate(
    means: Mapping[str | Site, Float[Tensor, " d_model"]],
    at: At | None = None,
    positions: Positions = "all",
    direction: Direction | Subspace | Tensor | None = None,
) -> MeanAblation:
    """Put a mean in the place of activations.

    Args:
        means: the mean activation at each site, over whatever inputs "no information" is to mean.
        at: a list of sites among them; None: all of them.
        positions: as in `ablate`.
        direction: replace the part in its span alone; for a `Direction` that is affine ablation
            about the mean.

    Raises:
        InputError: no mean, means that are no vectors of one width, an unknown `at` or `positions`.

    Reference: Wang et al., 2211.00593.
    """
    values = site_values(means, "means")
    for site, value in values.items():
        if value.ndim != 1:
            raise InputError(
                f"means[{str(site)!r}] has shape {tuple(value.shape)};"
                " pass one vector of shape (d_model,)"
            )
    return MeanAblation(
        values, span_of(direction, values), kept_sites(at, values), parse_touched(positions)
    )


def resample_ablate(
    donors: Mapping[str | Site, Float[Tensor, "row d_model"]],
    seed: int,
    per: Per = "token",
    at: At | None = None,
    positions: Positions = "all",
    direction: Direction | Subspace | Tensor | None = None,
) -> ResampleAblation:
    """Put randomly drawn other activations in the place of activations.

    Args:
        donors: rows of activations at each site; row i of every site is the same token, so that one
            donor serves all sites.
        seed: with the prompt's id and the token's number it decides the donor; batch mates do not
            matter.
        per: a donor for each `"token"`, or one for all tokens of a `"prompt"`.
        at: a list of sites among them; None: all of them.
        positions: as in `ablate`.
        direction: replace the part in its span alone.

    Raises:
        InputError: no donor, other numbers of rows at other sites, an unknown `per`, `at` or
            `positions`.

    Reference: Chan et al., causal scrubbing, 2022.
    """
    values = site_values(donors, "donors")
    for site, value in values.items():
        if value.ndim != 2 or not len(value):
            raise InputError(
                f"donors[{str(site)!r}] has shape {tuple(value.shape)};"
                " pass rows of activations, shape (row, d_model)"
            )
    counts = {len(value) for value in values.values()}
    if len(counts) > 1:
        raise InputError(
            f"donors have {sorted(counts)} rows at different sites;"
            " row i must be the same token at all of them"
        )
    if per not in ("token", "prompt"):
        raise InputError(f"per={per!r} is unknown; pass 'token' or 'prompt'")
    derive_seed(seed)
    return ResampleAblation(
        values,
        span_of(direction, values),
        kept_sites(at, values),
        parse_touched(positions),
        seed,
        per,
    )
