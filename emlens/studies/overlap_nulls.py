"""The nulls of `delta_overlap`: each is drawn once and shared by the fine-tunes it is the same for.

A null with the covariance of the activations before depends on the parent, the prompts, the place
(site and position), the two numbers of prompts, k and the centring. A null of benign shifts depends
on the benign fine-tune, the place, the two numbers and k. Nothing else may decide whether two rows
share a null.
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
)
from emlens.stats import NullDistribution

MEASURE: Literal["mean_cos2"] = "mean_cos2"
ISOTROPIC_DRAWS = 10_000
SPLITS = 3
"""Pairs of disjoint sets of benign shifts."""
Pair = tuple[Tensor, Tensor]
"""Shifts (row, d) on training and on evaluation prompts."""


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

        None where there are too few of them for both sides together, and where they cannot serve as
        a reference: their rank is too low for k, or shifts of the pair are among them.
        """
        n_a, n_b = len(pair[0]), len(pair[1])
        if len(reference) < n_a + n_b:
            return None
        # the rank that counts is that of subsets which are drawn inside, so it is not tested here
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

    @property
    def seed(self) -> int:
        """The seed of every null."""
        return self.nulls.seed

    def isotropic(self, k: int) -> NullDistribution:
        """Random subspaces of the stream: a landmark, since activations are anisotropic."""
        d = self.before.shape[1]
        return self.nulls.shared(
            ("isotropic", d, k),
            lambda: overlap_null(d, k, k, measure=MEASURE, draws=ISOTROPIC_DRAWS, seed=self.seed),
        )

    def covariance(self, n_a: int, n_b: int, k: int, *, center: bool = True) -> NullDistribution:
        """Unrelated samples of n_a and n_b rows with the covariance of the activations before.

        The covariance is a plug-in, estimated from the rows. A sample spectrum is steeper than the
        true one, so the null mostly lies too high (docs/nulls.md).
        """
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
                seed=self.seed,
            ),
        )

    def _moments(self, center: bool) -> Tensor:
        """Covariance, or second moments about 0 where the overlap is not centred."""
        rows = self.before.double()
        # an overlap that is not centred keeps the mean as a direction like any other; the second
        # moment, which holds it too, takes the place of the covariance
        if center:
            return torch.cov(rows.T)
        return rows.T @ rows / len(rows)
