"""Where a path through training turns: the local cosine, its sharpest peak, and a null without one.

Everything is read from the Gram matrix of the path (`geometry.trajectories`). Windows count rows,
so checkpoints must be evenly spaced in whatever counts as time.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.seeds import numpy_rng
from emlens.geometry.trajectories import square_gram, squared_chords
from emlens.stats import NullDistribution

THRESHOLD = 0.0035
"""Length below which a chord is too short to have a direction (Turner et al. 2025, arXiv
2506.11613, for the B of one rank-1 adapter).
"""

_ROUNDING = 1e-12
"""Relative to the largest squared length: a squared chord below it is what float64 leaves of a
difference of equal rows.
"""
_LEAST = 3
"""Rows with a local cosine that a median needs."""


def local_cosine(
    gram: Float[Tensor, "step step"], window: int, *, threshold: float = THRESHOLD
) -> Float[Tensor, " step"]:
    """cos(v_{t−k} − v_t, v_{t+k} − v_t) at each row t, with k = `window` rows.

    Range [−1, 1]: −1 straight, 0 a right angle, +1 a reversal. `nan` within k rows of either end,
    where both chords are shorter than `threshold`, and where one has no length. Invariant to
    rotations and shifts of the path; scaling it by c matters only through the threshold. Turner et
    al. 2025 (arXiv 2506.11613), with k of 5, 10, 15 and τ = .0035. A smooth path is straighter the
    smaller k is, a noisy one the larger k is: compare windows.

    Args:
        gram: inner products of the rows of the path (step, step).
        window: k, rows from t to either end of the two chords.
        threshold: shortest chord that has a direction, in the units of the path.

    Raises:
        InputError: a window below 1 or for which the path is too short; a negative threshold; as
            `path_norms`.
    """
    wide = square_gram(gram)
    _require_window(window, len(wide))
    if not 0 <= threshold < float("inf"):
        raise InputError(f"threshold={threshold!r} must be 0 or more, in the units of the path")
    return _cosines(wide, window, threshold)


def sharpest_turn(
    gram: Float[Tensor, "step step"], window: int, *, threshold: float = THRESHOLD
) -> tuple[float, int]:
    """How far the peak of the local cosine lies above its median, and the row of the peak.

    Range [0, 2]; 0 for a line and for an even curve. Every path has a peak: compare it with
    `turn_null`.

    Raises:
        InputError: as `local_cosine`, or fewer than 3 rows where it is defined.
    """
    cosines = local_cosine(gram, window, threshold=threshold)
    count = int(cosines.isfinite().sum())
    if count < _LEAST:
        raise InputError(
            f"window={window} leaves {count} of {len(cosines)} rows with a local cosine;"
            " pass a shorter window or a lower threshold"
        )
    return _peak(cosines)


def turn_null(
    gram: Float[Tensor, "step step"],
    window: int,
    *,
    threshold: float = THRESHOLD,
    draws: int = 999,
    seed: int = 0,
) -> NullDistribution:
    """`sharpest_turn` of paths with the same increments in random order.

    They cover the same whole way, and there is no moment at which they turned. It treats increments
    as exchangeable. Increments that grow and shrink with a schedule, or are alike because they are
    neighbours, count as evidence of a turn here; so does an even curve in part, whose increments
    mixed up make a straighter path.

    Raises:
        InputError: as `sharpest_turn`.
    """
    observed, _ = sharpest_turn(gram, window, threshold=threshold)
    wide = square_gram(gram)
    # ⟨v_{s+1} − v_s, v_{t+1} − v_t⟩ from the four inner products of the rows
    steps = wide[1:, 1:] - wide[1:, :-1] - wide[:-1, 1:] + wide[:-1, :-1]
    rng = numpy_rng(seed, "turn null")
    turns = np.zeros(draws)
    for i in range(draws):
        order = torch.from_numpy(rng.permutation(len(steps)))
        # summing increments over rows and columns gives the Gram of the path that starts at 0
        mixed = torch.zeros_like(wide)
        mixed[1:, 1:] = steps[order][:, order].cumsum(0).cumsum(1)
        cosines = _cosines(mixed, window, threshold)
        if int(cosines.isfinite().sum()) >= _LEAST:
            turns[i], _ = _peak(cosines)
    label = f"sharpest turn within {window} rows; {len(steps)} increments in random order"
    return NullDistribution(turns, label, seed, observed=observed)


def _cosines(wide: Tensor, k: int, threshold: float) -> Tensor:
    """`local_cosine` without checks."""
    rows = torch.arange(k, len(wide) - k)
    chords = squared_chords(wide, k)
    backward, forward = chords[rows - k], chords[rows]
    # ⟨v_{t−k} − v_t, v_{t+k} − v_t⟩ multiplied out
    dot = wide[rows - k, rows + k] - wide[rows - k, rows] - wide[rows, rows + k] + wide[rows, rows]
    rounding = _ROUNDING * wide.diagonal().max()
    is_long = torch.maximum(backward, forward) >= threshold**2
    usable = is_long & (torch.minimum(backward, forward) > rounding)
    cosines = torch.full((len(wide),), torch.nan, dtype=torch.float64)
    ratio = torch.where(usable, dot / (backward * forward).sqrt(), torch.nan)
    cosines[rows] = ratio.clamp(-1.0, 1.0)
    return cosines


def _peak(cosines: Tensor) -> tuple[float, int]:
    """Maximum minus median of the finite values, and where the maximum lies."""
    finite = cosines[cosines.isfinite()]
    largest = torch.where(cosines.isfinite(), cosines, -torch.inf)
    return float(finite.max() - finite.median()), int(largest.argmax())


def _require_window(window: int, rows: int) -> None:
    is_count = isinstance(window, int) and not isinstance(window, bool) and window >= 1
    if not is_count or rows < 2 * window + 1:
        raise InputError(
            f"window={window!r} must be an integer of 1 or more,"
            f" and 2·window below the {rows} rows of the path"
        )
