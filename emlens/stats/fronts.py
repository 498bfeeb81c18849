"""Which runs no other beats in both of two quantities, and how sure that is under their noise."""

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from emlens.foundation.errors import InputError
from emlens.foundation.seeds import numpy_rng
from emlens.stats.samples import as_paired, require_count


def pareto_front(loss: ArrayLike, score: ArrayLike) -> Bool[np.ndarray, " run"]:
    """Runs for which no other has loss as low and score as high with one of them better. Equal runs
    are on it together.

    Invariant to increasing maps of either.

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
        loss_error, score_error: standard errors, one for all runs or one a run; normal and
            independent.

    Raises:
        InputError: as `pareto_front`, errors that are negative or not finite, or all 0.
    """
    x, y = as_paired(loss, score, "loss", "score", at_least=1)
    errors = []
    for name, given in (("loss_error", loss_error), ("score_error", score_error)):
        error = np.asarray(given, dtype=np.float64)
        if error.shape not in ((), x.shape) or not (np.isfinite(error) & (error >= 0)).all():
            raise InputError(
                f"{name} must be one standard error of 0 or more, or one for each of {len(x)} runs;"
                f" got {given!r}"
            )
        errors.append(error)
    if not any(error.any() for error in errors):
        raise InputError(
            "loss_error and score_error are 0, so the front is certain;"
            " pass a standard error, or use pareto_front"
        )
    rng = numpy_rng(seed, "front_membership")
    size = (require_count(draws, "draws"), len(x))
    return _front(
        x + errors[0] * rng.normal(size=size), y + errors[1] * rng.normal(size=size)
    ).mean(axis=0)


def _front(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Rows of (draw, run)."""
    on = np.ones(x.shape, dtype=bool)
    for i in range(x.shape[1]):
        no_worse = (x <= x[:, i : i + 1]) & (y >= y[:, i : i + 1])
        better = (x < x[:, i : i + 1]) | (y > y[:, i : i + 1])
        on[:, i] = ~(no_worse & better).any(axis=1)
    return on
