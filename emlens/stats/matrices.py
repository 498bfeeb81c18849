"""Do two matrices over the same units agree? Mantel's test, with strata and with covariates.

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
from emlens.stats.nulls import NullDistribution, Side, require_side
from emlens.stats.outcomes import TestResult
from emlens.stats.samples import require_count, stratum_rows

_ROUNDING = 1e-12  # relative: what float64 leaves of entries that the covariates explain
_ASYMMETRY = 1e-8  # relative: a float32 matrix is symmetric only to about this
_DEPENDENT = 1e-10  # relative singular value below which a covariate repeats the others


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
    """Mantel's test (1967): correlation of the entries above the diagonals of two matrices.

    Units are permuted in `a`. With `covariates` it is the partial Mantel test: what they explain is
    taken out of both matrices, and residuals of `a` are permuted (Freedman & Lane's scheme,
    Legendre 2000). With `strata` units swap only within their category, so that what categories
    explain is in the null. `statistic`, `effect` and `estimate` are the correlation, range
    [-1, 1]; `n` counts units; p has the +1 rule.

    Args:
        a, b: (unit, unit), symmetric; diagonals are not read.
        covariates: matrices of that shape, or one number per unit (length, norm), which enters as
            the two matrices |v_i − v_j| and v_i + v_j: a pair can be alike because both are long.
        ranks: use ranks of the entries (Spearman).

    Raises:
        InputError: matrices that are not square, not symmetric, not finite or of another size,
            fewer than 4 units, a matrix whose entries are constant or explained by the covariates,
            strata that do not fit.
    """
    first = _symmetric(a, "a")
    n = len(first)
    require_side(side)
    upper = np.triu_indices(n, 1)
    covariate_matrices = []
    for values in covariates:
        covariate_matrices += _covariate_matrices(values, n)
    basis = _basis(covariate_matrices, upper, ranks)
    why = "explained by the covariates" if covariates else "constant"
    residual_a = _residual_entries(first[upper], basis, ranks, "a", why)
    residual_b = _residual_entries(_symmetric(b, "b", n)[upper], basis, ranks, "b", why)
    target = residual_b / np.linalg.norm(residual_b)
    # both are orthogonal to the constant, so their cosine is the correlation
    cosine = residual_a @ target / np.linalg.norm(residual_a)
    observed = float(np.clip(cosine, -1.0, 1.0))

    square = np.zeros((n, n))
    square[upper] = residual_a
    square += square.T
    values = _permuted_cosines(square, target, basis, stratum_rows(strata, n), draws, seed)
    label = "units permuted" if strata is None else "units permuted within strata"
    beside = f" given {len(covariates)} covariates" if covariates else ""
    coefficient = "Spearman" if ranks else "Pearson"
    name = f"{coefficient} of matrix entries{beside}"
    how = f"{name}; pairs share units, so there is no interval"
    return TestResult(
        statistic=observed,
        p=NullDistribution(values, label, seed).p_value(observed, side),
        effect=observed,
        estimate=Estimate(observed, math.nan, math.nan, n, how),
        n=n,
        method=f"Mantel test{beside}, {label}, {side}, {draws} draws",
        effect_name=name,
        sizes=(n,),
    )


def _permuted_cosines(
    square: np.ndarray,
    target: np.ndarray,
    basis: np.ndarray,
    strata: Sequence[np.ndarray],
    draws: int,
    seed: int,
) -> np.ndarray:
    """(draw,): the correlation with `target` where the units of `square` are permuted."""
    upper = np.triu_indices(len(square), 1)
    rng = numpy_rng(seed, "mantel_test")
    values = np.zeros(require_count(draws, "draws"))
    order = np.arange(len(square))
    rounding = _ROUNDING * np.abs(square).max()
    for i in range(draws):
        for members in strata:
            order[members] = rng.permutation(members)
        # permuting units moves rows and columns together
        entries = square[order][:, order][upper]
        # permuted residuals correlate with the covariates again by chance: project that out
        entries = entries - basis @ (basis.T @ entries)
        length = float(np.linalg.norm(entries))
        if length > rounding:
            values[i] = entries @ target / length
    return values


def _residual_entries(
    entries: np.ndarray, basis: np.ndarray, ranks: bool, name: str, why: str
) -> np.ndarray:
    """What the constant and the covariates leave of the entries above a diagonal.

    Raises:
        InputError: nothing but rounding is left; `why` says what took it.
    """
    if ranks:
        entries = scipy_stats.rankdata(entries)
    residual = entries - basis @ (basis.T @ entries)
    if np.abs(residual).max() <= _ROUNDING * np.abs(entries).max():
        raise InputError(
            f"the entries of {name} above the diagonal are {why},"
            " so there is no correlation to test"
        )
    return np.asarray(residual)


def _symmetric(matrix: ArrayLike, name: str, n: int | None = None) -> np.ndarray:
    """A symmetric float64 matrix over `n` units (any number of them where it is None).

    Raises:
        InputError: not square, not symmetric, not finite, of another size, fewer than 4 units.
    """
    square = np.asarray(matrix, dtype=np.float64)
    is_square = square.ndim == 2 and square.shape[0] == square.shape[1]
    if not is_square or (n is not None and len(square) != n):
        units = "the" if n is None else n
        raise InputError(
            f"{name} has shape {square.shape}; pass a square matrix over {units} units"
        )
    if len(square) < 4:
        raise InputError(f"{name} has {len(square)} units; pass at least 4")
    off_diagonal = ~np.eye(len(square), dtype=bool)
    entries = square[off_diagonal]
    if not np.isfinite(entries).all():
        raise InputError(
            f"{name} holds entries off the diagonal that are NaN or infinite;"
            " drop or fix them first"
        )
    gap = np.abs(square - square.T)[off_diagonal].max()
    if gap > _ASYMMETRY * np.abs(entries).max():
        raise InputError(
            f"{name} is not symmetric (entries differ by {gap:.3g});"
            " pass the mean of it and its transpose if that is meant"
        )
    return square


def _covariate_matrices(values: ArrayLike, n: int) -> list[np.ndarray]:
    """One matrix as it is, or two from one number per unit: |v_i − v_j| and v_i + v_j."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        return [_symmetric(array, "a covariate", n)]
    if len(array) != n or not np.isfinite(array).all():
        raise InputError(
            f"a covariate has shape {array.shape} for {n} units;"
            " pass one finite number per unit, or a matrix"
        )
    return [np.abs(array[:, None] - array), array[:, None] + array]


def _basis(
    matrices: Sequence[np.ndarray], upper: tuple[np.ndarray, ...], ranks: bool
) -> np.ndarray:
    """Orthonormal columns that span the constant and the covariates' entries."""
    columns = [np.ones(len(upper[0]))]
    for matrix in matrices:
        entries = matrix[upper]
        if ranks:
            entries = scipy_stats.rankdata(entries)
        columns.append(entries - entries.mean())
    design = np.column_stack(columns)
    design = design / np.maximum(np.linalg.norm(design, axis=0), np.finfo(np.float64).tiny)
    # an SVD rather than QR: covariates may repeat each other, and then the rank is lower
    basis, singular, _ = np.linalg.svd(design, full_matrices=False)
    return np.asarray(basis[:, singular > _DEPENDENT * singular[0]])
