"""Correlations with intervals: Pearson, Spearman, and either with covariates partialled out.

A constant sample has no correlation: that is an undefined `Estimate`, since a table over many cells
meets such cells. A perfect correlation has a value but no interval: atanh is infinite there, and a
few units that happen to lie on one line do not show that all do. NaN is an error. The plain
intervals assume independent units: with questions that share their domain they were seen to cover
.6 to .9 instead of .95 (docs/statistics.md). `clusters` gives one that holds for whole clusters
drawn again: the delete-one-cluster jackknife of atanh r with t of G − 1 degrees of freedom, for 8
clusters or more.
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
from emlens.stats.samples import (
    as_paired,
    require_count,
    require_level,
    rows_by_label,
    stratum_rows,
)

Labels = Sequence[object] | np.ndarray
CLUSTERS = 8
"""Clusters from which on the jackknife interval was seen to cover .92 or more (docs/statistics.md).
"""
CONSTANT = 1e-12
"""Spread over magnitude below which float64 sums cannot tell a sample from a constant, or a
correlation from 1.
"""


def pearson(
    x: ArrayLike, y: ArrayLike, *, clusters: Labels | None = None, level: float = 0.95
) -> Estimate:
    """Pearson correlation with Fisher's z interval, or one over clusters.

    Range [-1, 1]; invariant to increasing affine maps of either sample. Fisher's interval is exact
    only near normality. Undefined where a sample is constant.

    Args:
        x, y: one number per unit, in one order.
        clusters: one label per unit (its domain), for an interval over whole clusters; `n` then
            counts them.

    Raises:
        InputError: unequal lengths, fewer than 4 pairs, values that are not finite, clusters that
            do not fit.
    """
    a, b = as_paired(x, y, "x", "y", at_least=4)
    require_level(level)
    n = len(a)
    for name, sample in (("x", a), ("y", b)):
        if _is_constant(sample):
            return Estimate.undefined(f"{name} is constant", n)
    r = _correlation(a, b)
    if clusters is not None:

        def subset_correlation(rows: np.ndarray) -> float:
            return _correlation_or_nan(a[rows], b[rows])

        return _cluster_interval(r, subset_correlation, clusters, n, level, "Pearson")
    return _fisher_interval(r, n, 1 / (n - 3), level, f"Pearson, {100 * level:g} % Fisher z")


def spearman(
    x: ArrayLike, y: ArrayLike, *, clusters: Labels | None = None, level: float = 0.95
) -> Estimate:
    """Spearman rank correlation with an interval on Fisher's z scale, or one over clusters.

    Ties share their mean rank. Range [-1, 1]; invariant to increasing maps of either sample. The
    variance of z is (1 + ρ²/2)/(n − 3) (Bonett & Wright 2000), which holds its coverage at strong
    correlations, where Fieller's 1.06/(n − 3) falls short. Undefined where a sample is constant.

    Args:
        x, y: one number per unit, in one order.
        clusters: one label per unit (its domain), for an interval over whole clusters; `n` then
            counts them.

    Raises:
        InputError: unequal lengths, fewer than 4 pairs, values that are not finite, clusters that
            do not fit.
    """
    a, b = as_paired(x, y, "x", "y", at_least=4)
    require_level(level)
    n = len(a)
    # ranks see any spread at all, so only exact equality is a constant here
    for name, sample in (("x", a), ("y", b)):
        if np.ptp(sample) == 0:
            return Estimate.undefined(f"{name} is constant", n)
    rho = _correlation(scipy_stats.rankdata(a), scipy_stats.rankdata(b))
    if clusters is not None:

        def subset_correlation(rows: np.ndarray) -> float:
            return _correlation_or_nan(scipy_stats.rankdata(a[rows]), scipy_stats.rankdata(b[rows]))

        return _cluster_interval(rho, subset_correlation, clusters, n, level, "Spearman")
    method = f"Spearman, {100 * level:g} % Bonett-Wright"
    return _fisher_interval(rho, n, (1 + rho**2 / 2) / (n - 3), level, method)


def partial_correlation(
    x: ArrayLike,
    y: ArrayLike,
    covariates: ArrayLike,
    *,
    ranks: bool = False,
    clusters: Labels | None = None,
    level: float = 0.95,
) -> Estimate:
    """Correlation of what remains of x and y after linear regression on covariates.

    The regression has an intercept. Range [-1, 1]. The plain interval is Fisher's with n − q − 3
    (Bonett & Wright's variance for ranks). Undefined where the covariates explain x or y
    completely.

    Args:
        x, y: one number per unit, in one order.
        covariates: one column per covariate, shape (n, q) or (n,).
        ranks: use ranks of x, y and covariates (partial Spearman).
        clusters: one label per unit (its domain), for an interval over whole clusters; `n` then
            counts them.

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
    kind = f"partial {_coefficient(ranks)} given {q} covariates"
    if clusters is not None:

        def subset_correlation(rows: np.ndarray) -> float:
            remaining, _ = _partialled(a[rows], b[rows], columns[rows], ranks)
            if remaining is None or rows.sum() < q + 4:
                return math.nan
            return _correlation(*remaining)

        return _cluster_interval(r, subset_correlation, clusters, n, level, kind)
    variance = (1 + r**2 / 2 if ranks else 1.0) / (n - q - 3)
    return _fisher_interval(r, n, variance, level, f"{kind}, {100 * level:g} % Fisher z")


def correlation_null(
    x: ArrayLike,
    y: ArrayLike,
    *,
    ranks: bool = False,
    strata: Labels | None = None,
    covariates: ArrayLike | None = None,
    draws: int = 9999,
    seed: int = 0,
) -> NullDistribution:
    """The correlation of x with shuffled y: no association beyond the strata.

    Args:
        x, y: one number per unit, in one order.
        ranks: use ranks of x, y and covariates.
        strata: one label per unit; y is then shuffled only within a stratum.
        covariates: as `partial_correlation`, whose null this then is: what they leave of y is
            shuffled, and what they explain of that is taken out again (Freedman & Lane 1983).
            Approximate, better the more units there are per covariate.

    Raises:
        InputError: lengths that differ, constant samples, fewer than 4 pairs, strata that do not
            fit, covariates that explain a sample.
    """
    a, b = as_paired(x, y, "x", "y", at_least=4)
    for name, sample in (("x", a), ("y", b)):
        if _is_constant(sample):
            raise InputError(f"{name} is constant, so no correlation exists under any permutation")
    if ranks:
        a, b = scipy_stats.rankdata(a), scipy_stats.rankdata(b)
    a, b = a - a.mean(), b - b.mean()
    basis = np.empty((len(a), 0))
    if covariates is not None:
        columns = _columns(covariates, len(a))
        residuals, why = _partialled(a, b, columns, ranks)
        if residuals is None:
            raise InputError(f"{why}, so no correlation is left to test")
        a, b = residuals
        basis = np.linalg.qr(_design(columns, ranks))[0]
    rng = numpy_rng(seed, "correlation_null")
    groups = stratum_rows(strata, len(a))
    values = np.empty(require_count(draws, "draws"))
    shuffled = b.copy()
    a = a / np.linalg.norm(a)
    for i in range(draws):
        for rows in groups:
            shuffled[rows] = b[rng.permutation(rows)]
        # Shuffled residuals correlate with the covariates again by chance: project that out.
        # It need not be taken out of the numerator, since `a` is orthogonal to the covariates.
        remaining = shuffled - basis @ (basis.T @ shuffled)
        values[i] = a @ shuffled / np.linalg.norm(remaining)
    label = f"{_coefficient(ranks)} under permutation"
    if strata is not None:
        label += " within strata"
    if covariates is not None:
        label += ", covariates partialled out"
    return NullDistribution(values, label, seed)


def _coefficient(ranks: bool) -> str:
    return "Spearman" if ranks else "Pearson"


def _is_constant(sample: np.ndarray, scale: float | None = None) -> bool:
    """Whether the spread is rounding beside `scale` (by default the sample's largest value)."""
    reference = float(np.abs(sample).max()) if scale is None else scale
    return bool(np.ptp(sample) <= CONSTANT * reference)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Cosine of the centred samples; each is scaled to norm 1 first, so that nothing overflows."""
    x, y = x - x.mean(), y - y.mean()
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    # rounding can leave |r| just above 1, where atanh is NaN
    return float(np.clip(x @ y, -1.0, 1.0))


def _correlation_or_nan(x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < 2 or _is_constant(x) or _is_constant(y):
        return math.nan
    return _correlation(x, y)


def _fisher_interval(r: float, n: int, variance: float, level: float, method: str) -> Estimate:
    """Interval by r -> atanh r, symmetric there with the given variance."""
    if 1.0 - abs(r) <= CONSTANT:
        why = f"{method}; every unit lies on one line, so there is no interval"
        return Estimate(r, math.nan, math.nan, n, why)
    half = float(scipy_stats.norm.ppf((1 + level) / 2)) * math.sqrt(variance)
    z = math.atanh(r)
    return Estimate(r, math.tanh(z - half), math.tanh(z + half), n, method)


def _cluster_interval(
    r: float,
    subset_correlation: Callable[[np.ndarray], float],
    clusters: Labels,
    n: int,
    level: float,
    name: str,
) -> Estimate:
    """Interval of a correlation by the jackknife over clusters, on the atanh scale.

    `subset_correlation` gives the correlation of a subset of the rows, from a boolean mask.
    """
    members = rows_by_label(clusters, n, "clusters", "an interval over clusters")
    count = len(members)
    method = f"{name}, {100 * level:g} % jackknife over {count} clusters"
    if count < CLUSTERS:
        method += (
            f"; outside its design range: {count} clusters,"
            f" fewer than the {CLUSTERS} it is made for"
        )
    deleted = np.empty(count)
    for i, cluster in enumerate(members):
        is_retained = np.ones(n, dtype=bool)
        is_retained[cluster] = False
        deleted[i] = subset_correlation(is_retained)
    if not (np.abs(deleted) < 1).all() or 1.0 - abs(r) <= CONSTANT:
        why = f"{method}; perfect or undefined without some cluster, so there is no interval"
        return Estimate(r, math.nan, math.nan, count, why)
    # jackknife variance (G − 1)/G · Σ(z₋ᵢ − mean)²; var() already divides by G
    error = math.sqrt((count - 1) * float(np.arctanh(deleted).var()))
    half = float(scipy_stats.t.ppf((1 + level) / 2, count - 1)) * error
    z = math.atanh(r)
    return Estimate(r, math.tanh(z - half), math.tanh(z + half), count, method)


def _columns(covariates: ArrayLike, n: int) -> np.ndarray:
    """Covariates as (n, q), float64.

    Raises:
        InputError: not one row per unit, or values that are not finite.
    """
    columns = np.asarray(covariates, dtype=np.float64)
    if columns.ndim == 1:
        columns = columns[:, None]
    if columns.ndim != 2 or len(columns) != n:
        raise InputError(
            f"covariates has shape {columns.shape} for {n} units; pass one row per unit"
        )
    if not np.isfinite(columns).all():
        raise InputError("covariates holds values that are NaN or infinite; drop or fix them first")
    return columns


def _design(columns: np.ndarray, ranks: bool) -> np.ndarray:
    """Intercept and covariates (or their ranks), columns of norm 1."""
    if ranks:
        columns = scipy_stats.rankdata(columns, axis=0)
    design = np.column_stack([np.ones(len(columns)), columns - columns.mean(axis=0)])
    # a constant covariate is 0 after centring: divide by the smallest float, not by 0
    lengths = np.maximum(np.linalg.norm(design, axis=0), np.finfo(np.float64).tiny)
    return np.asarray(design / lengths)


def _partialled(
    a: np.ndarray, b: np.ndarray, columns: np.ndarray, ranks: bool
) -> tuple[tuple[np.ndarray, np.ndarray] | None, str]:
    """The residuals of both samples on the covariates, or None and the reason."""
    if ranks:
        a, b = scipy_stats.rankdata(a), scipy_stats.rankdata(b)
    design = _design(columns, ranks)
    residuals = []
    for name, sample in (("x", a), ("y", b)):
        # lstsq takes the minimum-norm solution, so collinear covariates do no harm
        residual = sample - design @ np.linalg.lstsq(design, sample, rcond=None)[0]
        # beside the magnitude of the sample: the residual is rounding if all was explained
        if _is_constant(residual, float(np.abs(sample).max())):
            return None, f"the covariates explain {name} completely"
        residuals.append(residual)
    return (residuals[0], residuals[1]), ""
