"""How many components to take: a count, a share of variance, or the elbow of the spectrum.

Neither a share nor an elbow is the same number over a batch of layers, so both refuse one; pass a
count there.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError

ComponentCount = int | float | Literal["elbow"]
"""A count; a share of variance in (0, 1): the fewest components that reach it; or the elbow."""

LEAST_VALUES = 9
"""Singular values that an elbow needs: one before it, and what its tail is read from."""
_TAIL = 7
"""Values behind the elbow to which the slope of the tail is fitted."""
_GAP = 4.0
"""A gap before the elbow is larger than this many slopes of the tail."""
_ROUNDS = 4
_ROUNDING = 1e-12  # a share met to this much is met


def elbow(values: Float[Tensor, " s"]) -> int:
    """Where descending singular values reach their tail: the last gap that is far larger than the
    tail falls; 0 where there is none.

    The estimator of Onatski (2010): eigenvalues of noise fall like a line over (j − 1)^(2/3) at
    their upper edge. The line is fitted to the values behind the elbow, and the elbow is the last
    of the first half of the gaps that exceeds a multiple of its slope; both are found in turns. The
    tail has 7 values and the multiple is 4, where Onatski has 5 and 2: prompts are fewer than
    returns of stocks, and their noise falls faster (`docs/evidence/elbow.json`). A component as
    strong as all others together hides none of them, as it does where groups of values are compared
    by their means. Invariant to scaling. It reads a shape and tests nothing: noise has an elbow
    too, in about one spectrum of six.

    Raises:
        InputError: fewer than 9 values.
    """
    p = len(values)
    if p < LEAST_VALUES:
        raise InputError(
            f"k='elbow' has {p} singular values to choose among, and needs {LEAST_VALUES};"
            " pass a count, or more vectors"
        )
    largest = values.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    eigenvalues = (values.to(torch.float64) / largest).square()
    # a tail has to lie behind every gap that is looked at
    last = min(p // 2, p - _TAIL)
    gaps = eigenvalues[:last] - eigenvalues[1 : last + 1]
    count, start = last, last
    for _ in range(_ROUNDS):
        threshold = _GAP * _slope(eigenvalues, start)
        above = (gaps > threshold).nonzero()
        count = int(above[-1]) + 1 if len(above) else 0
        if count == start:
            break
        start = count
    return count


def _slope(eigenvalues: Tensor, start: int) -> float:
    """How fast the values behind the first `start` fall over (j − 1)^(2/3), j from 1."""
    index = torch.arange(start, start + _TAIL, dtype=torch.float64, device=eigenvalues.device)
    x = index.pow(2 / 3)
    x = x - x.mean()
    y = eigenvalues[start : start + _TAIL]
    return abs(float((x * (y - y.mean())).sum() / x.square().sum()))


def component_count(k: int | float | str, singular: Tensor, rank: int, n: int, kind: str) -> int:
    """The number of components that `k` stands for.

    `singular` holds all singular values (..., s) of n vectors that were centred by `kind`: "mean",
    "none" or "given".

    Raises:
        InputError: an unusable `k`, one above the rank, a share or an elbow over a batch, or a
            spectrum without an elbow.
    """
    if isinstance(k, str) and k != "elbow":
        raise InputError(
            f"k={k!r} is unknown; pass a count, a share of variance such as .95, or 'elbow'",
            name=k,
            known=("elbow",),
        )
    if isinstance(k, str) or (isinstance(k, float) and 0 < k < 1):
        _require_spectrum(k, singular, rank, n, kind)
        if isinstance(k, str):
            return _elbow_above_rounding(singular, rank, n, kind)
        return min(_count_for_share(singular, k), rank)
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InputError(
            f"k={k!r} must be a count of 1 or more,"
            " a share of variance between 0 and 1 such as .95, or 'elbow'"
        )
    if k > rank:
        raise above_rank(k, n, rank, kind)
    return k


def _elbow_above_rounding(singular: Tensor, rank: int, n: int, kind: str) -> int:
    """The elbow of the values above rounding: what lies behind the rank counts as 0, so that
    rounding has no elbow of its own.

    Raises:
        InputError: there is none, or too few values.
    """
    # centring makes the last of n singular values 0, which is not a part of the spectrum
    values = singular[: min(len(singular), n - (kind == "mean"))].clone()
    values[rank:] = 0
    count = elbow(values)
    if count == 0:
        raise InputError(
            f"k='elbow': the singular values of the {n} vectors fall without an elbow; pass a"
            " count, or a share of variance such as .95"
        )
    return count


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
