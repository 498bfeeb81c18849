"""Bootstrap intervals of means, rates and ratios, over independent units, clusters, or answers
within questions.

The default is bootstrap-t (Efron 1979; Hall 1988): each resample is studentised by its own standard
error, which keeps coverage with few units and skewed values, where percentile and BCa intervals are
too short. Everything returns an `Estimate` whose `n` counts what was resampled and whose `method`
says how the interval was made, and says so where the data lie outside the design range, in which
coverage was measured (docs/statistics.md). What is undefined (a ratio over a denominator that may
be 0) is an undefined `Estimate`; what cannot be used (NaN, too few units) is an error. Cost:
resamples × units.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.seeds import numpy_rng
from emlens.stats.intervals import wilson_interval
from emlens.stats.samples import as_paired, as_sample, require_count, require_level, rows_by_label

BootstrapMethod = Literal["t", "bca", "percentile"]
Estimand = Literal["questions like these", "these questions"]

UNITS = 24
"""Units from which on coverage of a bootstrapped mean was seen to lie in [.92, .98]
(docs/statistics.md).
"""
CLUSTERS = 8
"""The same of clusters, whose means are less skewed than what they hold."""
SKEWNESS = 2.5
"""Sample skewness beyond which the tail that decides the mean is mostly unseen."""

_CHUNK = 2**16  # index entries held at once while resampling: they stay in cache
_NONE = np.empty(0)
_ROUNDING = 1e-12  # relative: spread below it is that of float64 sums
_FLAT = 1e-6  # of the sample's error: what sums of squares leave of a resample without spread


@dataclass(frozen=True)
class _Resampled:
    """A statistic with its standard error, in the sample and in each resample (where that was asked
    for), and delete-one values.
    """

    value: float
    error: float
    values: np.ndarray
    errors: np.ndarray
    jackknife: np.ndarray
    freedom: int

    def ends(self, level: float, method: BootstrapMethod) -> tuple[float, float, str]:
        """Both ends, and what must be said about them."""
        if self.error == 0:
            return self.value, self.value, "; no spread, so the interval says nothing"
        tails = np.array([(1 - level) / 2, (1 + level) / 2])
        if method == "percentile":
            low, high = np.quantile(self.values, tails)
        elif method == "bca":
            low, high = self._bca(tails)
        else:
            low, high = self._studentised(tails)
            if not (math.isfinite(low) and math.isfinite(high)):
                student = self.value + self.error * scipy_stats.t.ppf(tails, self.freedom)
                bca = self._bca(tails)
                low, high = min(student[0], bca[0]), max(student[1], bca[1])
                note = (
                    "; too few distinct values for bootstrap-t:"
                    " the outer ends of BCa and Student's t"
                )
                return float(low), float(high), note
        return float(low), float(high), ""

    def _bca(self, tails: np.ndarray) -> np.ndarray:
        n, near = len(self.values), np.abs(self.values - self.value) <= _ROUNDING * self.error
        below = np.mean((self.values < self.value) & ~near) + np.mean(near) / 2
        bias = scipy_stats.norm.ppf(np.clip(below, 1 / (2 * n), 1 - 1 / (2 * n)))
        spread = self.jackknife.mean() - self.jackknife if len(self.jackknife) else np.zeros(1)
        scale = float((spread**2).sum()) ** 1.5
        acceleration = float((spread**3).sum()) / (6 * scale) if scale > 0 else 0.0
        shifted = bias + scipy_stats.norm.ppf(tails)
        return np.asarray(
            np.quantile(
                self.values, scipy_stats.norm.cdf(bias + shifted / (1 - acceleration * shifted))
            )
        )

    def _studentised(self, tails: np.ndarray) -> np.ndarray:
        gaps, flat = self.values - self.value, self.errors <= _FLAT * self.error
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(flat, np.sign(gaps) * np.inf, gaps / self.errors)
        t = np.where(flat & (np.abs(gaps) <= _FLAT * self.error), 0.0, t)
        upper, lower = np.quantile(t, tails, method="inverted_cdf")[::-1]
        return np.array([self.value - upper * self.error, self.value - lower * self.error])


def _ratio_resampled(
    top: np.ndarray, bottom: np.ndarray, resamples: int, rng: np.random.Generator
) -> _Resampled:
    """Σtop / Σbottom with rows resampled together; a mean where `bottom` is 1. Errors by
    linearisation (delta method).
    """
    n, total = len(top), bottom.sum()
    value = float(top.sum() / total)
    rest = top - value * bottom
    scale = np.abs(top).max() + abs(value) * np.abs(bottom).max()
    if np.abs(rest).max() <= _ROUNDING * scale:
        return _Resampled(value, 0.0, _NONE, _NONE, _NONE, n - 1)
    values, errors = np.empty(resamples), np.empty(resamples)
    step, even = max(1, _CHUNK // n), bool(np.ptp(bottom) == 0)
    for start in range(0, resamples, step):
        rows = rng.integers(n, size=(min(step, resamples - start), n))
        left = rest[rows]
        gained, squares = left.sum(axis=1), np.einsum("ij,ij->i", left, left)
        if even:
            sums, cross, floors = total, bottom[0] * gained, bottom[0] * total
        else:
            below = bottom[rows]
            sums, cross, floors = (
                below.sum(axis=1),
                np.einsum("ij,ij->i", left, below),
                np.einsum("ij,ij->i", below, below),
            )
        with np.errstate(divide="ignore", invalid="ignore"):
            gaps = gained / sums
            spread = np.sqrt(
                np.maximum(squares - 2 * gaps * cross + gaps**2 * floors, 0) * n / (n - 1)
            ) / np.abs(sums)
        values[start : start + len(rows)], errors[start : start + len(rows)] = value + gaps, spread
    usable = np.isfinite(values) & np.isfinite(errors)
    error = math.sqrt(float(rest @ rest) * n / (n - 1)) / abs(total)
    with np.errstate(divide="ignore", invalid="ignore"):
        jackknife = (top.sum() - top) / (total - bottom)
    jackknife = jackknife if np.isfinite(jackknife).all() else _NONE
    return _Resampled(value, error, values[usable], errors[usable], jackknife, n - 1)


def _statistic_resampled(
    rows: np.ndarray,
    members: Sequence[np.ndarray],
    compute: Callable[[np.ndarray], float],
    method: BootstrapMethod,
    resamples: int,
    rng: np.random.Generator,
) -> _Resampled:
    """Any statistic with whole clusters resampled; standard errors by the delete-one-cluster
    jackknife.
    """
    n = len(members)

    def without_one(parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.array(
            [compute(rows[np.concatenate([*parts[:c], *parts[c + 1 :]])]) for c in range(n)]
        )

    def error_of(deleted: np.ndarray) -> float:
        return math.sqrt((n - 1) * float(deleted.var()))

    values, errors = np.empty(resamples), np.zeros(resamples)
    for i in range(resamples):
        parts = [members[c] for c in rng.integers(n, size=n)]
        values[i] = compute(rows[np.concatenate(parts)])
        if method == "t":
            errors[i] = error_of(without_one(parts))
    value = float(compute(rows))
    jackknife = _NONE if method == "percentile" else without_one(members)
    if not all(np.isfinite(part).all() for part in (value, values, errors, jackknife)):
        raise InputError(
            "statistic is not finite on some resample of clusters;"
            " pass one that is defined on every resample"
        )
    error = error_of(jackknife) if len(jackknife) else float(values.std())
    if error <= _ROUNDING * max(abs(value), float(np.abs(values).max())):
        error = 0.0
    return _Resampled(value, error, values, errors, jackknife, n - 1)


def bootstrap_mean(
    values: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 9999,
    method: BootstrapMethod = "t",
    seed: int = 0,
) -> Estimate:
    """Mean of independent units with a bootstrap interval.

    Invariance: shifting and scaling the values shifts and scales value and interval. Design range:
    24 units or more of skewness up to 2.5; outside it `Estimate.method` says so, since the interval
    tends to be too short. Values of 0 and 1 are a proportion, and bootstrap-t of them would be too
    long: they get Wilson's score interval, in closed form. Where so few values differ that
    resamples without spread decide an end, the ends are the outer ones of BCa and Student's t.

    Raises:
        InputError: fewer than 2 values, values that are not finite, an impossible level, count or
            method.
    """
    sample = as_sample(values, "values", at_least=2)
    require_method(method)
    require_level(level)
    if method == "t" and _zeros_and_ones(sample):
        return _proportion(sample, "units", level)
    rng = numpy_rng(seed, "bootstrap_mean")
    found = _ratio_resampled(
        sample, np.ones(len(sample)), require_count(resamples, "resamples"), rng
    )
    low, high, note = found.ends(level, method)
    said = f"mean, {_how(level, method)} over {len(sample)} units, {resamples} resamples{note}"
    return Estimate(
        found.value, low, high, len(sample), said + _outside(len(sample), UNITS, "units", sample)
    )


def cluster_bootstrap(
    values: ArrayLike,
    clusters: Sequence[object] | np.ndarray,
    statistic: Callable[[np.ndarray], float] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 1999,
    method: BootstrapMethod | None = None,
    seed: int = 0,
) -> Estimate:
    """A statistic of rows that come in clusters, with whole clusters resampled.

    Args:
        values: rows along the first axis; `statistic` receives the resampled rows (with their
            repeats).
        clusters: one label a row (a domain, a question).
        statistic: rows -> number; the mean over all rows where it is None.
        method: None: bootstrap-t of a mean, BCa of any other statistic, whose bootstrap-t costs
            `resamples` × clusters evaluations (standard errors by the jackknife over clusters).

    `n` is the number of clusters. Design range: 8 clusters or more for bootstrap-t, 24 for the
    others.

    Raises:
        InputError: one cluster only, labels that do not fit the rows, values or a statistic that
            are not finite.
    """
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim == 0 or not np.isfinite(rows).all():
        raise InputError(
            f"values of shape {rows.shape} must be rows of finite numbers;"
            " drop or fix the others first"
        )
    chosen = method or ("t" if statistic is None else "bca")
    require_method(chosen)
    require_level(level)
    members = rows_by_label(clusters, len(rows), "clusters", "a cluster bootstrap")
    rng, count = numpy_rng(seed, "cluster_bootstrap"), require_count(resamples, "resamples")
    if statistic is None:
        wide = rows.reshape(len(rows), -1)
        sums, sizes = (
            _sums(wide.sum(axis=1), members),
            _sums(np.full(len(rows), float(wide.shape[1])), members),
        )
        found = _ratio_resampled(sums, sizes, count, rng)
    else:
        found = _statistic_resampled(rows, members, statistic, chosen, count, rng)
    low, high, note = found.ends(level, chosen)
    n, name = len(members), "mean, " if statistic is None else ""
    outside = _outside(n, CLUSTERS if chosen == "t" else UNITS, "clusters")
    return Estimate(
        found.value,
        low,
        high,
        n,
        f"{name}{_how(level, chosen)} over {n} clusters, {resamples} resamples{note}{outside}",
    )


def hierarchical_bootstrap(
    values: ArrayLike,
    questions: Sequence[object] | np.ndarray,
    *,
    estimand: Estimand = "questions like these",
    average: Literal["question", "pooled"] = "question",
    level: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Estimate:
    """Mean of answers that belong to questions, with an interval for a stated estimand; bootstrap-t
    at both levels.

    `"questions like these"`: the mean over the population that the questions were drawn from. Whole
    questions are resampled with their answers as they came; drawing answers again inside them would
    count their noise twice. `n` is the number of questions. `"these questions"`: the mean over
    these very questions had each been answered without end. Questions stay, answers are resampled
    within each; `n` is the number of answers.

    Args:
        values: one number an answer (a score; 0 or 1 for a rate).
        questions: one label an answer.
        average: `"question"` weighs questions alike, `"pooled"` answers alike.

    Design range: 24 questions, and a rate of .15 to .85 where answers count as 0 or 1; or 5 answers
    a question.

    Raises:
        InputError: one question only, labels that do not fit, values that are not finite, for
            `"these questions"` a question with a single answer, or an unknown estimand or average.
    """
    sample = as_sample(values, "values", at_least=2)
    for name, value, known in (
        ("estimand", estimand, Estimand),
        ("average", average, Literal["question", "pooled"]),
    ):
        if value not in get_args(known):
            raise InputError(
                f"{name}={value!r} is unknown; pass one of {', '.join(map(repr, get_args(known)))}"
            )
    require_level(level)
    members = rows_by_label(questions, len(sample), "questions", "a bootstrap over questions")
    rng, count = (
        numpy_rng(seed, "hierarchical_bootstrap", estimand),
        require_count(resamples, "resamples"),
    )
    sums, sizes = _sums(sample, members), np.array([float(len(rows)) for rows in members])
    if estimand == "questions like these":
        if _zeros_and_ones(sums / sizes) and (average == "question" or np.ptp(sizes) == 0):
            found_rate = _proportion(sums / sizes, "questions", level)
            return replace(
                found_rate, method=f"mean over questions, estimand: {estimand}, {found_rate.method}"
            )
        pooled = average == "pooled"
        found = _ratio_resampled(
            sums if pooled else sums / sizes, sizes if pooled else np.ones(len(sizes)), count, rng
        )
        n, outside = len(members), _outside(len(members), UNITS, "questions", sums / sizes)
    else:
        weights = (
            sizes / sizes.sum() if average == "pooled" else np.full(len(members), 1 / len(members))
        )
        found = _within_resampled([sample[rows] for rows in members], weights, count, rng)
        n, outside = len(sample), _outside(int(sizes.min()), 5, "answers to a question")
    low, high, note = found.ends(level, "t")
    what = f"mean over {'answers' if average == 'pooled' else 'questions'}, estimand: {estimand}"
    return Estimate(
        found.value,
        low,
        high,
        n,
        f"{what}, {_how(level, 't')}, {resamples} resamples{note}{outside}",
    )


def _within_resampled(
    groups: Sequence[np.ndarray], weights: np.ndarray, resamples: int, rng: np.random.Generator
) -> _Resampled:
    """Σ weight · mean of each group, with rows resampled within groups only."""
    short = min(len(group) for group in groups)
    if short < 2:
        raise InputError(
            "a question has 1 answer, which shows no spread within it;"
            " pass at least 2 each, or estimand='questions like these'"
        )
    values, variances = np.zeros(resamples), np.zeros(resamples)
    value = variance = 0.0
    for group, weight in zip(groups, weights, strict=True):
        n, mean = len(group), group.mean()
        rest = group - mean
        drawn = rest[rng.integers(n, size=(resamples, n))]
        values += weight * drawn.mean(axis=1)
        variances += weight**2 * drawn.var(axis=1, ddof=1) / n
        value += weight * mean
        variance += weight**2 * float(rest @ rest) / (n - 1) / n
    freedom = sum(len(group) - 1 for group in groups)
    return _Resampled(
        float(value), math.sqrt(variance), value + values, np.sqrt(variances), _NONE, freedom
    )


def ratio_of_means(
    numerator: ArrayLike,
    denominator: ArrayLike,
    clusters: Sequence[object] | np.ndarray | None = None,
    *,
    level: float = 0.95,
    resamples: int = 9999,
    method: BootstrapMethod = "t",
    seed: int = 0,
) -> Estimate:
    """Mean(numerator) / mean(denominator) over paired units, with pairs, or whole clusters of
    pairs, resampled together.

    For restoration: numerator = ablated − fine-tuned, denominator = instruct − fine-tuned, one pair
    a question, clusters = the questions' domains. Undefined where the denominator's own interval
    includes 0, unless all its values have one sign. Design range: 24 units, or 8 clusters, or more.

    Raises:
        InputError: unequal lengths, fewer than 2 units or clusters, values that are not finite.
    """
    top, bottom = as_paired(numerator, denominator, "numerator", "denominator", at_least=2)
    require_method(method)
    require_level(level)
    over, least = (
        ("units", UNITS) if clusters is None else ("clusters", CLUSTERS if method == "t" else UNITS)
    )
    members = (
        None
        if clusters is None
        else rows_by_label(clusters, len(top), "clusters", "a cluster bootstrap")
    )
    sums, floors, sizes = (
        part if members is None else _sums(part, members)
        for part in (top, bottom, np.ones(len(top)))
    )
    n, count = len(sums), require_count(resamples, "resamples")
    if not ((bottom > 0).all() or (bottom < 0).all()):
        low, high, _ = _ratio_resampled(
            floors, sizes, count, numpy_rng(seed, "ratio_of_means", "denominator")
        ).ends(level, method)
        if low <= 0 <= high:
            return Estimate.undefined(
                f"the denominator's {100 * level:g} % interval [{low:.3g}, {high:.3g}] includes 0",
                n,
            )
    found = _ratio_resampled(sums, floors, count, numpy_rng(seed, "ratio_of_means"))
    low, high, note = found.ends(level, method)
    outside = _outside(n, least, over)
    return Estimate(
        found.value,
        low,
        high,
        n,
        f"ratio of means, {_how(level, method)} over {n} {over},"
        f" {resamples} resamples{note}{outside}",
    )


def require_method(method: str) -> None:
    if method not in get_args(BootstrapMethod):
        raise InputError(
            f"method={method!r} is unknown;"
            f" pass one of {', '.join(map(repr, get_args(BootstrapMethod)))}"
        )


def _zeros_and_ones(values: np.ndarray) -> bool:
    return bool(np.ptp(values) > 0 and ((values == 0) | (values == 1)).all())


def _proportion(values: np.ndarray, units: str, level: float) -> Estimate:
    found = wilson_interval(int(values.sum()), len(values), level=level)
    return replace(
        found,
        method=(
            f"{100 * level:g} % Wilson over {len(values)} {units} of 0 or"
            f" 1{_outside(len(values), UNITS, units)}"
        ),
    )


def _sums(values: np.ndarray, members: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([values[rows].sum() for rows in members])


def _how(level: float, method: BootstrapMethod) -> str:
    name = {"t": "bootstrap-t", "bca": "bca bootstrap", "percentile": "percentile bootstrap"}[
        method
    ]
    return f"{100 * level:g} % {name}"


def _outside(n: int, least: int, what: str, sample: np.ndarray | None = None) -> str:
    """What to say where the data lie outside the design range."""
    said = [f"{n} {what}, fewer than the {least} it is made for"] if n < least else []
    if sample is not None and np.ptp(sample) > 0:
        skewness = float(scipy_stats.skew(sample))
        if abs(skewness) > SKEWNESS:
            said.append(f"skewness {skewness:.1f}, beyond the {SKEWNESS:g} it is made for")
    return "".join(f"; outside its design range: {words}" for words in said)
