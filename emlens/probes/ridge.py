"""Exact ridge predictions for many penalties and many targets at once, from one factorisation a training set.

The factorisation does not depend on the targets, so permuting them costs a matrix product each: a permutation null of
the whole nested procedure is routine. Scaling is fitted on the training rows alone.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ALPHAS: tuple[float, ...] = tuple(float(a) for a in np.logspace(-1, 5, 13))


def standardise(train: Array, test: Array) -> tuple[Array, Array]:
    """Both sets minus the training mean, over the training sd; a constant column becomes zero."""
    mean, sd = train.mean(0), train.std(0)
    scale = np.where(sd > 1e-12 * np.maximum(1.0, np.abs(mean)), sd, np.inf)
    return (train - mean) / scale, (test - mean) / scale


def ridge_path(train: Array, test: Array, targets: Array, alphas: Sequence[float] = ALPHAS) -> Array:
    """Predictions (alpha, test row, target) of ridge with an intercept.

    Minimises ‖y − ȳ − Xw‖² + α‖w‖² on centred training columns; the intercept is not penalised. The smaller of the two
    Gram matrices is diagonalised; its rounding (about 1e-16 of the largest eigenvalue) is far below any penalty in use.

    Args:
        train, test: (row, feature), already scaled.
        targets: (training row, target).
    """
    centre, offset = train.mean(0), targets.mean(0)
    x, y = train - centre, targets - offset
    if len(x) >= x.shape[1]:
        values, vectors = np.linalg.eigh(x.T @ x)
        scores, projected = (test - centre) @ vectors, vectors.T @ (x.T @ y)
    else:
        values, vectors = np.linalg.eigh(x @ x.T)
        scores, projected = (test - centre) @ x.T @ vectors, vectors.T @ y
    values = values.clip(min=0.0)
    return np.stack([scores @ (projected / (values + alpha)[:, None]) + offset for alpha in alphas])


def ridge_weights(train: Array, target: Array, alpha: float) -> tuple[Array, float]:
    """Weights (feature) and intercept of the same fit for one target."""
    centre, offset = train.mean(0), float(target.mean())
    u, s, vt = np.linalg.svd(train - centre, full_matrices=False)
    weights = vt.T @ ((s / (s**2 + alpha)) * (u.T @ (target - offset)))
    return weights, offset - float(centre @ weights)
