"""How far a direction would turn on other answers: split halves, a bootstrap cone, jackknife.

The jackknife gives an interval of any number computed from directions. Units (questions) are
resampled in blocks, never single answers. All of this is sampling error: a direction can be
perfectly reliable and mean something else.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats as scipy_stats
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.geometry.contrast_sums import ContrastSums, left_out
from emlens.geometry.directions import direction_cosine, unit_rows
from emlens.stats.samples import require_level


def split_half_cosine(contrast: ContrastSums, *, splits: int = 200, seed: int = 0) -> Estimate:
    """Cosine between the directions of two random halves of the units.

    `value` is the mean over splits, `low` and `high` their 2.5 % and 97.5 % quantiles: a range,
    since splits share their units, and no confidence interval. Halves see half of the data, so it
    understates the whole: `sample_cosine` converts.

    Args:
        contrast: sums over blocks of units, such as `Contrasts.sums(site)`.

    Raises:
        InputError: no split.
    """
    first, second = contrast.halves(splits, seed)
    cosines = (unit_rows(first, "halves") * unit_rows(second, "halves")).sum(-1).numpy()
    low, high = np.quantile(cosines, [0.025, 0.975])
    method = (
        "split-half cosine: mean and 95 % range"
        f" over {splits} random halves of {contrast.blocks} blocks"
    )
    return Estimate(float(cosines.mean()), float(low), float(high), contrast.blocks, method)


def sample_cosine(split_half: float) -> float:
    """Expected cosine of the whole sample's direction with that of infinitely many units.

    From the split-half cosine r: √(2r / (1 + r)), 0 for r ≤ 0: with signal energy s and noise
    energy e of the whole sample, r = s/(s + 2e) and the squared cosine is s/(s + e)
    (Spearman–Brown). Exact where the error is small or spread over many coordinates.

    Raises:
        InputError: r outside [-1, 1].
    """
    if not -1 <= split_half <= 1:
        raise InputError(f"split_half={split_half!r} must be a cosine from -1 to 1")
    if split_half <= 0:
        return 0.0
    return math.sqrt(2 * split_half / (1 + split_half))


@dataclass(frozen=True)
class Cone:
    """Where resampled directions lie about the estimated direction.

    Args:
        angle: radians from the estimate within which a share `level` of the resampled directions
            lies.
        mean_cosine: mean cosine of a resampled direction with the estimate.
        level: the share.
        n: blocks resampled.
        draws: resamples.
    """

    angle: float
    mean_cosine: float
    level: float
    n: int
    draws: int

    @property
    def degrees(self) -> float:
        """The angle in degrees."""
        return math.degrees(self.angle)


def bootstrap_cone(
    contrast: ContrastSums, *, level: float = 0.95, draws: int = 500, seed: int = 0
) -> Cone:
    """The cone about a direction that holds a share of its bootstrap resamples.

    Angle from 0 to π. Blocks of units are drawn with replacement. It shows the size of the error;
    where that is as large as the signal, the length of the estimate contains error too and the cone
    is too narrow: then trust the split-half cosine.

    Raises:
        InputError: a level outside (0, 1), no draw.
    """
    require_level(level)
    centre = unit_rows(contrast.difference, "the difference")
    resampled = unit_rows(contrast.bootstrap(draws, seed), "resamples")
    cosines = (resampled @ centre).clamp(-1.0, 1.0)
    # 2·asin(‖u − v‖/2): the sine form resolves small angles, where acos loses half the digits
    angles = 2 * torch.asin((resampled - centre).norm(dim=-1).div(2).clamp(max=1.0))
    return Cone(
        angle=float(torch.quantile(angles, level)),
        mean_cosine=float(cosines.mean()),
        level=level,
        n=contrast.blocks,
        draws=draws,
    )


def jackknife(
    statistic: Callable[..., float], *contrasts: ContrastSums, level: float = 0.95
) -> Estimate:
    """A number computed from one or several directions, with a delete-one-block t interval.

    `value` is that of all data. The standard error is the delete-one jackknife's, √((B − 1)/B Σ
    (f₍ᵢ₎ − f̄)²), consistent for smooth functions of means (Efron & Stein 1981). Cosines between
    noisy directions are biased towards 0, and no interval corrects that.

    Args:
        statistic: (difference, ...) -> number, one float64 vector per contrast.
        contrasts: several must be sums over the same blocks (same units and seed); each block is
            left out of all of them together.

    Raises:
        InputError: no contrast, contrasts over different blocks, a statistic that is not finite, a
            level outside (0, 1).
    """
    require_level(level)
    counts = {len(c.positive) for c in contrasts}
    if len(counts) != 1:
        raise InputError(
            f"contrasts are sums over {sorted(counts)} blocks;"
            " pass contrasts over the same units and seed, at least one"
        )
    value = float(statistic(*(c.difference for c in contrasts)))
    counts_without = left_out(*contrasts)
    deleted: list[Tensor] = [c.differences(counts_without) for c in contrasts]
    values = np.array([float(statistic(*vectors)) for vectors in zip(*deleted, strict=True)])
    if not np.isfinite([value, *values]).all():
        raise InputError(
            "statistic is not finite on all data or on some block left out;"
            " pass one that is defined there"
        )
    n = len(values)
    error = math.sqrt((n - 1) / n * float(((values - values.mean()) ** 2).sum()))
    half = float(scipy_stats.t.ppf((1 + level) / 2, n - 1)) * error
    method = f"{100 * level:g} % jackknife t interval over {n} blocks of units"
    return Estimate(value, value - half, value + half, n, method)


def cosine_between(a: ContrastSums, b: ContrastSums, *, level: float = 0.95) -> Estimate:
    """Cosine between two directions over the same blocks, with its jackknife interval.

    For two models on the same questions.

    Raises:
        InputError: as `jackknife`.
    """
    return jackknife(direction_cosine, a, b, level=level)
