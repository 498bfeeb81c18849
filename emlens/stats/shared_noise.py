"""A mean over runs that share something random with each other: prompts, or questions.

Seeds of one recipe are measured on the same prompts. What these prompts happen to be moves every
seed by the same amount, so the spread between seeds knows nothing of it, and a t interval over
seeds is too short: where seeds differ by .05 of the spread of the null, it excludes a true null in
29 to 48 of 100 cases with 2 to 5 seeds (docs/evidence/seeds_beside_nulls.json). The draws of the
null do know it. Their variance is therefore added, undivided, to that of the mean over seeds.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.stats.nulls import NullDistribution
from emlens.stats.samples import as_sample, require_level


def mean_beyond_nulls(
    values: ArrayLike, nulls: Sequence[NullDistribution], *, level: float = 0.95
) -> Estimate:
    """Mean over runs of value − mean of the run's null, with an interval for "beyond the null".

    The interval excludes 0 where the mean lies beyond what a single draw of the null reaches, the
    noise between runs added. It is right where runs share all that makes draws differ (the
    prompts), and too wide where they share less. Range of the mean: that of the values.

    Args:
        values: one number per run, at least 2.
        nulls: one per run; the same one where runs share it. Mean, sd and the upper quantile
            (.975) are used; of a null that has moments alone, these.

    Raises:
        InputError: fewer than 2 values, other numbers of nulls, a null of a single draw.
    """
    sample = as_sample(values, "values", at_least=2)
    if len(nulls) != len(sample):
        raise InputError(f"nulls holds {len(nulls)} for {len(sample)} values; pass one for each")
    away = sample - np.array([null.mean for null in nulls])
    # runs may share one null, whose spread is then computed once
    spread_of = {id(null): _spread(null) for null in nulls}
    noise = float(np.mean([spread_of[id(null)] for null in nulls]))
    return mean_with_shared_noise(away, noise, level=level)


def _spread(null: NullDistribution) -> float:
    """How far a further draw of a null may lie from its mean.

    Raises:
        InputError: a null of one draw.
    """
    if not null.n_draws:
        return null.sd
    if null.n_draws < 2:
        raise InputError(f"the null {null.label!r} has one draw; make it with 19 or more")
    return spread_of_one_draw(null.sd, null.quantile(0.975) - null.mean, 0.975, null.n_draws)


def spread_of_one_draw(sd: float, upper: float, q: float, draws: int) -> float:
    """How far a further draw of a null may lie from its mean, as the standard deviation of a
    normal distribution.

    A skewed null reaches further up than its standard deviation says, so its upper quantile counts
    where it is larger. From few draws neither is known well: both are widened to those of Student's
    prediction interval, by a tenth with 19 draws.

    Args:
        upper: quantile `q` of the draws minus their mean.
        draws: how many there are, 2 or more.
    """
    reach = max(sd, upper / float(scipy_stats.norm.ppf(q)))
    student = float(scipy_stats.t.ppf(0.975, draws - 1) / scipy_stats.norm.ppf(0.975))
    return reach * student * math.sqrt(1 + 1 / draws)


def mean_with_shared_noise(values: ArrayLike, noise: float, *, level: float = 0.95) -> Estimate:
    """Mean of runs that all carry one and the same error, of standard deviation `noise`.

    Variance noise² + s²/n; the degrees of freedom are Satterthwaite's (1946), noise counted as
    known. With noise 0 it is Student's t interval.

    Raises:
        InputError: fewer than 2 values, values that are not finite, a negative or missing noise.
    """
    sample = as_sample(values, "values", at_least=2)
    require_level(level)
    if not 0 <= noise < math.inf:
        raise InputError(f"noise={noise} must be 0 or more, and finite")
    n = len(sample)
    value = float(sample.mean())
    between = float(sample.var(ddof=1)) / n
    variance = noise**2 + between
    # Satterthwaite: only the part that was estimated, from n − 1 degrees of freedom, is uncertain
    freedom = math.inf if between == 0 else (n - 1) * (variance / between) ** 2
    half = float(scipy_stats.t.ppf((1 + level) / 2, freedom)) * math.sqrt(variance)
    method = f"mean over {n} runs, {100 * level:g} % interval with the noise they share"
    return Estimate(value, value - half, value + half, n, method)
