"""Do before activations plus the mean training shift come close to the after activations?

The steered evaluation of arXiv 2606.20814, on captured vectors: x + α · mean δ compared with the
true after activations, beside x itself. It is arithmetic on one site and no intervention: nothing
runs through the layers after it (`emlens.steer` does that). A step along *any* direction that most
deltas share lowers the error, so a gain says that shifts have a common part and nothing about what
it does.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.shapes import as_float64, require_ndim
from emlens.geometry.linear import result_dtype, row_lengths, rows_of

SteeringMode = Literal["raw", "relative_norm", "match_mean_norm"]


def add_mean_shift(
    x: Float[Tensor, "*batch row d"],
    mean_delta: Float[Tensor, "*batch d"],
    alpha: float = 1.0,
    *,
    mode: SteeringMode = "raw",
) -> Float[Tensor, "*batch row d"]:
    """x + α · step, the step being the mean training delta; (..., row, d).

    Args:
        x: activations before fine-tuning (..., row, d).
        mean_delta: (..., d).
        alpha: the paper uses 0.5 and 1.
        mode: "raw" takes the mean delta as it is; "relative_norm" its direction at the length of
            each row; "match_mean_norm" its direction at the mean length of the rows.

    Raises:
        InputError: another width, values that are not finite, an unknown mode, or a zero shift
            where only its direction is used.
    """
    if mode not in get_args(SteeringMode):
        raise InputError(
            f"mode={mode!r} is unknown; pass one of {', '.join(get_args(SteeringMode))}",
            name=mode,
            known=get_args(SteeringMode),
        )
    require_ndim(mean_delta, 1, "mean_delta", "a vector of shape (d,), the mean training delta")
    rows = rows_of(x, "x", mean_delta, "mean_delta")
    step = as_float64(mean_delta, "mean_delta")[..., None, :]
    if mode != "raw":
        step = step / row_lengths(step, "mean_delta", "is zero and has no direction")[..., None]
        lengths = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        if mode == "match_mean_norm":
            lengths = lengths.mean(dim=-2, keepdim=True)
        step = step * lengths
    return (rows + alpha * step).to(result_dtype(x, mean_delta))


@dataclass(frozen=True, eq=False)
class SteeredEvaluation:
    """Distances to the true after activations, without and with the added shift.

    Under the names of the released tables.

    Args:
        unsteered, steered: `mse`, `rmse`, `mae` over all entries; `mean_l2_error`,
            `median_l2_error`, `mean_cosine`, `median_cosine` over rows (of an even number, the
            lower of the two middle values); `kl_true_to_compare`, `kl_compare_to_true`,
            `symmetric_kl`. The KL columns take a softmax over residual coordinates, which is no
            distribution over anything; they are here because the released tables have them.
        improvement: percent of the unsteered value, positive where steering helps.
        alpha, mode, n: what was added, and the number of rows.
    """

    unsteered: dict[str, float]
    steered: dict[str, float]
    improvement: dict[str, float]
    alpha: float
    mode: str
    n: int


def steered_evaluation(
    before: Float[Tensor, "row d"],
    after: Float[Tensor, "row d"],
    mean_delta: Float[Tensor, " d"],
    alpha: float = 1.0,
    *,
    mode: SteeringMode = "raw",
) -> SteeredEvaluation:
    """Compare x + α · mean δ, and x alone, with the true after activations of the same prompts.

    Args:
        before, after: activations of the same evaluation prompts, row by row.
        mean_delta: mean delta of *training* prompts; that of the evaluation prompts would be fitted
            to what it is tested on.

    Raises:
        InputError: unequal shapes, values that are not finite, a zero activation, an unusable shift
            or mode.
    """
    rows, true = rows_of(before, "before"), rows_of(after, "after")
    if rows.ndim != 2 or rows.shape != true.shape:
        raise InputError(
            f"before has shape {tuple(rows.shape)} and after {tuple(true.shape)};"
            " pass the same prompts at one site, both (row, d)"
        )
    unsteered = _distances(rows, true)
    steered = _distances(add_mean_shift(rows, mean_delta, alpha, mode=mode), true)
    improvement = {
        name: _percent_better(name, value, steered[name]) for name, value in unsteered.items()
    }
    return SteeredEvaluation(unsteered, steered, improvement, float(alpha), mode, len(rows))


def _percent_better(name: str, unsteered: float, steered: float) -> float:
    """Percent of the unsteered value; a cosine is better when larger, a distance when smaller."""
    if not unsteered:
        return float("nan")
    gain = steered - unsteered if name.endswith("cosine") else unsteered - steered
    return 100 * gain / unsteered


def _distances(x: Tensor, true: Tensor) -> dict[str, float]:
    """Distances of rows (row, d) to the true rows, by released name."""
    gap = x - true
    lengths = torch.linalg.vector_norm(gap, dim=-1)
    scale = row_lengths(x, "before", "is zero") * row_lengths(true, "after", "is zero")
    cosines = (x * true).sum(dim=-1) / scale
    # softmax over coordinates of the stream: no distribution, but a released column
    log_p, log_q = torch.log_softmax(x, dim=-1), torch.log_softmax(true, dim=-1)
    forward = float((log_q.exp() * (log_q - log_p)).sum(dim=-1).mean())
    backward = float((log_p.exp() * (log_p - log_q)).sum(dim=-1).mean())
    mse = float(gap.square().mean())
    return {
        "mse": mse,
        "rmse": mse**0.5,
        "mae": float(gap.abs().mean()),
        "mean_l2_error": float(lengths.mean()),
        "median_l2_error": float(lengths.median()),
        "mean_cosine": float(cosines.mean()),
        "median_cosine": float(cosines.median()),
        "kl_true_to_compare": forward,
        "kl_compare_to_true": backward,
        "symmetric_kl": 0.5 * (forward + backward),
    }
