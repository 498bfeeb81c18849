"""Correlations with intervals: Pearson, Spearman, and either with covariates partialled out.

A constant sample has no correlation: that is an undefined `Estimate`, since a sweep over cells
meets such cells. NaN is an error. The plain intervals assume independent units: with questions that
share their domain they were seen to cover .6 to .9 instead of .95 (docs/statistics.md). `clusters`
gives one that holds for whole clusters drawn anew: the delete-one-cluster jackknife of atanh r with
t of G − 1 degrees of freedom, for 8 clusters or more.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.seeds import numpy_rng
from emlens.stats.nulls import NullDistribution
from emlens.stats.samples import as_paired, group_rows, require_count, require_level, rows_by_label

Labels = Sequence[object] | np.ndarray | None
CLUSTERS = 8
"""Clusters from which on the jackknife interval was seen to cover .92 or more (docs/statistics.md).
"""
CONSTANT = 1e-12
"""Spread over magnitude below which float64 sums cannot tell a sample from a constant."""


def _is_constant(sample: np.ndarray, scale: float | None = None) -> bool:
    reference = float(np.abs(sample).max()) if scale is None else scale
    return bool(np.ptp(sample) <= CONSTANT * reference)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    return float(np.clip(x @ y, -1.0, 1.0))


def _correlation_or_nan(x: np.ndarray, y: np.ndarray) -> float:
    return math.nan if len(x) < 2 or _is_constant(x) or _is_constant(y) else _correlation(x, y)


def _fisher(r: float, n: int, variance: float, level: float, method: str) -> Estimate:
    """Interval by r -> atanh r, symmetric there with the given variance."""
    if abs(r) == 1.0:
        return Estimate(r, r, r, n, method)
    half = float(scipy_stats.norm.ppf((1 + level) / 2)) * math.sqrt(variance)
    return Estimate(r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half), n, method)


def _by_clusters(
    r: float,
    without: Callable[[np.ndarray], float],
    clusters: Labels,
    n: int,
    level: float,
    name: str,
) -> Estimate:
    """Interval of a correlation from its values `without` the rows of each cluster, on the atanh
    scale.
    """
    members = rows_by_label(
        clusters if clusters is not None else [], n, "clusters", "an interval over clusters"
    )
    count = len(members)
    method = f"{name}, {100 * level:g} % jackknife over {count} clusters"
    if count < CLUSTERS:
        method += (
            f"; outside its design range: {count} clusters,"
            f" fewer than the {CLUSTERS} it is made for"
        )
    kept = np.ones((count, n), dtype=bool)
    for row, cluster in zip(kept, members, strict=True):
        row[cluster] = False
    deleted = np.array([without(row) for row in kept])
    if not (np.abs(deleted) < 1).all() or abs(r) == 1.0:
        return Estimate(
            r,
            math.nan,
            math.nan,
            count,
            f"{method}; perfect or undefined without some cluster, so there is no interval",
        )
    z = np.arctanh(deleted)
    half = float(scipy_stats.t.ppf((1 + level) / 2, count - 1)) * math.sqrt(
        (count - 1) * float(z.var())
    )
    return Estimate(
        r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half), count, method
    )


def pearson(
    x: ArrayLike, y: ArrayLike, *, clusters: Labels = None, level: float = 0.95
) -> Estimate:
    """Pearson correlation with Fisher's z interval, or one over clusters.

    Range [-1, 1]; invariant to increasing affine maps of either sample. Fisher's interval is exact
    only near normality.

    Args:
        clusters: one label a unit (its domain), for an interval over whole clusters; `n` then
            counts them.

    Raises:
        InputError: unequal lengths, fewer than 4 pairs, values that are not finite, clusters that
            do not fit.
    """
    a, b = as_paired(x, y, "x", "y", at_least=4)
    require_level(level)
    if _is_constant(a) or _is_constant(b):
        return Estimate.undefined(f"{'x' if _is_constant(a) else 'y'} is constant", len(a))
    n, r = len(a), _correlation(a, b)
    if clusters is not None:
        return _by_clusters(
            r, lambda kept: _correlation_or_nan(a[kept], b[kept]), clusters, n, level, "Pearson"
        )
    return _fisher(r, n, 1 / (n - 3), level, f"Pearson, {100 * level:g} % Fisher z")


def spearman(
    x: ArrayLike, y: ArrayLike, *, clusters: Labels = None, level: float = 0.95
) -> Estimate:
    """Spearman rank correlation (ties share their mean rank) with an interval on Fisher's z scale,
    or one over clusters.

    Range [-1, 1]; invariant to increasing maps of either sample. The variance of z is (1 + ρ²/2)/(n
    − 3) (Bonett & Wright 2000), which holds its coverage at strong correlations, where Fieller's
    1.06/(n − 3) falls short.

    Args:
        clusters: one label a unit (its domain), for an interval over whole clusters; `n` then
            counts them.

    Raises:
        InputError: unequal lengths, fewer than 4 pairs, values that are not finite, clusters that
            do not fit.
    """
    a, b = as_paired(x, y, "x", "y", at_least=4)
    require_level(level)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return Estimate.undefined(f"{'x' if np.ptp(a) == 0 else 'y'} is constant", len(a))
    n = len(a)
    rho = _correlation(scipy_stats.rankdata(a), scipy_stats.rankdata(b))
    if clusters is not None:

        def without(kept: np.ndarray) -> float:
            return _correlation_or_nan(scipy_stats.rankdata(a[kept]), scipy_stats.rankdata(b[kept]))

        return _by_clusters(rho, without, clusters, n, level, "Spearman")
    return _fisher(
        rho, n, (1 + rho**2 / 2) / (n - 3), level, f"Spearman, {100 * level:g} % Bonett-Wright"
    )


def partial_correlation(
    x: ArrayLike,
    y: ArrayLike,
    covariates: ArrayLike,
    *,
    ranks: bool = False,
    clusters: Labels = None,
    level: float = 0.95,
) -> Estimate:
    """Correlation of what remains of x and y after linear regression on covariates (with an
    intercept).

    Args:
        covariates: one column a covariate, shape (n, q) or (n,).
        ranks: use ranks of x, y and covariates (partial Spearman).
        clusters: one label a unit (its domain), for an interval over whole clusters; `n` then
            counts them.

    Range [-1, 1]. The plain interval is Fisher's with n − q − 3 (Bonett & Wright's variance for
    ranks). Undefined where the covariates explain x or y completely.

    Raises:
        InputError: lengths that differ, fewer than q + 4 units, values that are not finite,
            clusters that do not fit.
    """
    a, b = as_paired(x, y, "x", "y", at_least=4)
    require_level(level)
    columns = _columns(covariates, len(a))
    n, q = columns.shape
    if n < q + 4:
        raise InputError(f"{n} units are too few for {q} covariates; pass at least {q + 4}")
    residuals, why = _partialled(a, b, columns, ranks)
    if residuals is None:
        return Estimate.undefined(why, n)
    r = _correlation(*residuals)
    kind = f"{'partial Spearman' if ranks else 'partial Pearson'} given {q} covariates"
    if clusters is not None:

        def without(kept: np.ndarray) -> float:
            left, _ = _partialled(a[kept], b[kept], columns[kept], ranks)
            return math.nan if left is None or kept.sum() < q + 4 else _correlation(*left)

        return _by_clusters(r, without, clusters, n, level, kind)
    variance = (1 + r**2 / 2 if ranks else 1.0) / (n - q - 3)
    return _fisher(r, n, variance, level, f"{kind}, {100 * level:g} % Fisher z")


def _columns(covariates: ArrayLike, n: int) -> np.ndarray:
    """One column a covariate.

    Raises:
        InputError: not one row a unit, or values that are not finite.
    """
    columns = np.asarray(covariates, dtype=np.float64)
    columns = columns[:, None] if columns.ndim == 1 else columns
    if columns.ndim != 2 or len(columns) != n:
        raise InputError(f"covariates has shape {columns.shape} for {n} units; pass one row a unit")
    if not np.isfinite(columns).all():
        raise InputError("covariates holds values that are NaN or infinite; drop or fix them first")
    return columns


def _design(columns: np.ndarray, ranks: bool) -> np.ndarray:
    """Intercept and covariates (or their ranks), columns of norm 1."""
    columns = scipy_stats.rankdata(columns, axis=0) if ranks else columns
    design = np.column_stack([np.ones(len(columns)), columns - columns.mean(axis=0)])
    return np.asarray(
        design / np.maximum(np.linalg.norm(design, axis=0), np.finfo(np.float64).tiny)
    )


def _partialled(
    a: np.ndarray, b: np.ndarray, columns: np.ndarray, ranks: bool
) -> tuple[tuple[np.ndarray, np.ndarray] | None, str]:
    """What the covariates leave of both samples, or None and the reason."""
    if ranks:
        a, b = scipy_stats.rankdata(a), scipy_stats.rankdata(b)
    design = _design(columns, ranks)
    rest = [sample - design @ np.linalg.lstsq(design, sample, rcond=None)[0] for sample in (a, b)]
    for name, left, sample in zip("xy", rest, (a, b), strict=True):
        if _is_constant(left, float(np.abs(sample).max())):
            return None, f"the covariates explain {name} completely"
    return (rest[0], rest[1]), ""


def correlation_null(
    x: ArrayLike,
    y: ArrayLike,
    *,
    ranks: bool = False,
    strata: Sequence[object] | np.ndarray | None = None,
    covariates: ArrayLike | None = None,
    draws: int = 9999,
    seed: int = 0,
) -> NullDistribution:
    """The correlation of x with shuffled y: no association beyond the strata, whose members swap
    only among themselves.

    Args:
        covariates: as `partial_correlation`, whose null this then is: what they leave of y is
            shuffled, and what they explain of that is taken out again (Freedman & Lane 1983).
            Approximate, better the more units there are for a covariate.

    Raises:
        InputError: lengths that differ, constant samples, fewer than 4 pairs, strata that do not
            fit, covariates that explain a sample.
    """
    a, b = as_paired(x, y, "x", "y", at_least=4)
    if _is_constant(a) or _is_constant(b):
        raise InputError(
            f"{'x' if _is_constant(a) else 'y'} is constant,"
            " so no correlation exists under any permutation"
        )
    if ranks:
        a, b = scipy_stats.rankdata(a), scipy_stats.rankdata(b)
    a, b = a - a.mean(), b - b.mean()
    base = np.empty((len(a), 0))
    if covariates is not None:
        columns = _columns(covariates, len(a))
        left, why = _partialled(a, b, columns, ranks)
        if left is None:
            raise InputError(f"{why}, so no correlation is left to test")
        (a, b), base = left, np.linalg.qr(_design(columns, ranks))[0]
    rng = numpy_rng(seed, "correlation_null")
    groups = stratum_rows(strata, len(a))
    values = np.empty(require_count(draws, "draws"))
    shuffled = b.copy()
    a = a / np.linalg.norm(a)
    for i in range(draws):
        for rows in groups:
            shuffled[rows] = b[rng.permutation(rows)]
        values[i] = a @ shuffled / np.linalg.norm(shuffled - base @ (base.T @ shuffled))
    label = f"{'Spearman' if ranks else 'Pearson'} under permutation" + (
        " within strata" if strata is not None else ""
    )
    label += "" if covariates is None else ", covariates partialled out"
    return NullDistribution(values, label, seed)


def stratum_rows(strata: Sequence[object] | np.ndarray | None, n: int) -> list[np.ndarray]:
    """Row numbers of each stratum, in order of first appearance; one stratum of all rows where it
    is None.

    Raises:
        InputError: not one label a row, or every stratum has one member, so that nothing can move.
    """
    if strata is None:
        return [np.arange(n)]
    labels = list(strata)
    if len(labels) != n:
        raise InputError(f"strata has {len(labels)} labels for {n} units; pass one label a unit")
    members = group_rows(labels)
    if len(members) == n:
        raise InputError(
            f"strata puts each of {n} units in a stratum of its own, so nothing can be permuted"
        )
    return members
