"""Intervals: bootstrap over units or clusters, ratios of means, proportions, t, and repeated cross-validation.

Everything returns an `Estimate` whose `n` counts independent units and whose `method` says how the interval was made.
What is undefined (a ratio over a denominator that may be 0) is an undefined `Estimate`, what cannot be used (NaN, too
few units) is an error. Cost: resamples × one evaluation. Every bootstrap is too short with few units or
clusters (below about 20): it knows no values but those that came.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.seeds import numpy_rng
from emlens.stats.samples import as_paired, as_sample, require_count, require_level

BootstrapMethod = Literal["percentile", "bca"]

_CHUNK = 2**22  # index entries held at once while resampling means


def _percent(level: float) -> str:
    return f"{100 * level:g} %"


def _bootstrap_ends(
    observed: float, replicates: np.ndarray, jackknife: np.ndarray | None, level: float
) -> tuple[float, float]:
    """Percentile ends of `replicates`; with `jackknife` values the BCa ends (Efron 1987)."""
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if jackknife is not None and np.ptp(replicates) > 0:
        below = np.mean(replicates < observed) + np.mean(replicates == observed) / 2
        bias = scipy_stats.norm.ppf(np.clip(below, 1 / (2 * len(replicates)), 1 - 1 / (2 * len(replicates))))
        spread = jackknife.mean() - jackknife
        scale = float((spread**2).sum()) ** 1.5
        acceleration = float((spread**3).sum()) / (6 * scale) if scale > 0 else 0.0
        shifted = bias + scipy_stats.norm.ppf(tails)
        tails = scipy_stats.norm.cdf(bias + shifted / (1 - acceleration * shifted))
    low, high = np.quantile(replicates, tails)
    return float(low), float(high)


def _require_method(method: str) -> None:
    if method not in ("percentile", "bca"):
        raise InputError(f"method={method!r} is unknown; pass 'percentile' or 'bca'")


def _resampled_means(columns: np.ndarray, weights: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Weighted column means over resampled rows: `columns` (unit, c) are sums, `weights` (unit,) their counts."""
    n = len(columns)
    out = np.empty((resamples, columns.shape[1]))
    step = max(1, _CHUNK // n)
    for start in range(0, resamples, step):
        rows = rng.integers(n, size=(min(step, resamples - start), n))
        out[start : start + len(rows)] = columns[rows].sum(axis=1) / weights[rows].sum(axis=1)[:, None]
    return out


def bootstrap_mean(
    values: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 9999,
    method: BootstrapMethod = "bca",
    seed: int = 0,
) -> Estimate:
    """Mean of independent units with a bootstrap interval.

    Invariance: shifting and scaling the values shifts and scales value and interval. Design range: 20 units or more;
    below that the interval is too short.

    Raises:
        InputError: fewer than 2 values, values that are not finite, an impossible level, count or method.
    """
    sample = as_sample(values, "values", at_least=2)
    _require_method(method)
    require_level(level)
    n = len(sample)
    rng = numpy_rng(seed, "bootstrap_mean")
    means = _resampled_means(sample[:, None], np.ones(n), require_count(resamples, "resamples"), rng)[:, 0]
    jackknife = (sample.sum() - sample) / (n - 1) if method == "bca" else None
    value = float(sample.mean())
    low, high = _bootstrap_ends(value, means, jackknife, level)
    return Estimate(value, low, high, n, f"mean, {_percent(level)} {method} bootstrap, {resamples} resamples")


def _cluster_rows(clusters: Sequence[object] | np.ndarray, n: int) -> list[np.ndarray]:
    labels = list(clusters)
    if len(labels) != n:
        raise InputError(f"clusters has {len(labels)} labels for {n} rows; pass one label a row")
    rows: dict[object, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    if len(rows) < 2:
        raise InputError("clusters names 1 cluster; a cluster bootstrap needs at least 2")
    return [np.array(members) for members in rows.values()]


def cluster_bootstrap(
    values: ArrayLike,
    clusters: Sequence[object] | np.ndarray,
    statistic: Callable[[np.ndarray], float] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 1999,
    method: BootstrapMethod = "percentile",
    seed: int = 0,
) -> Estimate:
    """A statistic of rows that come in clusters, with whole clusters resampled.

    Args:
        values: rows along the first axis; `statistic` receives the resampled rows (with their repeats).
        clusters: one label a row (a domain, a question).
        statistic: rows -> number; the mean over all rows where it is None.

    `n` is the number of clusters. BCa uses the delete-one-cluster jackknife.

    Raises:
        InputError: one cluster only, labels that do not fit the rows, values or a statistic that are not finite.
    """
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim == 0 or not np.isfinite(rows).all():
        raise InputError(f"values of shape {rows.shape} must be rows of finite numbers; drop or fix the others first")
    _require_method(method)
    require_level(level)
    members = _cluster_rows(clusters, len(rows))
    compute = statistic or (lambda part: float(part.mean()))
    rng = numpy_rng(seed, "cluster_bootstrap")
    n = len(members)
    replicates = np.empty(require_count(resamples, "resamples"))
    for i in range(resamples):
        replicates[i] = compute(rows[np.concatenate([members[c] for c in rng.integers(n, size=n)])])
    value = float(compute(rows))
    jackknife = None
    if method == "bca":
        jackknife = np.array([compute(rows[np.concatenate(members[:c] + members[c + 1 :])]) for c in range(n)])
    if not np.isfinite(replicates).all() or not np.isfinite(value):
        raise InputError(
            "statistic is not finite on some resample of clusters; pass one that is defined on every resample"
        )
    low, high = _bootstrap_ends(value, replicates, jackknife, level)
    return Estimate(
        value, low, high, n, f"{_percent(level)} {method} bootstrap over {n} clusters, {resamples} resamples"
    )


def ratio_of_means(
    numerator: ArrayLike,
    denominator: ArrayLike,
    clusters: Sequence[object] | np.ndarray | None = None,
    *,
    level: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Estimate:
    """Mean(numerator) / mean(denominator) over paired units, percentile interval with pairs resampled together.

    For restoration: numerator = ablated − fine-tuned, denominator = instruct − fine-tuned, one pair a question,
    clusters = the questions' domains. Undefined where the denominator's own bootstrap interval includes 0.

    Raises:
        InputError: unequal lengths, fewer than 2 units or clusters, values that are not finite.
    """
    top, bottom = as_paired(numerator, denominator, "numerator", "denominator", at_least=2)
    require_level(level)
    pairs = np.stack([top, bottom], axis=1)
    members = [np.array([i]) for i in range(len(pairs))] if clusters is None else _cluster_rows(clusters, len(pairs))
    sums = np.stack([pairs[rows].sum(axis=0) for rows in members])
    counts = np.array([float(len(rows)) for rows in members])
    rng = numpy_rng(seed, "ratio_of_means")
    means = _resampled_means(sums, counts, require_count(resamples, "resamples"), rng)
    n = len(members)
    over = "units" if clusters is None else "clusters"
    low, high = _bootstrap_ends(float(bottom.mean()), means[:, 1], None, level)
    if low <= 0 <= high:
        return Estimate.undefined(f"the denominator's {_percent(level)} interval [{low:.3g}, {high:.3g}] includes 0", n)
    value = float(top.mean() / bottom.mean())
    kept = means[:, 1] != 0
    ends = _bootstrap_ends(value, means[kept, 0] / means[kept, 1], None, level)
    return Estimate(
        value,
        *ends,
        n,
        f"ratio of means, {_percent(level)} percentile bootstrap over {n} {over}, {resamples} resamples",
    )


def wilson_interval(successes: int, n: int, *, level: float = 0.95) -> Estimate:
    """A proportion of independent trials with Wilson's score interval; range [0, 1].

    Raises:
        InputError: no trial, or successes outside 0 to n.
    """
    require_count(n, "n")
    if isinstance(successes, bool) or successes != int(successes) or not 0 <= successes <= n:
        raise InputError(f"successes={successes!r} must be an integer from 0 to n={n}")
    interval = scipy_stats.binomtest(int(successes), n).proportion_ci(require_level(level), method="wilson")
    return Estimate(
        successes / n, float(interval.low), float(interval.high), n, f"proportion, {_percent(level)} Wilson"
    )


def t_interval(values: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Mean of independent units with Student's t interval.

    Raises:
        InputError: fewer than 2 values, or values that are not finite.
    """
    sample = as_sample(values, "values", at_least=2)
    return _t_estimate(sample, 1 / len(sample), level, "mean, {} t interval")


def nadeau_bengio_interval(scores: ArrayLike, test_to_train: float, *, level: float = 0.95) -> Estimate:
    """Mean of the scores of repeated cross-validation with the corrected resampled t interval.

    The variance of the mean of J scores is s²·(1/J + n_test/n_train), which allows for the overlap of training sets
    (Nadeau & Bengio 2003); `n` is J. With `test_to_train` = 0 it is the ordinary t interval.

    Args:
        scores: one score a fold and repetition.
        test_to_train: n_test / n_train; 1/(K−1) for K folds.

    Raises:
        InputError: fewer than 2 scores, scores that are not finite, a negative ratio.
    """
    sample = as_sample(scores, "scores", at_least=2)
    if not (np.isfinite(test_to_train) and test_to_train >= 0):
        raise InputError(
            f"test_to_train={test_to_train!r} must be 0 or more; pass n_test / n_train, 1/(K-1) for K folds"
        )
    return _t_estimate(
        sample, 1 / len(sample) + test_to_train, level, "mean over folds, {} Nadeau-Bengio corrected t interval"
    )


def _t_estimate(sample: np.ndarray, factor: float, level: float, method: str) -> Estimate:
    half = float(
        scipy_stats.t.ppf((1 + require_level(level)) / 2, len(sample) - 1) * np.sqrt(sample.var(ddof=1) * factor)
    )
    mean = float(sample.mean())
    return Estimate(mean, mean - half, mean + half, len(sample), method.format(_percent(level)))
