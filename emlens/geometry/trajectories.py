"""The path that a vector takes through training, from its Gram matrix alone: turns, principal
components, closeness to its end.

Row t of a path is the vector at checkpoint t, and everything here needs inner products of rows
only. So the path of an update BA costs (steps · r)² numbers, whatever its width: `update_gram`
takes them from the factors and never forms BA.

Gauge: cB and A/c are one update, and B M, M⁻¹ A are. The norms of A and B, and the path of B that
the literature plots, change with that choice, which initialisation and optimiser make; the norm,
the path and the singular values of BA do not. Within one run, a rotation M that stays the same
changes none of them. Windows count rows, so checkpoints must be evenly spaced in what time means.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.seeds import numpy_rng
from emlens.foundation.shapes import as_float64, require_ndim
from emlens.stats import NullDistribution

THRESHOLD = 0.0035
"""Length below which a chord is too short to have a direction (Turner et al. 2025, arXiv
2506.11613, for the B of one rank-1 adapter).
"""

_ROUNDING = 1e-12
"""Relative to the largest squared length: a squared chord below it is what float64 leaves of a
difference of equal rows.
"""


def path_gram(path: Float[Tensor, "step d"]) -> Float[Tensor, "step step"]:
    """Inner products of the rows of a path, in float64.

    Raises:
        InputError: not a matrix, or values that are not finite.
    """
    require_ndim(path, 2, "path", "one vector a checkpoint (step, d)")
    rows = as_float64(path.reshape(len(path), -1), "path")
    return rows @ rows.T


def update_gram(
    a: Float[Tensor, "step r d_in"], b: Float[Tensor, "step d_out r"], scale: float = 1.0
) -> Float[Tensor, "step step"]:
    """Inner products ⟨ΔW_s, ΔW_t⟩ of the updates ΔW = scale · B A of one module, in float64,
    without forming BA.

    tr(ΔW_sᵀ ΔW_t) = scale² Σ_ij (B_sᵀB_t)_ij (A_s A_tᵀ)_ij. Blind to the gauge of the factors, also
    where it differs between steps. Grams of several modules add up to that of the whole adapter.
    Memory: (steps · r)² numbers.

    Raises:
        InputError: factors that do not fit each other, or values that are not finite.
    """
    require_ndim(a, 3, "a", "the factors A (step, r, d_in)")
    require_ndim(b, 3, "b", "the factors B (step, d_out, r)")
    if a.shape[0] != b.shape[0] or a.shape[1] != b.shape[2]:
        raise InputError(
            f"a has shape {tuple(a.shape)} and b {tuple(b.shape)};"
            " pass A (step, r, d_in) and B (step, d_out, r) of one module"
        )
    steps, r = a.shape[:2]
    read, write = (
        as_float64(a, "a").reshape(steps * r, -1),
        as_float64(b, "b").mT.reshape(steps * r, -1),
    )
    products = (read @ read.T) * (write @ write.T)
    return scale**2 * products.reshape(steps, r, steps, r).sum(dim=(1, 3))


def path_norms(gram: Float[Tensor, "step step"]) -> Float[Tensor, " step"]:
    """Length of each row of the path.

    Raises:
        InputError: not a square matrix of finite values.
    """
    return _square(gram).diagonal().clamp(min=0.0).sqrt()


def path_speed(gram: Float[Tensor, "step step"]) -> Float[Tensor, " step-1"]:
    """Distance from each checkpoint to the next.

    Raises:
        InputError: as `path_norms`.
    """
    return _chords(_square(gram), 1).sqrt()


def cosine_to_final(gram: Float[Tensor, "step step"]) -> Float[Tensor, " step"]:
    """Cosine of each row with the last; range [−1, 1], `nan` for a row of length 0.

    It ends at 1 by construction, and rises towards it on any path whose steps are small beside the
    whole: a rise is no finding.

    Raises:
        InputError: as `path_norms`, or a path that ends at 0.
    """
    wide = _square(gram)
    if not float(wide[-1, -1]) > 0:
        raise InputError(
            "the path ends at the zero vector, to which nothing has an angle;"
            " leave the checkpoints after training out"
        )
    lengths = wide.diagonal().clamp(min=0.0).sqrt()
    return torch.where(lengths > 0, wide[:, -1] / (lengths * lengths[-1]), torch.nan).clamp(
        -1.0, 1.0
    )


def local_cosine(
    gram: Float[Tensor, "step step"], window: int, *, threshold: float = THRESHOLD
) -> Float[Tensor, " step"]:
    """cos(v_{t−k} − v_t, v_{t+k} − v_t) at each row t, k = `window` rows: −1 straight, 0 a right
    angle, +1 a reversal.

    `nan` within k rows of either end, where both chords are shorter than `threshold`, and where one
    has no length. Invariant to rotations and shifts of the path; scaling it by c matters only
    through the threshold. Turner et al. 2025 (arXiv 2506.11613), with k of 5, 10, 15 and τ = .0035.
    A smooth path is straighter the smaller k is, a noisy one the larger k is: compare windows.

    Raises:
        InputError: a window below 1 or for which the path is too short; a negative threshold; as
            `path_norms`.
    """
    wide = _square(gram)
    _require_window(window, len(wide))
    if not 0 <= threshold < float("inf"):
        raise InputError(f"threshold={threshold!r} must be 0 or more, in the units of the path")
    return _turns(wide, window, threshold)


def _turns(wide: Tensor, k: int, threshold: float) -> Tensor:
    here = torch.arange(k, len(wide) - k)
    chords = _chords(wide, k)
    back, forth = chords[here - k], chords[here]
    dot = wide[here - k, here + k] - wide[here - k, here] - wide[here, here + k] + wide[here, here]
    rounding = _ROUNDING * wide.diagonal().max()
    usable = (torch.maximum(back, forth) >= threshold**2) & (torch.minimum(back, forth) > rounding)
    found = torch.full((len(wide),), torch.nan, dtype=torch.float64)
    found[here] = torch.where(usable, dot / (back * forth).sqrt(), torch.nan).clamp(-1.0, 1.0)
    return found


def sharpest_turn(
    gram: Float[Tensor, "step step"], window: int, *, threshold: float = THRESHOLD
) -> tuple[float, int]:
    """How far the local cosine's peak stands above its median along the path, and the row of the
    peak.

    Range [0, 2]; 0 for a line and for an even curve. Every path has a peak: beside it stands
    `turn_null`.

    Raises:
        InputError: as `local_cosine`, or fewer than 3 rows where it is defined.
    """
    found = local_cosine(gram, window, threshold=threshold)
    known = int(found.isfinite().sum())
    if known < 3:
        raise InputError(
            f"window={window} leaves {known} of {len(found)} rows with a local cosine;"
            " pass a shorter window or a lower threshold"
        )
    return _peak(found)


def turn_null(
    gram: Float[Tensor, "step step"],
    window: int,
    *,
    threshold: float = THRESHOLD,
    draws: int = 999,
    seed: int = 0,
) -> NullDistribution:
    """`sharpest_turn` of paths with the same increments in random order: the same whole way, no
    moment at which it turned.

    It treats increments as exchangeable. Increments that grow and shrink with a schedule, or are
    alike because they are neighbours, count as evidence of a turn here; so does an even curve in
    part, whose increments mixed up make a straighter path.

    Raises:
        InputError: as `sharpest_turn`.
    """
    observed, _ = sharpest_turn(gram, window, threshold=threshold)
    wide = _square(gram)
    # inner products of increments
    steps = wide[1:, 1:] - wide[1:, :-1] - wide[:-1, 1:] + wide[:-1, :-1]
    rng = numpy_rng(seed, "turn null")
    found = []
    for _ in range(draws):
        order = torch.from_numpy(rng.permutation(len(steps)))
        mixed = torch.zeros_like(wide)
        mixed[1:, 1:] = steps[order][:, order].cumsum(0).cumsum(1)
        turns = _turns(mixed, window, threshold)
        found.append(_peak(turns)[0] if int(turns.isfinite().sum()) >= 3 else 0.0)
    return NullDistribution(
        np.array(found),
        f"sharpest turn within {window} rows; {len(steps)} increments in random order",
        seed,
        observed=observed,
    )


def _peak(turns: Tensor) -> tuple[float, int]:
    known = turns[turns.isfinite()]
    top = torch.where(turns.isfinite(), turns, -torch.inf)
    return float(known.max() - known.median()), int(top.argmax())


@dataclass(frozen=True, eq=False)
class PathComponents:
    """A path in its own principal components.

    Args:
        coordinates: of each row about the mean of the path, in its units; a component's last row is
            positive.
        explained_variance_ratio: of each component, 0 to 1.
    """

    coordinates: Float[Tensor, "step k"]
    explained_variance_ratio: Float[Tensor, " k"]


def path_components(gram: Float[Tensor, "step step"], k: int = 2) -> PathComponents:
    """Principal components of a path, centred on its mean.

    Of a random walk the first components are half cosines of rising frequency that hold 61 %, 15 %,
    7 % of the variance (Antognini & Sohl-Dickstein 2018, arXiv 1806.08805), so a bend in the plane
    of the first two is no transition by itself.

    Raises:
        InputError: k outside 1 to one less than the number of rows; as `path_norms`.
    """
    wide = _square(gram)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k < len(wide):
        raise InputError(
            f"k={k!r} must be an integer from 1 to {len(wide) - 1},"
            " one less than the rows of the path"
        )
    centred = wide - wide.mean(0, keepdim=True) - wide.mean(1, keepdim=True) + wide.mean()
    values, vectors = torch.linalg.eigh((centred + centred.T) / 2)
    values, vectors = values.flip(0).clamp(min=0.0), vectors.flip(1)
    total = values.sum()
    coordinates = vectors[:, :k] * values[:k].sqrt()
    signs = torch.where(coordinates[-1] < 0, -1.0, 1.0)
    return PathComponents(
        coordinates * signs,
        values[:k] / total if float(total) > 0 else torch.zeros(k, dtype=torch.float64),
    )


def spectrum_flatness(
    singular_values: Float[Tensor, "*batch r"],
    *,
    measure: Literal["entropy", "participation"] = "entropy",
) -> Float[Tensor, "*batch"]:
    """How evenly an update spreads over its r singular directions: effective rank over r; range
    [1/r, 1], `nan` for a zero update.

    `"entropy"`: exp of the entropy of σ²/Σσ² (after Roy & Vetterli 2007). `"participation"`:
    (Σσ²)²/Σσ⁴. Invariant to scale. Of a rank-1 adapter it is 1 and says nothing. That flat spectra
    go with less misalignment: arXiv 2606.31591.

    Raises:
        InputError: an unknown measure, negative values, or values that are not finite.
    """
    wide = as_float64(singular_values, "singular_values")
    if bool((wide < 0).any()):
        raise InputError(
            f"singular_values holds {float(wide.min()):.3g}; singular values are 0 or more"
        )
    r = wide.shape[-1]
    squares = (wide / wide.amax(-1, keepdim=True)) ** 2
    if measure == "entropy":
        return torch.special.entr(squares / squares.sum(-1, keepdim=True)).sum(-1).exp() / r
    if measure == "participation":
        return squares.sum(-1) ** 2 / (squares**2).sum(-1) / r
    raise InputError(f"measure={measure!r} is unknown; pass 'entropy' or 'participation'")


def summed(grams: Sequence[Float[Tensor, "step step"]]) -> Float[Tensor, "step step"]:
    """The Gram of a path that is several paths stacked, such as the modules of an adapter.

    Raises:
        InputError: none given, or other numbers of steps.
    """
    if not grams or len({tuple(gram.shape) for gram in grams}) > 1:
        raise InputError(
            f"grams have shapes {sorted({tuple(gram.shape) for gram in grams})};"
            " pass at least one, all of the same checkpoints"
        )
    return torch.stack(list(grams)).sum(0)


def _chords(wide: Tensor, k: int) -> Tensor:
    """Squared distance from each row to the one k later."""
    lengths = wide.diagonal()
    return (lengths[:-k] + lengths[k:] - 2 * wide.diagonal(k)).clamp(min=0.0)


def _square(gram: Tensor) -> Tensor:
    wide = as_float64(gram, "gram")
    if wide.ndim != 2 or wide.shape[0] != wide.shape[1] or len(wide) < 2:
        raise InputError(
            f"gram has shape {tuple(wide.shape)}; pass the square matrix of path_gram or"
            " update_gram, of 2 checkpoints or more"
        )
    return wide


def _require_window(window: int, rows: int) -> None:
    if (
        isinstance(window, bool)
        or not isinstance(window, int)
        or window < 1
        or rows < 2 * window + 1
    ):
        raise InputError(
            f"window={window!r} must be an integer of 1 or more,"
            f" and 2·window below the {rows} rows of the path"
        )
