"""The nulls of `delta_overlap`: each is drawn once and shared by the fine-tunes it is the same for.

A null with the covariance of the activations before depends on the parent, the prompts, the place,
the two numbers of prompts, k and the centring; one of benign shifts on the benign fine-tune, the
place, the numbers and k. Nothing else may decide whether two rows share a null.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.geometry import (
    covariance_overlap_null,
    overlap_null,
    reference_overlap_null,
    subspace_overlap,
    top_k_subspace,
)
from emlens.stats import NullDistribution

MEASURE: Literal["mean_cos2"] = "mean_cos2"
ISOTROPIC_DRAWS = 10_000
SPLITS = 3
"""Pairs of disjoint sets of benign shifts."""
Pair = tuple[Tensor, Tensor]
"""Shifts (row, d) on training and on evaluation prompts."""


def overlap(a: Tensor, b: Tensor, k: int, *, center: bool = True) -> float:
    """Mean squared cosine of the top-k subspaces of two sets of rows, from 0 to 1."""
    return float(
        subspace_overlap(
            top_k_subspace(a, k, center=center),
            top_k_subspace(b, k, center=center),
            measure=MEASURE,
        )
    )


@dataclass(eq=False)
class OverlapNulls:
    """All nulls of one study that were drawn so far.

    Args:
        draws: of every null but the isotropic one. seed: of every null.
    """

    draws: int
    seed: int
    drawn: dict[Hashable, NullDistribution] = field(default_factory=dict)

    def shared(self, key: Hashable, draw: Callable[[], NullDistribution]) -> NullDistribution:
        """The null of this key; it is drawn at the first call."""
        if key not in self.drawn:
            self.drawn[key] = draw()
        return self.drawn[key]

    def at(self, key: tuple[Hashable, ...], before: Tensor) -> "NullsAtPlace":
        """The nulls of one place.

        Args:
            key: what decides `before`: the parent, the rendered prompts, site and position.
            before: the parent's activations there (row, d).
        """
        return NullsAtPlace(self, key, before)

    def of_benign_shifts(
        self, key: tuple[Hashable, ...], reference: Tensor, pair: Pair, k: int
    ) -> NullDistribution | None:
        """What two disjoint sets of a benign fine-tune's shifts share (`reference_overlap_null`).

        None where there are too few of them for both sides together, or where their rank is too
        low for k.
        """
        n_a, n_b = len(pair[0]), len(pair[1])
        try:
            return self.shared(
                ("benign", *key, n_a, n_b, k),
                lambda: reference_overlap_null(
                    reference.double(),
                    n_a,
                    n_b,
                    k,
                    center=True,
                    tested=[side.double() for side in pair],
                    splits=SPLITS,
                    draws=self.draws,
                    seed=self.seed,
                ),
            )
        except InputError:
            return None


@dataclass(frozen=True, eq=False)
class NullsAtPlace:
    """The nulls of overlaps at one site and position."""

    nulls: OverlapNulls
    key: tuple[Hashable, ...]
    before: Tensor

    def isotropic(self, k: int) -> NullDistribution:
        """Random subspaces of the stream: a landmark, since activations are anisotropic."""
        d = self.before.shape[1]
        return self.nulls.shared(
            ("isotropic", d, k),
            lambda: overlap_null(
                d, k, k, measure=MEASURE, draws=ISOTROPIC_DRAWS, seed=self.nulls.seed
            ),
        )

    def covariance(self, n_a: int, n_b: int, k: int, *, center: bool = True) -> NullDistribution:
        """Unrelated samples of n_a and n_b rows with the covariance of the activations before."""
        return self.nulls.shared(
            ("covariance", *self.key, n_a, n_b, k, center),
            lambda: covariance_overlap_null(
                self._moments(center),
                n_a,
                n_b,
                k,
                center=center,
                measure=MEASURE,
                draws=self.nulls.draws,
                seed=self.nulls.seed,
            ),
        )

    def _moments(self, center: bool) -> Tensor:
        """Covariance, or second moments about 0 where the overlap is not centred."""
        rows = self.before.double()
        if center:
            return torch.cov(rows.T)
        return rows.T @ rows / len(rows)
