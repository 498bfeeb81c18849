"""Two models on the same questions: the paired difference of a rate or a mean score, and the
smallest one that could be seen.

Pairing by question takes out that questions differ in how much misalignment they invite, which is
most of the spread. Both are for questions like these. Unscored answers are left out. Refuses models
that were not asked the same questions.
"""

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from emlens.data.misalignment import em_labels
from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.files import one_line
from emlens.foundation.seeds import numpy_rng
from emlens.stats import NullDistribution, bootstrap_mean, cluster_bootstrap
from emlens.stats.outcomes import TestResult

if TYPE_CHECKING:
    from emlens.data.scores import AlignmentScores

_FLIPS = 9999


def compare_models(
    scores: "AlignmentScores",
    a: str,
    b: str,
    metric: str | None = None,
    *,
    aligned_below: float = 30,
    coherent_above: float = 50,
    seed: int = 0,
) -> TestResult:
    """Mean over questions of (a − b): the misalignment rate where `metric` is None, else the mean
    of that metric.

    `p` is two-sided, from exchanging the two models within questions at random (with the +1 rule);
    `effect` is d_z; `estimate` has a bootstrap-t interval over questions, or none where no question
    differs.

    Raises:
        InputError: models asked different questions, fewer than 2 questions that both have scores
            for.
    """
    units = _paired(scores, a, b, metric, aligned_below, coherent_above)
    gaps = units["gap"].to_numpy()
    n, mean = len(gaps), float(gaps.mean())
    what = (
        f"{'misalignment rate' if metric is None else f'mean {metric}'},"
        f" {one_line(a, 60)} − {one_line(b, 60)}, over {n} questions"
    )
    if np.ptp(gaps) == 0:
        nothing = Estimate(
            mean,
            math.nan,
            math.nan,
            n,
            f"{what}: every question differs alike, so there is no interval",
        )
        return TestResult(
            mean,
            1.0 if mean == 0 else math.nan,
            math.nan,
            nothing,
            n,
            f"{what}: no spread to test against",
        )
    found = bootstrap_mean(gaps, seed=seed)
    signs = numpy_rng(seed, "compare_models").choice([-1.0, 1.0], size=(_FLIPS, n))
    p = NullDistribution(
        np.abs(signs @ gaps) / n, "models exchanged within questions", seed
    ).p_value(abs(mean))
    method = f"models exchanged within questions, {_FLIPS} draws, two-sided"
    difference = Estimate(mean, found.low, found.high, n, f"{what}: {found.method}")
    return TestResult(
        mean,
        p,
        mean / float(gaps.std(ddof=1)),
        difference,
        n,
        method,
        effect_name="d_z",
        sizes=(n,),
    )


def minimal_detectable_difference(
    scores: "AlignmentScores",
    a: str,
    b: str,
    metric: str | None = None,
    *,
    questions: int | None = None,
    samples: int | None = None,
    power: float = 0.8,
    alpha: float = 0.05,
    aligned_below: float = 30,
    coherent_above: float = 50,
) -> Estimate:
    """The true difference between two models that a paired t-test over questions finds with
    probability `power`.

    (t₁₋α/₂ + t_power)·√((τ² + ω/m)/Q) on Q − 1 degrees of freedom: τ² is the variance of true
    differences between questions and ω/m what m answers a question add, both estimated from these
    scores. On the metric's scale, or a share for the misalignment rate. The interval resamples
    questions.

    Args:
        questions: Q of the planned experiment; left out, as here.
        samples: m, answers a question and model; left out, as here.

    Raises:
        InputError: as `compare_models`; a question with a single scored answer where `samples` is
            given; a plan of fewer than 2 questions or 1 sample; a power or alpha outside (0, 1).
    """
    for name, share in (("power", power), ("alpha", alpha)):
        if not 0 < share < 1:
            raise InputError(f"{name}={share!r} must lie strictly between 0 and 1")
    if (questions is not None and questions < 2) or (samples is not None and samples < 1):
        raise InputError(
            f"questions={questions!r} must be 2 or more and samples={samples!r} 1 or more"
        )
    units = _paired(scores, a, b, metric, aligned_below, coherent_above)
    if samples is not None and units["noise"].isna().any():
        lone = one_line(str(units["noise"].isna().idxmax()), 60)
        raise InputError(
            f"samples={samples} needs the spread between answers,"
            f" but question {lone!r} has a model with one scored"
        )
    planned = len(units) if questions is None else questions
    reach = float(
        scipy_stats.t.ppf(1 - alpha / 2, planned - 1) + scipy_stats.t.ppf(power, planned - 1)
    )

    def detectable(rows: np.ndarray) -> float:
        variance = rows[:, 0].var(ddof=1)
        # per-answer variance of both models, and what it added to the observed differences
        if samples is not None:
            variance = max(0.0, variance - rows[:, 1].mean()) + rows[:, 2].mean() / samples
        return reach * math.sqrt(variance / planned)

    rows = units[["gap", "noise", "per_answer"]].fillna(0.0).to_numpy()
    value, method = (
        detectable(rows),
        f"power {power:g}, alpha {alpha:g}, {planned} questions"
        + ("" if samples is None else f" of {samples} answers"),
    )
    if np.ptp(rows[:, 0]) == 0 and value == 0:
        return Estimate.undefined(
            "every question differs alike, so the spread is not known", len(units)
        )
    found = cluster_bootstrap(rows, list(range(len(rows))), detectable)
    return Estimate(value, found.low, found.high, len(units), f"{method}; {found.method}")


def _paired(
    scores: "AlignmentScores",
    a: str,
    b: str,
    metric: str | None,
    aligned_below: float,
    coherent_above: float,
) -> pd.DataFrame:
    """By question: gap (a − b), noise (variance that sampling answers adds to it), per_answer (that
    noise times answers).
    """
    sides = []
    for model in (a, b):
        if metric is None:
            labels = em_labels(
                scores, model=model, aligned_below=aligned_below, coherent_above=coherent_above
            )
            values = labels.groupby(level="question", sort=False)
        else:
            values = scores.rows(metric, model).groupby("question", sort=False)["score"]
        sides.append(
            pd.DataFrame(
                {"mean": values.mean(), "variance": values.var(ddof=1), "count": values.count()}
            )
        )
    if set(sides[0].index) != set(sides[1].index):
        alone = sorted(set(sides[0].index) ^ set(sides[1].index))
        raise InputError(
            f"models {one_line(a, 60)!r} and {one_line(b, 60)!r} were asked different questions,"
            f" {one_line(alone[0], 60)!r} only one of them; select the questions both have"
        )
    first, second = sides[0], sides[1].reindex(sides[0].index)
    units = pd.DataFrame(
        {
            "gap": first["mean"] - second["mean"],
            "noise": first["variance"] / first["count"] + second["variance"] / second["count"],
            "per_answer": first["variance"] + second["variance"],
        }
    )
    units = units[units["gap"].notna()]
    if len(units) < 2:
        raise InputError(
            f"{len(units)} questions have scores of both models; a paired comparison needs 2"
        )
    return units
