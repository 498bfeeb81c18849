"""Correlations with intervals: Pearson, Spearman, and either with covariates partialled out.

A constant sample has no correlation: that is an undefined `Estimate`, since a sweep over cells meets such cells. NaN is
an error. The intervals assume independent units; for units in clusters pass the correlation to `cluster_bootstrap`.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.seeds import numpy_rng
from emlens.stats.nulls import NullDistribution
from emlens.stats.samples import as_paired, require_count, require_level

CONSTANT = 1e-12
"""Spread over magnitude below which float64 sums cannot tell a sample from a constant."""


def _is_constant(sample: np.ndarray, scale: float | None = None) -> bool:
    reference = float(np.abs(sample).max()) if scale is None else scale
    return bool(np.ptp(sample) <= CONSTANT * reference)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    return float(np.clip(x @ y, -1.0, 1.0))


def _fisher(r: float, n: int, variance: float, level: float, method: str) -> Estimate:
    """Interval by r -> atanh r, symmetric there with the given variance."""
    if abs(r) == 1.0:
        return Estimate(r, r, r, n, method)
    half = float(scipy_stats.norm.ppf((1 + level) / 2)) * math.sqrt(variance)
    return Estimate(r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half), n, method)


def pearson(x: ArrayLike, y: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Pearson correlation with Fisher's z interval.

    Range [-1, 1]; invariant to increasing affine maps of either sample. The interval is exact only near normality.

    Raises:
        InputError: unequal lengths, fewer than 4 pairs, values that are not finite.
    """
    a, b = as_paired(x, y, "x", "y", at_least=4)
    require_level(level)
    if _is_constant(a) or _is_constant(b):
        return Estimate.undefined(f"{'x' if _is_constant(a) else 'y'} is constant", len(a))
    n = len(a)
    return _fisher(_correlation(a, b), n, 1 / (n - 3), level, f"Pearson, {100 * level:g} % Fisher z")


def spearman(x: ArrayLike, y: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Spearman rank correlation (ties share their mean rank) with Fisher's z interval.

    Range [-1, 1]; invariant to increasing maps of either sample. The variance of z is (1 + ρ²/2)/(n − 3) (Bonett &
    Wright 2000), which holds its coverage at strong correlations, where Fieller's 1.06/(n − 3) falls short.

    Raises:
        InputError: unequal lengths, fewer than 4 pairs, values that are not finite.
    """
    a, b = as_paired(x, y, "x", "y", at_least=4)
    require_level(level)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return Estimate.undefined(f"{'x' if np.ptp(a) == 0 else 'y'} is constant", len(a))
    n = len(a)
    rho = _correlation(scipy_stats.rankdata(a), scipy_stats.rankdata(b))
    return _fisher(rho, n, (1 + rho**2 / 2) / (n - 3), level, f"Spearman, {100 * level:g} % Bonett-Wright")


def partial_correlation(
    x: ArrayLike, y: ArrayLike, covariates: ArrayLike, *, ranks: bool = False, level: float = 0.95
) -> Estimate:
    """Correlation of what remains of x and y after linear regression on covariates (with an intercept).

    Args:
        covariates: one column a covariate, shape (n, q) or (n,).
        ranks: use ranks of x, y and covariates (partial Spearman).

    Range [-1, 1]. The interval is Fisher's with n − q − 3 (Bonett & Wright's variance for ranks). Undefined where the
    covariates explain x or y completely.

    Raises:
        InputError: lengths that differ, fewer than q + 4 units, values that are not finite.
    """
    a, b = as_paired(x, y, "x", "y", at_least=4)
    require_level(level)
    columns = np.asarray(covariates, dtype=np.float64)
    columns = columns[:, None] if columns.ndim == 1 else columns
    if columns.ndim != 2 or len(columns) != len(a):
        raise InputError(f"covariates has shape {columns.shape} for {len(a)} units; pass one row a unit")
    if not np.isfinite(columns).all():
        raise InputError("covariates holds values that are NaN or infinite; drop or fix them first")
    n, q = columns.shape
    if n < q + 4:
        raise InputError(f"{n} units are too few for {q} covariates; pass at least {q + 4}")
    if ranks:
        a, b = scipy_stats.rankdata(a), scipy_stats.rankdata(b)
        columns = scipy_stats.rankdata(columns, axis=0)
    design = np.column_stack([np.ones(n), columns - columns.mean(axis=0)])
    design = design / np.maximum(np.linalg.norm(design, axis=0), np.finfo(np.float64).tiny)
    residuals = []
    for name, sample in (("x", a), ("y", b)):
        rest = sample - design @ np.linalg.lstsq(design, sample, rcond=None)[0]
        if _is_constant(rest, float(np.abs(sample).max())):
            return Estimate.undefined(f"the covariates explain {name} completely", n)
        residuals.append(rest)
    r = _correlation(*residuals)
    variance = (1 + r**2 / 2 if ranks else 1.0) / (n - q - 3)
    kind = "partial Spearman" if ranks else "partial Pearson"
    return _fisher(r, n, variance, level, f"{kind} given {q} covariates, {100 * level:g} % Fisher z")


def correlation_null(
    x: ArrayLike,
    y: ArrayLike,
    *,
    ranks: bool = False,
    strata: Sequence[object] | np.ndarray | None = None,
    draws: int = 9999,
    seed: int = 0,
) -> NullDistribution:
    """The correlation of x with shuffled y: no association beyond the strata, whose members swap only among themselves.

    Raises:
        InputError: lengths that differ, constant samples, fewer than 4 pairs, strata that do not fit.
    """
    a, b = as_paired(x, y, "x", "y", at_least=4)
    if _is_constant(a) or _is_constant(b):
        raise InputError(
            f"{'x' if _is_constant(a) else 'y'} is constant, so no correlation exists under any permutation"
        )
    if ranks:
        a, b = scipy_stats.rankdata(a), scipy_stats.rankdata(b)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    rng = numpy_rng(seed, "correlation_null")
    groups = stratum_rows(strata, len(a))
    values = np.empty(require_count(draws, "draws"))
    shuffled = b.copy()
    for i in range(draws):
        for rows in groups:
            shuffled[rows] = b[rng.permutation(rows)]
        values[i] = a @ shuffled / scale
    label = f"{'Spearman' if ranks else 'Pearson'} under permutation" + (" within strata" if strata is not None else "")
    return NullDistribution(values, label, seed)


def stratum_rows(strata: Sequence[object] | np.ndarray | None, n: int) -> list[np.ndarray]:
    """Row numbers of each stratum, in order of first appearance; one stratum of all rows where it is None.

    Raises:
        InputError: not one label a row, or every stratum has one member, so that nothing can move.
    """
    if strata is None:
        return [np.arange(n)]
    labels = list(strata)
    if len(labels) != n:
        raise InputError(f"strata has {len(labels)} labels for {n} units; pass one label a unit")
    rows: dict[object, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    if len(rows) == n:
        raise InputError(f"strata puts each of {n} units in a stratum of its own, so nothing can be permuted")
    return [np.array(members) for members in rows.values()]
