"""How many components to take: a count, a share of variance, or the elbow of the scree plot.

Neither a share nor an elbow is the same number over a batch of layers, so both refuse one; pass a
count there.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError

_ROUNDING = 1e-12  # a share met to this much is met


def elbow(values: Float[Tensor, " s"]) -> int:
    """Where a descending scree plot falls into two groups: the split of largest profile likelihood.

    Both groups are Gaussian with means of their own and one variance (Zhu & Ghodsi 2006). At least
    one value and at most all but one lie before the elbow. Invariant to scaling. It reads a shape
    and tests nothing: a smooth spectrum has one too.

    Raises:
        InputError: fewer than three values, which leave no choice.
    """
    p = len(values)
    if p < 3:
        raise InputError(
            f"k='elbow' has {p} singular values to choose among; pass a count, or more vectors"
        )
    largest = values.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    scaled = values.to(torch.float64) / largest
    # the split does not depend on the mean, and sums of squares lose less without it
    scaled = scaled - scaled.mean()
    counts = torch.arange(1, p, dtype=torch.float64, device=scaled.device)
    sums = scaled.cumsum(0)
    squares = scaled.square().cumsum(0)
    # Σ(v − mean)² = Σv² − (Σv)²/n of each group, for all splits at once
    before = squares[:-1] - sums[:-1] ** 2 / counts
    after = (squares[-1] - squares[:-1]) - (sums[-1] - sums[:-1]) ** 2 / (p - counts)
    # the likelihood is largest where the common variance is smallest
    return int((before + after).argmin()) + 1


def component_count(k: int | float | str, singular: Tensor, rank: int, n: int, kind: str) -> int:
    """The number of components that `k` stands for.

    `singular` holds all singular values (..., s) of n vectors that were centred by `kind`: "mean",
    "none" or "given".

    Raises:
        InputError: an unusable `k`, one above the rank, or a share or an elbow over a batch.
    """
    if isinstance(k, str) and k != "elbow":
        raise InputError(
            f"k={k!r} is unknown; pass a count, a share of variance such as .95, or 'elbow'"
        )
    if isinstance(k, str) or (isinstance(k, float) and 0 < k < 1):
        _require_spectrum(k, singular, rank, n, kind)
        if isinstance(k, str):
            # centring makes the last of n singular values 0, which is not a part of the plot
            plotted = min(len(singular), n - (kind == "mean"))
            return min(elbow(singular[:plotted]), rank)
        return min(_count_for_share(singular, k), rank)
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InputError(
            f"k={k!r} must be a count of 1 or more,"
            " a share of variance between 0 and 1 such as .95, or 'elbow'"
        )
    if k > rank:
        raise above_rank(k, n, rank, kind)
    return k


def _count_for_share(singular: Tensor, share: float) -> int:
    """The fewest components whose squared singular values reach a share of the total."""
    cumulative = torch.cumsum(singular**2, 0) / singular.square().sum()
    return int((cumulative < float(share) * (1 - _ROUNDING)).sum()) + 1


def _require_spectrum(k: float | str, singular: Tensor, rank: int, n: int, kind: str) -> None:
    """Raises:
    InputError: a batch of spectra, or one of rank 0: neither has one elbow or one share.
    """
    if singular.ndim > 1:
        what = "the elbow" if k == "elbow" else "a share of variance"
        raise InputError(
            f"k={k!r} asks for {what}, which differs over a batch; pass a count, or one matrix"
        )
    if rank == 0:
        raise InputError(
            f"the {n} vectors have rank 0 with center={kind!r},"
            f" so k={k!r} has nothing to choose from"
        )


def above_rank(k: int, n: int, rank: int, kind: str) -> InputError:
    """The error for a count above the rank; it says the rank."""
    return InputError(
        f"k={k} is above the rank: the {n} vectors have rank {rank} with center={kind!r};"
        f" pass k <= {rank}"
    )
