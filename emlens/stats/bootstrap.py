"""Bootstrap intervals of means, rates and ratios: over units, clusters, or answers of questions.

The default is bootstrap-t (Efron 1979; Hall 1988): each resample is studentised by its own standard
error, which keeps coverage with few units and skewed values, where percentile and BCa intervals are
too short. Every function returns an `Estimate` whose `n` counts what was resampled and whose
`method` says how the interval was made. `method` also says where the data lie outside the design
range, the range in which coverage was measured (docs/statistics.md). What is undefined (a ratio
over a denominator that may be 0) is an undefined `Estimate`; what cannot be used (NaN, too few
units) is an error. Cost: resamples × units. The arithmetic is in `resamples`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.seeds import numpy_rng
from emlens.stats.intervals import wilson_interval
from emlens.stats.resamples import (
    BootstrapMethod,
    Resamples,
    resample_clusters,
    resample_ratio,
    resample_within_groups,
)
from emlens.stats.samples import (
    as_paired,
    as_sample,
    labels_in_order,
    require_choice,
    require_count,
    require_level,
    rows_by_label,
)

Estimand = Literal["questions like these", "these questions"]
Average = Literal["question", "pooled"]

UNITS = 24
"""Units from which on coverage of a bootstrapped mean was seen to lie in [.92, .98]
(docs/statistics.md).
"""
CLUSTERS = 8
"""The same of clusters, whose means are less skewed than what they hold."""
ANSWERS = 5
"""The same of answers per question, where answers are resampled within questions."""
SKEWNESS = 2.5
"""Sample skewness beyond which the tail that decides the mean is mostly unseen."""

_METHOD_NAMES = {"t": "bootstrap-t", "bca": "bca bootstrap", "percentile": "percentile bootstrap"}


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
    24 units or more, of skewness up to 2.5; outside it `Estimate.method` says so, since the
    interval tends to be too short. Values of 0 and 1 are a proportion, for which bootstrap-t would
    be too long: they get Wilson's score interval, in closed form. Where so few values differ that
    resamples without spread decide an end, the ends are the outer ones of BCa and Student's t.

    Args:
        values: one number per unit.

    Raises:
        InputError: fewer than 2 values, values that are not finite, an impossible level, count or
            method.
    """
    sample = as_sample(values, "values", at_least=2)
    require_method(method)
    require_level(level)
    if method == "t" and _is_binary(sample):
        return _proportion(sample, "units", level)
    rng = numpy_rng(seed, "bootstrap_mean")
    n = len(sample)
    result = resample_ratio(sample, np.ones(n), require_count(resamples, "resamples"), rng)
    how = f"mean, {_percent_and_name(level, method)} over {n} units"
    warning = _outside(n, UNITS, "units", sample)
    return _estimate(result, level, method, n, resamples, how, warning)


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

    `n` is the number of clusters. Design range: 8 clusters or more for bootstrap-t, 24 for the
    others.

    Args:
        values: rows along the first axis; `statistic` receives the resampled rows (with their
            repeats).
        clusters: one label per row (a domain, a question).
        statistic: rows -> number; the mean over all rows where it is None.
        method: None: bootstrap-t of a mean, BCa of any other statistic. Bootstrap-t of any other
            statistic costs `resamples` × clusters evaluations (standard errors by the jackknife
            over clusters).

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
    if not method:
        method = "t" if statistic is None else "bca"
    require_method(method)
    require_level(level)
    members = rows_by_label(clusters, len(rows), "clusters", "a cluster bootstrap")
    rng = numpy_rng(seed, "cluster_bootstrap")
    count = require_count(resamples, "resamples")
    n = len(members)
    how = f"{_percent_and_name(level, method)} over {n} clusters"
    if statistic is None:
        # the mean over all rows is a ratio: cluster sums over cluster sizes
        wide = rows.reshape(len(rows), -1)
        sums = _sums(wide.sum(axis=1), members)
        sizes = _sums(np.full(len(rows), float(wide.shape[1])), members)
        result = resample_ratio(sums, sizes, count, rng)
        how = f"mean, {how}"
    else:
        result = resample_clusters(rows, members, statistic, method, count, rng)
    warning = _outside(n, _least_clusters(method), "clusters")
    return _estimate(result, level, method, n, resamples, how, warning)


def hierarchical_bootstrap(
    values: ArrayLike,
    questions: Sequence[object] | np.ndarray,
    *,
    estimand: Estimand = "questions like these",
    average: Average = "question",
    clusters: Sequence[object] | np.ndarray | None = None,
    level: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Estimate:
    """Mean of answers that belong to questions, with a bootstrap-t interval for a stated estimand.

    `"questions like these"`: the mean over the population that the questions were drawn from. Whole
    questions are resampled with their answers as they are; drawing answers again inside them would
    count their noise twice. `n` is the number of questions, or of clusters of them. `"these
    questions"`: the mean over these very questions had each been answered without end. Questions
    stay, answers are resampled within each; `n` is the number of answers.

    Design range: 24 questions, and a rate of .15 to .85 where answers count as 0 or 1; or 5 answers
    per question.

    Args:
        values: one number per answer (a score; 0 or 1 for a rate).
        questions: one label per answer.
        average: `"question"` weighs questions alike, `"pooled"` answers alike.
        clusters: one label per answer: questions that are resampled together, such as the forms of
            one base question; each question by default.

    Raises:
        InputError: one question (or cluster) only, labels that do not fit, values that are not
            finite, for `"these questions"` a question with a single answer, or an unknown estimand
            or average.
    """
    sample = as_sample(values, "values", at_least=2)
    require_choice(estimand, "estimand", get_args(Estimand))
    require_choice(average, "average", get_args(Average))
    require_level(level)
    members = rows_by_label(questions, len(sample), "questions", "a bootstrap over questions")
    rng = numpy_rng(seed, "hierarchical_bootstrap", estimand)
    count = require_count(resamples, "resamples")
    sums = _sums(sample, members)
    sizes = np.array([float(len(rows)) for rows in members])
    is_pooled = average == "pooled"
    if estimand == "questions like these":
        means = sums / sizes
        tops, bottoms = (sums, sizes) if is_pooled else (means, np.ones(len(sizes)))
        units = "questions"
        if clusters is not None:
            tops, bottoms = _clustered(tops, bottoms, members, clusters, len(sample))
            units = "base questions"
        unit_means = tops / bottoms
        # a proportion where every unit weighs the same
        if _is_binary(unit_means) and np.ptp(bottoms) == 0:
            rate = _proportion(unit_means, units, level)
            return replace(rate, method=f"mean over questions, estimand: {estimand}, {rate.method}")
        result = resample_ratio(tops, bottoms, count, rng)
        n = len(tops)
        warning = _outside(n, UNITS, units, unit_means)
    else:
        if is_pooled:
            weights = sizes / sizes.sum()
        else:
            weights = np.full(len(members), 1 / len(members))
        result = resample_within_groups([sample[rows] for rows in members], weights, count, rng)
        n = len(sample)
        warning = _outside(int(sizes.min()), ANSWERS, "answers to a question")
    averaged = "answers" if is_pooled else "questions"
    how = f"mean over {averaged}, estimand: {estimand}, {_percent_and_name(level, 't')}"
    return _estimate(result, level, "t", n, resamples, how, warning)


def _clustered(
    tops: np.ndarray,
    bottoms: np.ndarray,
    members: Sequence[np.ndarray],
    clusters: Sequence[object] | np.ndarray,
    rows: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Sums and sizes of questions, added up within each cluster.

    Args:
        members: rows of each question. clusters: one label per row.
    """
    labels = labels_in_order(clusters, "clusters")
    if len(labels) != rows:
        raise InputError(f"clusters has {len(labels)} labels for {rows} answers; pass one for each")
    of_questions = [labels[of_question[0]] for of_question in members]
    groups = rows_by_label(of_questions, len(members), "clusters", "a bootstrap over them")
    return _sums(tops, groups), _sums(bottoms, groups)


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
    """Mean(numerator) / mean(denominator) over paired units, with pairs resampled together.

    For restoration: numerator = ablated − fine-tuned, denominator = instruct − fine-tuned, one pair
    per question, clusters = the questions' domains. Undefined where the denominator's interval
    includes 0, unless all its values have one sign. Design range: 24 units, or 8 clusters, or more.

    Args:
        numerator, denominator: one number per unit, in one order.
        clusters: one label per unit; whole clusters of pairs are then resampled.

    Raises:
        InputError: unequal lengths, fewer than 2 units or clusters, values that are not finite.
    """
    top, bottom = as_paired(numerator, denominator, "numerator", "denominator", at_least=2)
    require_method(method)
    require_level(level)
    if clusters is None:
        resampled, least = "units", UNITS
        tops, bottoms, sizes = top, bottom, np.ones(len(top))
    else:
        resampled, least = "clusters", _least_clusters(method)
        members = rows_by_label(clusters, len(top), "clusters", "a cluster bootstrap")
        tops, bottoms = _sums(top, members), _sums(bottom, members)
        sizes = _sums(np.ones(len(top)), members)
    n = len(tops)
    count = require_count(resamples, "resamples")
    if not ((bottom > 0).all() or (bottom < 0).all()):
        below_rng = numpy_rng(seed, "ratio_of_means", "denominator")
        below = resample_ratio(bottoms, sizes, count, below_rng)
        low, high, _ = below.interval(level, method)
        if low <= 0 <= high:
            return Estimate.undefined(
                f"the denominator's {100 * level:g} % interval [{low:.3g}, {high:.3g}] includes 0",
                n,
            )
    result = resample_ratio(tops, bottoms, count, numpy_rng(seed, "ratio_of_means"))
    how = f"ratio of means, {_percent_and_name(level, method)} over {n} {resampled}"
    warning = _outside(n, least, resampled)
    return _estimate(result, level, method, n, resamples, how, warning)


def require_method(method: str) -> None:
    """Raises:
    InputError: not one of the three methods.
    """
    require_choice(method, "method", get_args(BootstrapMethod))


def _estimate(
    result: Resamples,
    level: float,
    method: BootstrapMethod,
    n: int,
    resamples: int,
    how: str,
    warning: str,
) -> Estimate:
    """The value with its interval, and `method` as "how, resamples; notes; design range"."""
    low, high, note = result.interval(level, method)
    return Estimate(result.value, low, high, n, f"{how}, {resamples} resamples{note}{warning}")


def _is_binary(values: np.ndarray) -> bool:
    """Whether the values are 0 and 1, both of them."""
    return bool(np.ptp(values) > 0 and ((values == 0) | (values == 1)).all())


def _proportion(values: np.ndarray, units: str, level: float) -> Estimate:
    n = len(values)
    estimate = wilson_interval(int(values.sum()), n, level=level)
    warning = _outside(n, UNITS, units)
    return replace(estimate, method=f"{100 * level:g} % Wilson over {n} {units} of 0 or 1{warning}")


def _sums(values: np.ndarray, members: Sequence[np.ndarray]) -> np.ndarray:
    """Sum of each cluster, given its row numbers."""
    return np.array([values[rows].sum() for rows in members])


def _percent_and_name(level: float, method: BootstrapMethod) -> str:
    return f"{100 * level:g} % {_METHOD_NAMES[method]}"


def _least_clusters(method: BootstrapMethod) -> int:
    """Clusters from which on a method was seen to cover; studentising needs fewer."""
    if method == "t":
        return CLUSTERS
    return UNITS


def _outside(n: int, least: int, what: str, sample: np.ndarray | None = None) -> str:
    """The warning for `Estimate.method` where the data lie outside the design range."""
    warning = ""
    if n < least:
        warning += f"; outside its design range: {n} {what}, fewer than the {least} it is made for"
    if sample is not None and np.ptp(sample) > 0:
        skewness = float(scipy_stats.skew(sample))
        if abs(skewness) > SKEWNESS:
            warning += (
                f"; outside its design range: skewness {skewness:.1f},"
                f" beyond the {SKEWNESS:g} it is made for"
            )
    return warning
