"""Do two matrices over the same units agree? Mantel's test, within strata and given other matrices.

For an overlap matrix and a shift-similarity matrix over the same prompts or fine-tunes. Entries of
one row share their unit, so pairs are not independent: p comes from permuting whole units, never
from the number of pairs, and there is no interval. Memory: a few times the square of the number of
units.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.seeds import numpy_rng
from emlens.stats.correlation import stratum_rows
from emlens.stats.nulls import NullDistribution, Side
from emlens.stats.outcomes import TestResult, require_side
from emlens.stats.samples import require_count

_ROUNDING = 1e-12


def mantel_test(
    a: ArrayLike,
    b: ArrayLike,
    *,
    covariates: Sequence[ArrayLike] = (),
    strata: Sequence[object] | np.ndarray | None = None,
    ranks: bool = False,
    side: Side = "two-sided",
    draws: int = 9999,
    seed: int = 0,
) -> TestResult:
    """Mantel's test (1967): correlation of the entries above the diagonals, against units permuted
    in `a`.

    With `covariates` it is the partial Mantel test: what they explain is taken out of both
    matrices, and residuals of `a` are permuted (Freedman & Lane's scheme, Legendre 2000). With
    `strata` units swap only within their category, so that what categories explain is in the null.

    Args:
        a, b: (unit, unit), symmetric; diagonals are not read.
        covariates: matrices of that shape, or one number a unit (length, norm), which enters as the
            two matrices |v_i − v_j| and v_i + v_j: a pair can be alike because both are long.
        ranks: use ranks of the entries (Spearman).

    `statistic`, `effect` and `estimate` are the correlation, range [-1, 1]; `n` counts units; p has
    the +1 rule.

    Raises:
        InputError: matrices that are not square, not symmetric, not finite or of another size,
            fewer than 4 units, a matrix whose entries are constant or explained by the covariates,
            strata that do not fit.
    """
    first = _symmetric(a, "a")
    n = len(first)
    require_side(side)
    upper = np.triu_indices(n, 1)
    basis = _design([_covariate(c, n) for c in covariates], upper, ranks)
    rest = []
    for name, matrix in (("a", first), ("b", _symmetric(b, "b", n))):
        entries = scipy_stats.rankdata(matrix[upper]) if ranks else matrix[upper]
        left = entries - basis @ (basis.T @ entries)
        if np.abs(left).max() <= _ROUNDING * np.abs(entries).max():
            why = "explained by the covariates" if covariates else "constant"
            raise InputError(
                f"the entries of {name} above the diagonal are {why},"
                " so there is no correlation to test"
            )
        rest.append(left)
    target = rest[1] / np.linalg.norm(rest[1])
    square = np.zeros((n, n))
    square[upper] = rest[0]
    square += square.T
    observed = float(np.clip(rest[0] @ target / np.linalg.norm(rest[0]), -1.0, 1.0))
    rows, rng = stratum_rows(strata, n), numpy_rng(seed, "mantel_test")
    values, order = np.empty(require_count(draws, "draws")), np.arange(n)
    for i in range(draws):
        for members in rows:
            order[members] = rng.permutation(members)
        moved = square[order][:, order][upper]
        moved = moved - basis @ (basis.T @ moved)
        length = float(np.linalg.norm(moved))
        values[i] = moved @ target / length if length > _ROUNDING * np.abs(square).max() else 0.0
    label = "units permuted" + (" within strata" if strata is not None else "")
    p = NullDistribution(values, label, seed).p_value(observed, side)
    given = f" given {len(covariates)} covariates" if covariates else ""
    name = f"{'Spearman' if ranks else 'Pearson'} of matrix entries{given}"
    estimate = Estimate(
        observed, math.nan, math.nan, n, f"{name}; pairs share units, so there is no interval"
    )
    return TestResult(
        observed,
        p,
        observed,
        estimate,
        n,
        f"Mantel test{given}, {label}, {side}, {draws} draws",
        effect_name=name,
        sizes=(n,),
    )


def _symmetric(matrix: ArrayLike, name: str, n: int | None = None) -> np.ndarray:
    square = np.asarray(matrix, dtype=np.float64)
    if (
        square.ndim != 2
        or square.shape[0] != square.shape[1]
        or (n is not None and len(square) != n)
    ):
        raise InputError(
            f"{name} has shape {square.shape};"
            f" pass a square matrix over {n if n is not None else 'the'} units"
        )
    if len(square) < 4:
        raise InputError(f"{name} has {len(square)} units; pass at least 4")
    off = square[~np.eye(len(square), dtype=bool)]
    if not np.isfinite(off).all():
        raise InputError(
            f"{name} holds entries off the diagonal that are NaN or infinite;"
            " drop or fix them first"
        )
    gap = np.abs(square - square.T)[~np.eye(len(square), dtype=bool)].max()
    if gap > 1e-8 * np.abs(off).max():
        raise InputError(
            f"{name} is not symmetric (entries differ by {gap:.3g});"
            " pass the mean of it and its transpose if that is meant"
        )
    return square


def _covariate(values: ArrayLike, n: int) -> list[np.ndarray]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        return [_symmetric(array, "a covariate", n)]
    if len(array) != n or not np.isfinite(array).all():
        raise InputError(
            f"a covariate has shape {array.shape} for {n} units;"
            " pass one finite number a unit, or a matrix"
        )
    return [np.abs(array[:, None] - array), array[:, None] + array]


def _design(
    covariates: Sequence[list[np.ndarray]], upper: tuple[np.ndarray, ...], ranks: bool
) -> np.ndarray:
    """Orthonormal columns that span the constant and the covariates' entries."""
    entries = [matrix[upper] for matrices in covariates for matrix in matrices]
    columns = [
        np.ones(len(upper[0])),
        *((scipy_stats.rankdata(e) if ranks else e) for e in entries),
    ]
    scaled = np.column_stack([columns[0], *(c - c.mean() for c in columns[1:])])
    scaled = scaled / np.maximum(np.linalg.norm(scaled, axis=0), np.finfo(np.float64).tiny)
    left, singular, _ = np.linalg.svd(scaled, full_matrices=False)
    return np.asarray(left[:, singular > 1e-10 * singular[0]])
