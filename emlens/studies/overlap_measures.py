"""Tables `overlap` and `angles` of `delta_overlap`: what the two sides share at one place, beside
its landmarks: random subspaces, one population, the ceiling, the benign control and neutral text.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from emlens.foundation.seeds import torch_rng
from emlens.geometry import (
    direction_cosine,
    principal_angles,
    split_half_ceiling,
    subspace_overlap,
    top_k_subspace,
)
from emlens.geometry.shifts import components_above_rounding
from emlens.results.overlap_labels import (
    BENIGN,
    CEILING,
    CENTRED,
    COVARIANCE,
    ISOTROPIC,
    MEANS,
    RANDOM_SUBSPACES,
    TESTED,
    TRAIN_NEUTRAL,
    UNCENTRED,
)
from emlens.stats import NullDistribution, cosine_of_means
from emlens.studies.null_columns import null_spread
from emlens.studies.overlap_nulls import MEASURE, NullsAtPlace
from emlens.studies.overlap_shifts import Place, ShiftsAtPlace

RANDOM_PAIRS = 100
"""Pairs of random subspaces whose principal angles are averaged."""


def mean_cos2_overlap(a: Tensor, b: Tensor, k: int, *, center: bool = True) -> float:
    """Mean squared cosine of the top-k subspaces of two sets of rows, from 0 to 1."""
    return float(
        subspace_overlap(
            top_k_subspace(a, k, center=center),
            top_k_subspace(b, k, center=center),
            measure=MEASURE,
        )
    )


@dataclass(frozen=True)
class _Comparison:
    """One value of the table `overlap`, with its interval or its null."""

    name: str
    center: str
    value: float
    n: int
    low: float = np.nan
    high: float = np.nan
    null_name: str = ""
    null: NullDistribution | None = None

    def row(self, place: Place, k: int) -> dict[str, object]:
        beside = null_spread(self.null)
        return {
            **place.columns,
            "k": k,
            "center": self.center,
            "measure": "cosine" if self.center == MEANS else MEASURE,
            "comparison": self.name,
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "null_kind": self.null_name,
            "null_mean": beside["null_mean"],
            "null_sd": np.nan if self.null is None else self.null.sd,
            "null_q95": beside["null_q95"],
            "n": self.n,
        }


def overlap_rows(
    place: Place,
    shifts: ShiftsAtPlace,
    benign: ShiftsAtPlace | None,
    nulls: NullsAtPlace,
    k: int,
) -> list[dict[str, object]]:
    """Rows of the table `overlap` at one place: uncentred, centred, and of the mean shifts."""
    comparisons: list[_Comparison] = []
    for center in (False, True):
        comparisons += _of_subspaces(shifts, benign, nulls, k, center)
    comparisons += _of_means(shifts, benign)
    return [comparison.row(place, k) for comparison in comparisons]


def _of_subspaces(
    shifts: ShiftsAtPlace,
    benign: ShiftsAtPlace | None,
    nulls: NullsAtPlace,
    k: int,
    center: bool,
) -> list[_Comparison]:
    """The tested overlap beside both nulls, its ceiling, the benign control and neutral text."""
    train, evaluation = shifts.pair
    label = CENTRED if center else UNCENTRED
    n = len(train)
    value = mean_cos2_overlap(train, evaluation, k, center=center)
    isotropic = nulls.isotropic(k)
    covariance = nulls.covariance(n, len(evaluation), k, center=center)
    ceiling = split_half_ceiling(
        train, k, center=center, measure=MEASURE, splits=20, seed=nulls.seed
    )
    comparisons = [
        _Comparison(TESTED, label, value, n, null_name=ISOTROPIC, null=isotropic),
        _Comparison(TESTED, label, value, n, null_name=COVARIANCE, null=covariance),
        _Comparison(CEILING, label, ceiling.value, n, ceiling.low, ceiling.high),
    ]
    if benign is not None:
        control = mean_cos2_overlap(*benign.pair, k, center=center)
        comparisons.append(_Comparison(BENIGN, label, control, len(benign.train)))
    neutral = shifts.neutral
    if neutral is not None and components_above_rounding(neutral, shifts.before) >= k:
        control = mean_cos2_overlap(train, neutral, k, center=center)
        comparisons.append(_Comparison(TRAIN_NEUTRAL, label, control, min(n, len(neutral))))
    return comparisons


def _of_means(shifts: ShiftsAtPlace, benign: ShiftsAtPlace | None) -> list[_Comparison]:
    """Cosines of mean shifts, noise taken out, with their jackknife intervals."""
    comparisons = [_mean_cosine(TESTED, *shifts.pair)]
    if benign is not None:
        comparisons.append(_mean_cosine(BENIGN, *benign.pair))
    if shifts.neutral is not None:
        comparisons.append(_mean_cosine(TRAIN_NEUTRAL, shifts.train, shifts.neutral))
    return comparisons


def _mean_cosine(name: str, a: Tensor, b: Tensor) -> _Comparison:
    cosine = cosine_of_means(a.double().numpy(), b.double().numpy())
    if cosine.defined:
        # the estimate that takes noise out can exceed 1
        value = min(cosine.value, 1.0)
    else:
        value = direction_cosine(a.double().mean(0), b.double().mean(0))
    return _Comparison(name, MEANS, value, cosine.n, cosine.low, cosine.high)


def angle_rows(
    place: Place, shifts: ShiftsAtPlace, benign: ShiftsAtPlace | None, k: int, seed: int
) -> list[dict[str, object]]:
    """Principal angles in degrees, of the tested pair, the benign pair and random subspaces (their
    mean).
    """
    d = shifts.train.shape[1]
    spectra = {TESTED: _spectrum(shifts, k)}
    if benign is not None:
        spectra[BENIGN] = _spectrum(benign, k)
    spectra[RANDOM_SUBSPACES] = _random_spectrum(d, k, seed)
    rows: list[dict[str, object]] = []
    for comparison, spectrum in spectra.items():
        for index, angle in enumerate(spectrum, start=1):
            rows.append(
                {
                    **place.columns,
                    "comparison": comparison,
                    "index": index,
                    "degrees": float(torch.rad2deg(angle)),
                }
            )
    return rows


def _spectrum(shifts: ShiftsAtPlace, k: int) -> Tensor:
    """Principal angles of the centred top-k subspaces of both sides, in radians, smallest first."""
    return principal_angles(
        top_k_subspace(shifts.train.double(), k, center=True),
        top_k_subspace(shifts.evaluation.double(), k, center=True),
    )


def _random_spectrum(d: int, k: int, seed: int) -> Tensor:
    rng = torch_rng(seed, "random subspaces", d, k)
    spectra = []
    for _ in range(RANDOM_PAIRS):
        first, second = torch.randn(2, d, k, dtype=torch.float64, generator=rng)
        spectra.append(principal_angles(first, second))
    return torch.stack(spectra).mean(0)
