"""Exact ridge predictions for many penalties and many targets at once, from one factorisation of a
training set.

The smaller Gram matrix is brought to tridiagonal form once, A = Q T Qᵀ; each penalty then costs a
tridiagonal solve, and each target, permuted ones too, a row of a matrix product. Eigenvectors are
never needed, which halves the time. All in float64; rounding is about 1e-16 of the largest
eigenvalue, far below any penalty in use, and a penalty below it is raised to it.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

Array = NDArray[np.float64]

ALPHAS: tuple[float, ...] = tuple(float(a) for a in np.logspace(-1, 5, 13))
CONSTANT = 1e-12
"""Standard deviation, over the mean or 1, below which a column counts as constant."""
UNBLOCKED = 32
"""Columns up to which LAPACK applies reflectors faster one at a time than in blocks."""


def standardise(train: Array, test: Array) -> tuple[Array, Array]:
    """Both sets minus the training mean, over the training sd; a constant column becomes zero.

    The test rows have no part in mean and sd: they are not known when a forecast is made.
    """
    mean, scale = mean_and_scale(train)
    return (train - mean) / scale, (test - mean) / scale


def mean_and_scale(rows: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of each column; infinity for a constant one, which then becomes
    zero.
    """
    mean, sd = rows.mean(0), rows.std(0)
    return mean, np.where(sd > CONSTANT * np.maximum(1.0, np.abs(mean)), sd, np.inf)


class RidgePath:
    """Ridge with an intercept from one training set to one test set, at every penalty.

    Minimises Σ_i w_i (y_i − b − x_i·β)² + α‖β‖²; the intercept is not penalised. With more features
    than rows ("wide") the Gram matrix of rows is the smaller one, and the intercept is eliminated
    in the solve: with A = XXᵀ + α, β = Xᵀu, u = A⁻¹(y − b), and b such that u sums to 0. Else the
    Gram matrix of features is used, on rows that are centred first.

    Args:
        train, test: (row, feature), scaled already.
        weights: one per training row; 1 where None.
        near_centre: training means are small beside the columns' spread, so taking them out first
            would gain no digits.
    """

    def __init__(
        self, train: Array, test: Array, weights: Array | None = None, *, near_centre: bool = False
    ):
        n = len(train)
        self._wide = train.shape[1] >= n
        self._shares, self._root = np.full(n, 1 / n), np.ones(n)
        if weights is not None:
            self._shares, self._root = weights / weights.sum(), np.sqrt(weights)
        skip_centring = near_centre and self._wide and weights is None
        if not skip_centring:
            centre = self._shares @ train
            train, test = train - centre, test - centre
        if weights is not None:
            # weighted least squares is least squares on rows times the root of their weight
            train = train * self._root[:, None]
        self._train, self._test = train, test
        gram = train @ train.T if self._wide else train.T @ train
        self._m = len(gram)
        # gram = Q T Qᵀ; Q stays a product of Householder reflectors in the lower triangle
        packed, self._diagonal, self._beside, self._tau, _ = lapack.dsytrd(
            gram.T, lower=1, lwork=8 * self._m, overwrite_a=1
        )
        self._reflectors = np.asfortranarray(packed[1:, :-1])
        # Gershgorin: no eigenvalue of T exceeds this; below m·eps of it, T + α is singular in
        # float64, so that is the smallest penalty
        size = np.abs(self._diagonal).max() + 2 * np.abs(self._beside).max(initial=0.0)
        self._least = self._m * np.finfo(np.float64).eps * size + np.finfo(np.float64).tiny

    def predict(self, targets: Array, alphas: Sequence[float]) -> Array:
        """Predictions (alpha, test row, target) from targets (training row, target)."""
        n_targets = targets.shape[1]
        if n_targets * len(alphas) > len(self._test):
            # many targets: the maps from training targets to predictions are cheaper
            maps = self.operators(alphas).reshape(-1, len(targets))
            return (maps @ targets).reshape(len(alphas), len(self._test), n_targets)
        offset = self._shares @ targets
        centred = (targets - offset) * self._root[:, None]
        if self._wide:
            solutions, intercepts = self._wide_solutions(centred, alphas)
        else:
            right = self._rotated(self._train.T @ centred, "T")
            solutions = [self._solved(right, alpha) for alpha in alphas]
            intercepts = np.zeros((len(alphas), 1, n_targets))
        solution = self._rotated(np.hstack(solutions), "N")
        # wide: dual weights u of the rows, β = Xᵀu; else β itself
        weights = solution.T @ self._train if self._wide else solution.T
        predicted = (self._test @ weights.T).reshape(len(self._test), len(alphas), n_targets)
        return predicted.transpose(1, 0, 2) + (offset + intercepts)

    def _wide_solutions(self, centred: Array, alphas: Sequence[float]) -> tuple[list[Array], Array]:
        """(Qᵀu for each penalty, intercepts (alpha, 1, target)).

        With r the roots of the weights and A = XXᵀ + α: u = A⁻¹y − b A⁻¹r, and rᵀu = 0 gives
        b = rᵀA⁻¹y / rᵀA⁻¹r. Solved with r as one more column.
        """
        right = self._rotated(np.hstack([centred, self._root[:, None]]), "T")
        solved = [self._solved(right, alpha) for alpha in alphas]
        sums = np.stack([right[:, -1] @ columns for columns in solved])
        intercepts = sums[:, None, :-1] / sums[:, None, -1:]
        duals = []
        for columns, b in zip(solved, intercepts, strict=True):
            duals.append(columns[:, :-1] - columns[:, -1:] * b)
        return duals, intercepts

    def predict_chosen(
        self, targets: Array, alphas: Sequence[float], chosen: NDArray[np.intp]
    ) -> Array:
        """Predictions (test row, target), each target with the penalty whose number `chosen`
        (target) gives.
        """
        predicted = np.empty((len(self._test), targets.shape[1]))
        for number in np.unique(chosen):
            columns = chosen == number
            alpha = alphas[number : number + 1]
            predicted[:, columns] = self.predict(targets[:, columns], alpha)[0]
        return predicted

    def operators(self, alphas: Sequence[float]) -> Array:
        """(alpha, test row, training row): the linear maps from training targets to predictions."""
        q, right = self._q_and_right
        solved = np.concatenate([self._solved(right, alpha).T for alpha in alphas]) @ q.T
        if not self._wide:
            solved = solved @ self._train.T
        maps = (solved * self._root).reshape(len(alphas), -1, len(self._root))
        if self._wide:
            # the last row is rᵀA⁻¹, from which the intercept follows as in `_wide_solutions`
            intercept, maps = maps[:, -1], maps[:, :-1]
            intercept = intercept / intercept.sum(1, keepdims=True)
        else:
            intercept = np.broadcast_to(self._shares, (len(alphas), len(self._root)))
        # a constant target is predicted by itself
        return maps + (1 - maps.sum(2, keepdims=True)) * intercept[:, None]

    @cached_property
    def _q_and_right(self) -> tuple[Array, Array]:
        """Q, and Qᵀ times what leads to the test rows, (m, test row), with the intercept's column
        after them where wide.
        """
        q = np.zeros((self._m, self._m), order="F")
        q[0, 0] = 1.0
        if self._m > 1:
            q[1:, 1:] = lapack.dorgqr(self._reflectors, self._tau, lwork=64 * self._m)[0]
        rows = self._test
        if self._wide:
            rows = np.vstack([self._test @ self._train.T, self._root])
        return q, np.asfortranarray(q.T @ rows.T)

    def _rotated(self, columns: Array, side: str) -> Array:
        """Q (side N) or Qᵀ (side T) times the columns, without forming Q."""
        if self._m == 1:
            return columns
        # with lower=1 the reflectors leave the first row as it is
        below = np.asfortranarray(columns[1:])
        block = 1 if below.shape[1] <= UNBLOCKED else 64
        rotated = lapack.dormqr(
            "L", side, self._reflectors, self._tau, below, block * below.shape[1]
        )[0]
        return np.vstack([columns[:1], rotated])

    def _solved(self, columns: Array, alpha: float) -> Array:
        """(T + α)⁻¹ columns."""
        shifted = self._diagonal + max(alpha, self._least)
        if self._m == 1:
            return columns / shifted
        return np.asarray(lapack.dptsv(shifted, self._beside, columns)[2])


def ridge_path(
    train: Array, test: Array, targets: Array, alphas: Sequence[float] = ALPHAS
) -> Array:
    """Predictions (alpha, test row, target) of ridge with an intercept, `RidgePath` in one call.

    Args:
        train, test: (row, feature), already scaled.
        targets: (training row, target).
    """
    return RidgePath(train, test).predict(targets, alphas)


def ridge_weights(
    train: Array, target: Array, alpha: float, row_weights: Array | None = None
) -> tuple[Array, float]:
    """Weights (feature) and intercept of the same fit for one target.

    With centred X = U S Vᵀ, β = V S (S² + α)⁻¹ Uᵀ y; rows and targets times the root of their
    weights, where they have some.
    """
    if row_weights is None:
        centre, offset, root = train.mean(0), float(target.mean()), np.ones(len(train))
    else:
        shares = row_weights / row_weights.sum()
        centre, offset, root = shares @ train, float(shares @ target), np.sqrt(row_weights)
    u, s, vt = np.linalg.svd((train - centre) * root[:, None], full_matrices=False)
    weights = vt.T @ ((s / (s**2 + alpha)) * (u.T @ ((target - offset) * root)))
    return weights, offset - float(centre @ weights)
