"""Replacement: touched tokens take a mean, or a random row of other activations.

Mean ablation keeps what all inputs share at a site. Resample ablation puts one real activation, a
donor, in the place of another, so the stream stays where real activations lie. A swap
(`emlens.interventions.swapping`) puts in what another run had there. With `direction=` only the
part in its span is replaced. Which donor a token gets depends on seed, prompt id and token alone.
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
from emlens.interventions.arguments import (
    At,
    Positions,
    at_or_all,
    parse_touched,
    resolve,
    site_values,
    span_of,
)
from emlens.interventions.arithmetic import Converted, Placing
from emlens.interventions.plain_intervention import (
    PlainIntervention,
    require_values,
    tensors_by_name,
    tensors_by_site,
)

Per = Literal["token", "prompt"]


@dataclass(frozen=True, eq=False, repr=False)
class Replacement(PlainIntervention):
    """What mean ablation, resample ablation and swaps share.

    Args:
        values: what is put in place, by site.
        basis: orthonormal columns of the span in which it is put; None: all of the stream.
    """

    values: Mapping[Site, Tensor]
    basis: Float[Tensor, "d_model k"] | None
    at: At
    positions: Touched

    @property
    def d_model(self) -> int:
        return int(next(iter(self.values.values())).shape[-1])

    def placed_from(self, rows: Float[Tensor, "row d_model"]) -> Converted:
        """Rows to place, and the span in which they are placed, as `Placing` takes them."""
        if self.basis is None:
            return Converted(rows)
        return Converted(rows, self.basis)

    @cached_property
    def source_by_site(self) -> dict[Site, Converted]:
        sources = {}
        for site, value in self.values.items():
            rows = value[None] if value.ndim == 1 else value
            sources[site] = self.placed_from(rows)
        return sources

    def targets(self, sites: Sequence[Site]) -> list[Site]:
        targets = resolve(self.at, None, sites)
        require_values(targets, self.values, self.kind)
        return targets

    def options(self) -> dict[str, Any]:
        return {"rank": None if self.basis is None else self.basis.shape[1]}

    def tensors(self) -> dict[str, Tensor]:
        tensors = tensors_by_name(self.values, "values")
        if self.basis is not None:
            tensors["basis"] = self.basis
        return tensors


@dataclass(frozen=True, eq=False, repr=False)
class MeanAblation(Replacement):
    """h ← μ, the mean passed for the site; with a basis B: h ← h − B Bᵀ(h − μ)."""

    kind: ClassVar[str] = "mean_ablate"

    def bind(self, site: Site, rows: PaddedRows) -> Placing:
        return Placing(self.source_by_site[site], None)

    @classmethod
    def restored(
        cls, at: At, positions: Touched, options: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> "MeanAblation":
        return cls(tensors_by_site(tensors, "values"), tensors.get("basis"), at, positions)


@dataclass(frozen=True, eq=False, repr=False)
class ResampleAblation(Replacement):
    """h ← x, a row drawn from the donors of the site; the same donor at every site."""

    kind: ClassVar[str] = "resample_ablate"
    by_prompt: ClassVar[bool] = True
    seed: int
    per: Per

    def bind(self, site: Site, rows: PaddedRows) -> Placing:
        n_donors = len(self.values[site])
        touched = rows.touched(self.positions)
        donors = []
        for prompt_id, spans, tokens in zip(rows.ids, rows.spans, touched, strict=True):
            row = self.donor_rows(prompt_id, spans.n_tokens + rows.new_tokens, n_donors)
            donors.append(row[list(tokens)].tolist())
        return Placing(self.source_by_site[site], rows.by_column(donors, self.positions))

    def donor_rows(self, prompt_id: str, length: int, n: int) -> NDArray[np.int64]:
        """Which of `n` donors each token of a prompt takes.

        A longer row starts with the donors of a shorter one, so generation can go on.
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
            tensors_by_site(tensors, "values"),
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
        InputError: no mean, means that are not vectors of one width, an unknown `at` or
            `positions`.

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
        values, span_of(direction, values), at_or_all(at, values), parse_touched(positions)
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
        donors: rows of activations at each site; row i is the same token at every site, so that
            one donor serves all sites.
        seed: together with the prompt's id and the token's number it decides the donor; batch mates
            do not matter.
        per: one donor per `"token"`, or one for all tokens of a `"prompt"`.
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
        raise InputError(
            f"per={per!r} is unknown; pass 'token' or 'prompt'", name=per, known=("token", "prompt")
        )
    derive_seed(seed)
    return ResampleAblation(
        values,
        span_of(direction, values),
        at_or_all(at, values),
        parse_touched(positions),
        seed,
        per,
    )
