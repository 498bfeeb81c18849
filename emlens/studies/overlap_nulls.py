"""The landmarks of `delta_overlap` that are drawn: each is drawn once and shared by the fine-tunes
it is the same for. None of them is a test.

What samples of one population with the covariance of the activations before share depends on the
parent, the prompts, the place (site and position), the two numbers of prompts, k and the centring.
Nothing else may decide whether two rows share it. It lies high: training and evaluation prompts are
two populations, whose activations share less (docs/nulls.md).
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from emlens.geometry import covariance_overlap_null, overlap_null
from emlens.stats import NullDistribution

MEASURE: Literal["mean_cos2"] = "mean_cos2"
ISOTROPIC_DRAWS = 10_000
Pair = tuple[Tensor, Tensor]
"""Shifts (row, d) on training and on evaluation prompts."""


@dataclass(eq=False)
class OverlapNulls:
    """All landmarks of one study that were drawn so far.

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
                # float64, so that rounding of the rank is that of the arithmetic alone
                self.before.double(),
                n_a,
                n_b,
                k,
                center=center,
                # an overlap that is not centred keeps the mean as a direction like any other
                about="mean" if center else "zero",
                measure=MEASURE,
                draws=self.nulls.draws,
                seed=self.seed,
            ),
        )
