"""Pareto front of training runs: which runs no other run beats in both loss and score.

`front_membership` says how sure that is under the noise of both.
"""

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from emlens.foundation.errors import InputError
from emlens.foundation.seeds import numpy_rng
from emlens.stats.samples import as_paired, require_count


def pareto_front(loss: ArrayLike, score: ArrayLike) -> Bool[np.ndarray, " run"]:
    """Runs for which no other has loss as low and score as high, with one of them better.

    Equal runs are on the front together. Invariant to increasing maps of either.

    Raises:
        InputError: unequal lengths, no run, values that are not finite.
    """
    x, y = as_paired(loss, score, "loss", "score", at_least=1)
    return _front(x[None], y[None])[0]


def front_membership(
    loss: ArrayLike,
    score: ArrayLike,
    *,
    loss_error: float | ArrayLike = 0.0,
    score_error: float | ArrayLike = 0.0,
    draws: int = 1999,
    seed: int = 0,
) -> Float[np.ndarray, " run"]:
    """Share of parametric bootstrap draws in which each run is on the Pareto front; 0 to 1.

    Args:
        loss_error, score_error: standard errors, one for all runs or one per run; the noise is
            normal and independent.

    Raises:
        InputError: as `pareto_front`, errors that are negative or not finite, or all 0.
    """
    x, y = as_paired(loss, score, "loss", "score", at_least=1)
    x_error = _standard_errors(loss_error, "loss_error", len(x))
    y_error = _standard_errors(score_error, "score_error", len(x))
    if not (x_error.any() or y_error.any()):
        raise InputError(
            "loss_error and score_error are 0, so the front is certain;"
            " pass a standard error, or use pareto_front"
        )
    rng = numpy_rng(seed, "front_membership")
    size = (require_count(draws, "draws"), len(x))
    # losses are drawn before scores: the seed fixes both
    x_draws = x + x_error * rng.normal(size=size)
    y_draws = y + y_error * rng.normal(size=size)
    return _front(x_draws, y_draws).mean(axis=0)


def _standard_errors(error: float | ArrayLike, name: str, n: int) -> np.ndarray:
    """One standard error, or one per run.

    Raises:
        InputError: another number of them, or errors that are negative or not finite.
    """
    errors = np.asarray(error, dtype=np.float64)
    if errors.shape not in ((), (n,)) or not (np.isfinite(errors) & (errors >= 0)).all():
        raise InputError(
            f"{name} must be one standard error of 0 or more, or one for each of {n} runs;"
            f" got {error!r}"
        )
    return errors


def _front(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which runs are on the front in each draw, (draw, run)."""
    is_on_front = np.ones(x.shape, dtype=bool)
    for i in range(x.shape[1]):
        no_worse = (x <= x[:, i : i + 1]) & (y >= y[:, i : i + 1])
        better = (x < x[:, i : i + 1]) | (y > y[:, i : i + 1])
        is_on_front[:, i] = ~(no_worse & better).any(axis=1)
    return is_on_front
