"""How often does each interval that a report prints hold the truth? Cells, design ranges and goals
stand here, before the run.

Exact intervals, on the data they are exact for, are to cover 95 ± 1.5 % (two one-sided tests: 90 ±
1.5 %); all others 92 to 98 % inside the design range that their docstring states (chosen on short
runs with other seeds). Cells outside it are shown; they need not pass. Scores are
simulated as the organism's come out: U-shaped after harmful fine-tuning, close to the ceiling
before, alike within domains.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats as scipy_stats

from benchmarks.records import EVIDENCE, record, show
from emlens.activations import Activations
from emlens.foundation.estimate import Estimate
from emlens.foundation.seeds import numpy_rng
from emlens.probes import Baselines, Design, cross_validate_forecast
from emlens.stats import (
    bootstrap_mean,
    cluster_bootstrap,
    cohens_d_interval,
    cosine_of_means,
    f_test,
    hierarchical_bootstrap,
    nadeau_bengio_interval,
    partial_correlation,
    pearson,
    rank_sum_test,
    ratio_of_means,
    signed_rank_test,
    spearman,
    t_interval,
    tost,
    welch_test,
    wilson_interval,
)
from emlens.stats.effects import rank_biserial
from emlens.stats.spread import brown_forsythe

Rng = np.random.Generator
EXACT, TOST, RESAMPLED = (0.935, 0.965), (0.885, 0.915), (0.92, 0.98)
RESAMPLES = 1999
_DESIGN = Design(folds=5, inner_folds=3, repeats=1, permutations=0)


@dataclass(frozen=True)
class Cell:
    """One interval on one kind of data.

    Args:
        interval: function, as a report or a user calls it.
        data: what it is given, in words.
        inside: within the stated design range, so that `goal` applies.
        draw: one simulated data set to its interval.
        truth: what the interval is for; a function of all draws where only they tell (a forecast's
            own R²).
        weight: simulations of this cell over those of the others.
    """

    interval: str
    data: str
    goal: tuple[float, float]
    inside: bool
    draw: Callable[[Rng], Estimate]
    truth: float
    weight: float = 1.0


@dataclass
class Tally:
    held: list[bool] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)
    missing: int = 0

    def add(self, found: Estimate, truth: float) -> None:
        if np.isnan(found.low) or np.isnan(found.high):
            self.missing += 1
            return
        self.held.append(found.low <= truth <= found.high)
        self.widths.append(found.high - found.low)


def measured(cell: Cell, simulations: int, seed: int) -> dict[str, Any]:
    rng, tally = numpy_rng(seed, "interval coverage", cell.interval, cell.data), Tally()
    for _ in range(max(2, round(simulations * cell.weight))):
        tally.add(cell.draw(rng), cell.truth)
    return row_of(cell.interval, cell.data, cell.goal, cell.inside, tally)


def row_of(
    interval: str, data: str, goal: tuple[float, float], inside: bool, tally: Tally
) -> dict[str, Any]:
    n, share = len(tally.held), float(np.mean(tally.held)) if tally.held else float("nan")
    return {
        "interval": interval,
        "data": data,
        "design_range": "inside" if inside else "outside",
        "goal": list(goal) if inside else None,
        "coverage": share,
        "mc_error": float(np.sqrt(share * (1 - share) / n)) if n else float("nan"),
        "median_width": float(np.median(tally.widths)) if n else float("nan"),
        "simulations": n,
        "no_interval": tally.missing,
        "reached": bool(goal[0] <= share <= goal[1]) if inside else None,
    }


# Scores on 0 to 100 and their population means.


def harmful(rng: Rng, n: int) -> np.ndarray:
    """U-shaped: alignment of questions after harmful fine-tuning."""
    return 100 * rng.beta(0.5, 0.6, size=n)


def ceiling(rng: Rng, n: int) -> np.ndarray:
    """Close to 100 with a rare low question: alignment of an instruct model; skewness of
    about −4.
    """
    return 100 / (1 + np.exp(-rng.normal(5.0, 1.5, size=n)))


def expected(draw: Callable[[Rng, int], np.ndarray]) -> float:
    return float(draw(np.random.default_rng(0), 1_000_000).mean())


def by_domain(
    rng: Rng, domains: int, size: int, share: float, means: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores whose latent value has the part `share` of its variance between domains; the labels.
    Mean 50 over all domains.
    """
    between = rng.normal(size=domains) if means is None else means
    latent = np.repeat(between * np.sqrt(share), size) + rng.normal(size=domains * size) * np.sqrt(
        1 - share
    )
    return 100 * scipy_stats.norm.cdf(latent), np.repeat(np.arange(domains), size)


def lost_and_restored(
    rng: Rng, domains: int, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Restored and lost alignment by question, alike within domains; restoration is .35 where all
    are pooled.
    """
    lost, labels = by_domain(rng, domains, size, 0.4)
    share = (
        0.35
        + np.repeat(rng.normal(size=domains), size) * 0.15
        + rng.normal(size=domains * size) * 0.25
    )
    return lost * share, lost, labels


def pair(rng: Rng, n: int, rho: float) -> tuple[np.ndarray, np.ndarray]:
    x = rng.normal(size=n)
    return x, rho * x + np.sqrt(1 - rho**2) * rng.normal(size=n)


def clustered_pair(rng: Rng, domains: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normal pairs correlated .5 within domains and .5 between them, with .4 of each variance
    between.
    """
    between, within = pair(rng, domains, 0.5), pair(rng, domains * size, 0.5)
    x, y = (
        np.repeat(b, size) * np.sqrt(0.4) + w * np.sqrt(0.6)
        for b, w in zip(between, within, strict=True)
    )
    return x, y, np.repeat(np.arange(domains), size)


def ranked(rho: float) -> float:
    """Spearman's correlation of a bivariate normal pair."""
    return float(6 / np.pi * np.arcsin(rho / 2))


def rates(rng: Rng, questions: int, answers: int, mean: float) -> tuple[np.ndarray, np.ndarray]:
    """Answers that are misaligned or not; questions differ, as a beta distribution of concentration
    2.
    """
    p = rng.beta(2 * mean, 2 * (1 - mean), size=questions)
    return (rng.random((questions, answers)) < p[:, None]).ravel().astype(float), np.repeat(
        np.arange(questions), answers
    )


def exact_cells() -> Iterator[Cell]:
    """Each on the data it is exact for."""

    def add(
        interval: str,
        data: str,
        draw: Callable[[Rng], Estimate],
        truth: float,
        goal: tuple[float, float] = EXACT,
        inside: bool = True,
    ) -> Cell:
        return Cell(interval, data, goal, inside, draw, truth, 2.0)

    for n in (3, 11):
        yield add(
            "t_interval", f"{n} normal values", lambda r, n=n: t_interval(r.normal(size=n)), 0.0
        )
    yield add(
        "t_interval",
        "11 exponential values",
        lambda r: t_interval(r.exponential(size=11)),
        1.0,
        inside=False,
    )
    for n in (24, 352):
        yield add(
            "tost, paired",
            f"{n} normal differences",
            lambda r, n=n: tost(r.normal(size=n), np.zeros(n), 1.0, paired=True).estimate,
            0.0,
            TOST,
        )
    near = expected(ceiling)
    yield add(
        "tost, paired",
        "352 differences at the ceiling, skewness −4",
        lambda r: tost(ceiling(r, 352), np.zeros(352), 5.0, paired=True).estimate,
        near,
        TOST,
        False,
    )
    yield add(
        "welch_test",
        "12 and 30 normal values, sd 1 and 3",
        lambda r: welch_test(r.normal(size=12), r.normal(0, 3, size=30)).estimate,
        0.0,
    )
    for n in (12, 144):
        yield add(
            "pearson", f"{n} normal pairs, ρ .5", lambda r, n=n: pearson(*pair(r, n, 0.5)), 0.5
        )

    def partial(rng: Rng, n: int) -> Estimate:
        z = rng.normal(size=(n, 3))
        x, y = pair(rng, n, 0.4)
        return partial_correlation(x + z.sum(1), y - z[:, 0], z)

    for n in (20, 144):
        yield add(
            "partial_correlation",
            f"{n} normal rows, 3 covariates, ρ .4",
            lambda r, n=n: partial(r, n),
            0.4,
        )
    yield add(
        "cohens_d_interval",
        "12 and 12 normal values, d .8",
        lambda r: cohens_d_interval(r.normal(0.8, size=12), r.normal(size=12)),
        0.8,
    )
    yield add(
        "cohens_d_interval, paired",
        "20 normal differences, d .5",
        lambda r: cohens_d_interval(r.normal(0.5, size=20), np.zeros(20), paired=True),
        0.5,
    )
    yield add(
        "f_test",
        "12 and 20 normal values, ratio 4",
        lambda r: f_test(r.normal(0, 2, size=12), r.normal(size=20)).estimate,
        4.0,
    )
    heavy = "40 and 40 values of Student's t with 4 degrees"
    yield add(
        "f_test",
        heavy,
        lambda r: f_test(r.standard_t(4, 40), r.standard_t(4, 40)).estimate,
        1.0,
        inside=False,
    )
    shift = "12 and 15 exponential values, shift 1"
    yield add(
        "rank_sum_test",
        shift,
        lambda r: rank_sum_test(r.exponential(size=12) + 1, r.exponential(size=15)).estimate,
        1.0,
    )
    yield add(
        "signed_rank_test",
        "20 differences of Student's t with 3 degrees",
        lambda r: signed_rank_test(r.standard_t(3, 20), np.zeros(20)).estimate,
        0.0,
    )


def resampled_cell(
    interval: str,
    data: str,
    draw: Callable[[Rng], Estimate],
    truth: float,
    inside: bool = True,
    weight: float = 1.0,
) -> Cell:
    """A cell whose goal is that of intervals that are no exact ones."""
    return Cell(interval, data, RESAMPLED, inside, draw, truth, weight)


def closed_cells() -> Iterator[Cell]:
    """Approximations without resampling."""

    for n, rho in ((11, 0.9), (144, 0.9), (352, 0.6)):
        yield resampled_cell(
            "spearman",
            f"{n} normal pairs, ρ {rho}",
            lambda r, n=n, rho=rho: spearman(*pair(r, n, rho)),
            ranked(rho),
        )
    for name, call, truth in (("pearson", pearson, 0.5), ("spearman", spearman, ranked(0.5))):
        yield resampled_cell(
            f"{name}, no clusters",
            "144 pairs in 9 domains that matter",
            lambda r, call=call: call(*clustered_pair(r, 9, 16)[:2]),
            truth,
            False,
        )
        for domains, size in ((5, 28), (8, 18), (11, 13), (20, 7)):

            def over(
                rng: Rng, call: Any = call, domains: int = domains, size: int = size
            ) -> Estimate:
                x, y, labels = clustered_pair(rng, domains, size)
                return call(x, y, clusters=labels)

            yield resampled_cell(
                f"{name}, clusters",
                f"{domains * size} pairs in {domains} domains that matter",
                over,
                truth,
                domains >= 8,
                0.5,
            )

    def partial(rng: Rng) -> Estimate:
        x, y, labels = clustered_pair(rng, 11, 13)
        z = rng.normal(size=(len(x), 2))
        return partial_correlation(x + z.sum(1), y - z[:, 0], z, clusters=labels)

    yield resampled_cell(
        "partial_correlation, clusters",
        "143 rows in 11 domains that matter",
        partial,
        0.5,
        True,
        0.5,
    )
    gap = float(2 * scipy_stats.norm.cdf(0.8 / np.sqrt(2)) - 1)
    yield resampled_cell(
        "rank_biserial",
        "20 and 20 normal values, shift .8",
        lambda r: rank_biserial(r.normal(0.8, size=20), r.normal(size=20)),
        gap,
    )

    def spread(rng: Rng, draw: Callable[[int], np.ndarray], n: int) -> Estimate:
        found = brown_forsythe(2 * draw(n), draw(n))
        return Estimate(found.effect, found.effect_low, found.effect_high, 2 * n, "")

    yield resampled_cell(
        "brown_forsythe, effect",
        "20 and 20 normal values, sd 2 and 1",
        lambda r: spread(r, lambda n: r.normal(size=n), 20),
        np.log(2),
    )
    yield resampled_cell(
        "brown_forsythe, effect",
        "40 and 40 U-shaped scores, sd 2 and 1",
        lambda r: spread(r, lambda n: harmful(r, n), 40),
        np.log(2),
        False,
    )


def wilson_rows() -> Iterator[dict[str, Any]]:
    """By summation over all outcomes, no simulation."""
    for n in (24, 100, 1200):
        for p in (0.06, 0.2, 0.5):
            k = np.arange(n + 1)
            tally = Tally()
            weights = scipy_stats.binom.pmf(k, n, p)
            found = [wilson_interval(int(i), n) for i in k if weights[i] > 1e-12]
            held = np.array([e.low <= p <= e.high for e in found])
            tally.held, tally.widths = (
                [True],
                [
                    float(
                        np.average(
                            [e.high - e.low for e in found], weights=weights[weights > 1e-12]
                        )
                    )
                ],
            )
            row = row_of("wilson_interval", f"{n} answers, rate {p}", RESAMPLED, True, tally)
            share = float(weights[weights > 1e-12][held].sum())
            yield row | {
                "coverage": share,
                "mc_error": 0.0,
                "simulations": 0,
                "reached": RESAMPLED[0] <= share <= RESAMPLED[1],
            }


def mean_cells() -> Iterator[Cell]:
    def mean(values: np.ndarray) -> Estimate:
        return bootstrap_mean(values, resamples=RESAMPLES)

    u, near = 100 * 0.5 / 1.1, expected(ceiling)
    for n in (12, 20, 24, 32, 154, 352):
        yield resampled_cell(
            "bootstrap_mean", f"{n} U-shaped scores", lambda r, n=n: mean(harmful(r, n)), u, n >= 24
        )
    for n in (12, 24, 32):
        yield resampled_cell(
            "bootstrap_mean",
            f"{n} exponential values, skewness 2",
            lambda r, n=n: mean(r.exponential(size=n)),
            1.0,
            n >= 24,
        )
    for n in (20, 32, 352):
        yield resampled_cell(
            "bootstrap_mean",
            f"{n} scores at the ceiling, skewness −4",
            lambda r, n=n: mean(ceiling(r, n)),
            near,
            False,
        )
    for n, p in ((384, 0.06), (384, 0.01), (24, 0.2)):
        yield resampled_cell(
            "bootstrap_mean",
            f"{n} questions misaligned or not, rate {p}",
            lambda r, n=n, p=p: mean((r.random(n) < p).astype(float)),
            p,
        )
    for method in ("bca", "percentile"):
        yield resampled_cell(
            f"bootstrap_mean, {method}",
            "24 exponential values, skewness 2",
            lambda r, m=method: bootstrap_mean(
                r.exponential(size=24), method=m, resamples=RESAMPLES
            ),
            1.0,
            False,
        )
    fixed = scipy_stats.norm.ppf((np.arange(11) + 0.5) / 11)
    over = float(np.mean(100 * scipy_stats.norm.cdf(fixed * np.sqrt(0.4) / np.sqrt(1.6))))
    yield resampled_cell(
        "bootstrap_mean",
        "352 questions of 11 given domains",
        lambda r: mean(by_domain(r, 11, 32, 0.4, fixed)[0]),
        over,
        False,
        0.5,
    )
    yield resampled_cell(
        "bootstrap_mean",
        "352 questions, 11 domains drawn anew",
        lambda r: mean(by_domain(r, 11, 32, 0.4)[0]),
        50.0,
        False,
        0.5,
    )
    for domains in (5, 8, 11):
        yield resampled_cell(
            "cluster_bootstrap",
            f"mean over questions, {domains} domains drawn anew",
            lambda r, d=domains: cluster_bootstrap(*by_domain(r, d, 14, 0.4), resamples=RESAMPLES),
            50.0,
            domains >= 8,
        )

    def area(part: np.ndarray) -> float:
        above = scipy_stats.rankdata(part[:, 0])[part[:, 1] > 0]
        ones = len(above)
        return float((above.sum() - ones * (ones + 1) / 2) / (ones * (len(part) - ones)))

    def areas(rng: Rng) -> Estimate:
        labels = np.tile([0.0, 1.0], 60)
        values = rng.normal(size=120) + labels + np.repeat(rng.normal(size=30), 4) * 0.7
        return cluster_bootstrap(np.c_[values, labels], np.arange(120) // 4, area, resamples=499)

    truth = float(scipy_stats.norm.cdf(1 / np.sqrt(2 * (1 + 0.49))))
    yield resampled_cell(
        "cluster_bootstrap, bca",
        "area under the curve, 30 questions of 4 answers",
        areas,
        truth,
        True,
        0.1,
    )


def rate_cells() -> Iterator[Cell]:
    for mean in (0.06, 0.2, 0.4):
        yield Cell(
            "hierarchical_bootstrap, questions like these",
            f"24 questions × 50 answers, rate {mean}",
            RESAMPLED,
            mean >= 0.2,
            lambda r, m=mean: hierarchical_bootstrap(*rates(r, 24, 50, m), resamples=RESAMPLES),
            mean,
        )
    for mean in (0.06, 0.4):
        yield Cell(
            "hierarchical_bootstrap, questions like these",
            f"100 questions × 10 answers, rate {mean}",
            RESAMPLED,
            mean >= 0.2,
            lambda r, m=mean: hierarchical_bootstrap(*rates(r, 100, 10, m), resamples=RESAMPLES),
            mean,
        )
    for mean, answers in ((0.06, 50), (0.06, 10), (0.3, 5)):
        p = np.random.default_rng(1).beta(2 * mean, 2 * (1 - mean), size=24)

        def fixed(rng: Rng, p: np.ndarray = p, answers: int = answers) -> Estimate:
            values = (rng.random((24, answers)) < p[:, None]).ravel().astype(float)
            return hierarchical_bootstrap(
                values,
                np.repeat(np.arange(24), answers),
                estimand="these questions",
                resamples=RESAMPLES,
            )

        data = f"24 questions × {answers} answers, rate {p.mean():.2f}"
        yield Cell(
            "hierarchical_bootstrap, these questions",
            data,
            RESAMPLED,
            True,
            fixed,
            float(p.mean()),
            0.5,
        )


def ratio_cells() -> Iterator[Cell]:
    def restored(rng: Rng, domains: int, method: Any = "t") -> Estimate:
        top, bottom, labels = lost_and_restored(rng, domains, 14)
        return ratio_of_means(top, bottom, labels, resamples=RESAMPLES, method=method)

    for domains in (5, 8, 11, 20):
        yield Cell(
            "ratio_of_means",
            f"restoration, {domains} domains of 14 questions",
            RESAMPLED,
            domains >= 8,
            lambda r, d=domains: restored(r, d),
            0.35,
        )
    yield Cell(
        "ratio_of_means, percentile",
        "restoration, 11 domains of 14 questions",
        RESAMPLED,
        False,
        lambda r: restored(r, 11, "percentile"),
        0.35,
    )

    def lead(rng: Rng) -> Estimate:
        top, bottom, labels = lost_and_restored(rng, 11, 14)
        rival = bottom * (
            0.2 + np.repeat(rng.normal(size=11), 14) * 0.1 + rng.normal(size=154) * 0.2
        )
        return ratio_of_means(top - rival, bottom, labels, resamples=RESAMPLES)

    yield Cell(
        "ratio_of_means",
        "lead over a control, 11 domains of 14 questions",
        RESAMPLED,
        True,
        lead,
        0.15,
    )

    def damage(rng: Rng, n: int) -> Estimate:
        tokens = rng.integers(8, 60, size=n).astype(float)
        return ratio_of_means(
            tokens * 0.05 * rng.lognormal(-0.32, 0.8, size=n), tokens, resamples=RESAMPLES
        )

    for n in (12, 24, 96):
        yield Cell(
            "ratio_of_means",
            f"KL a token, {n} prompts",
            RESAMPLED,
            n >= 24,
            lambda r, n=n: damage(r, n),
            0.05,
        )


def cosine_cells() -> Iterator[Cell]:
    """The cosine of two mean shifts whose rows have a power-law covariance; beside it, what a
    bias-corrected bootstrap holds.
    """
    d = 64
    scale = np.arange(1, d + 1) ** -0.5

    def sides(rng: Rng, n: int, cosine: float, strength: float) -> list[np.ndarray]:
        means = np.zeros((2, d))
        means[:, 10], means[1, 10], means[1, 11] = 1.0, cosine, np.sqrt(1 - cosine**2)
        return [rng.normal(size=(n, d)) * scale + strength * mean for mean in means]

    def bootstrap(rng: Rng, n: int, cosine: float, strength: float, draws: int = 499) -> Estimate:
        x, y = sides(rng, n, cosine, strength)

        def between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)

        values = between(
            *(rng.multinomial(n, np.full(n, 1 / n), size=draws) @ rows for rows in (x, y))
        )
        below = np.clip(
            np.mean(values < between(x.mean(0), y.mean(0))), 0.5 / draws, 1 - 0.5 / draws
        )
        shifted = 2 * scipy_stats.norm.ppf(below) + scipy_stats.norm.ppf([0.025, 0.975])
        return Estimate(cosine, *np.quantile(values, scipy_stats.norm.cdf(shifted)), n, "")

    for n, cosine, strength in (
        (96, 0.8, 3.0),
        (96, 0.8, 1.0),
        (96, 0.99, 1.0),
        (48, 0.3, 1.0),
        (24, 0.8, 3.0),
        (96, 0.8, 0.2),
    ):
        share = strength**2 * n / float((scale**2).sum())
        data = (
            f"cosine {cosine}, {n} + {n} rows of 64 dimensions,"
            f" squared means {share:.2g} times their noise"
        )
        yield Cell(
            "cosine_of_means",
            data,
            RESAMPLED,
            share >= 3 and n >= 48,
            lambda r, a=(n, cosine, strength): cosine_of_means(*sides(r, *a)),
            cosine,
        )
        if n == 96 and cosine == 0.8 and share >= 3:
            yield Cell(
                "bias-corrected bootstrap of the cosine",
                data,
                RESAMPLED,
                False,
                lambda r, a=(n, cosine, strength): bootstrap(r, *a),
                cosine,
                0.1,
            )


def forecast_rows(
    simulations: int, seed: int, sizes: tuple[int, int] = (384, 96)
) -> Iterator[dict[str, Any]]:
    """R² of the whole procedure on new questions or domains: its truth is the ratio of mean errors
    over all simulated sets.

    Pooled R² and the gain over a baseline by `ratio_of_means`, the mean over folds by
    `nadeau_bengio_interval`. Resampling what was held out knows nothing of how other training
    questions would have moved the fits.
    """
    many, few = sizes
    for n, held_out, size, inside, given in (
        (many, "question", 0.0, True, False),
        (few, "question", 0.0, False, False),
        (many, "question", 0.8, True, True),
        (many, "question", 0.8, False, False),
        (many, "group", 0.8, False, False),
        (many, "group", 0.4, False, False),
    ):
        rng, kept, domains = (
            numpy_rng(seed, "forecast coverage", n, held_out, str(size), str(given)),
            [],
            12,
        )
        fixed = np.random.default_rng(2).normal(size=(domains, 13))
        for _ in range(simulations):
            effects = (
                np.repeat(fixed if given else rng.normal(size=(domains, 13)), n // domains, axis=0)
                * size
            )
            x = rng.normal(size=(n, 12)) + effects[:, :12]
            y = 50 + x[:, :4].sum(1) / 2 + 0.6 * effects[:, 12] + rng.normal(size=n)
            parent = y + 1.5 * rng.normal(size=n)
            acts = Activations(
                {("resid_post.0", "last_prompt"): torch.from_numpy(x)},
                ids=[f"q{i}" for i in range(n)],
                groups=[f"g{i * domains // n}" for i in range(n)],
                sites=["resid_post.0"],
                positions=["last_prompt"],
                provenance={},
            )
            found = cross_validate_forecast(
                acts,
                dict(zip(acts.ids, y, strict=True)),
                design=replace(
                    _DESIGN,
                    groups=None if held_out == "question" else "group",
                    seed=int(rng.integers(2**31)),
                ),
                baselines=Baselines(parent_scores=dict(zip(acts.ids, parent, strict=True))),
            )
            table = found.predictions
            errors = [
                float(((table[name] - table["target"]) ** 2).sum())
                for name in ("predicted", "parent's own score", "mean")
            ]
            kept.append(
                (found.r2, found.gain_over["parent's own score"], found.r2_fold_mean, errors)
            )
        ours, parents, floor = np.sum([errors for *_, errors in kept], axis=0)
        folds = float(np.mean([found.value for _, _, found, _ in kept]))
        between = (
            ""
            if size == 0
            else (
                f", effects of 12 {'given' if given else 'new'} domains"
                f" {'strong' if size > 0.5 else 'weak'}"
            )
        )
        what = (
            f"{n} questions, {'questions' if held_out == 'question' else '12 domains'} held"
            f" out{between}"
        )
        truths = {
            "forecast R²": 1 - ours / floor,
            "forecast gain over a baseline": (parents - ours) / floor,
            "forecast R², mean over folds": folds,
        }
        for i, (name, truth) in enumerate(truths.items()):
            tally = Tally()
            for entry in kept:
                tally.add(entry[i], float(truth))
            yield row_of(name, what, RESAMPLED, inside and i < 2, tally)


def fold_cells() -> Iterator[Cell]:
    """Repeated cross-validation of a straight line: its squared error on new data, averaged over
    training sets.
    """

    def folds(rng: Rng, n: int = 100, k: int = 5, repeats: int = 5) -> Estimate:
        x = rng.normal(size=n)
        y, scores = x + rng.normal(size=n), []
        for _ in range(repeats):
            for test in np.array_split(rng.permutation(n), k):
                train = np.ones(n, dtype=bool)
                train[test] = False
                away = x[train] - x[train].mean()
                slope = float(away @ y[train] / (away @ away))
                scores.append(
                    float(
                        (
                            (y[test] - y[train].mean() - slope * (x[test] - x[train].mean())) ** 2
                        ).mean()
                    )
                )
        return nadeau_bengio_interval(scores, 1 / (k - 1))

    # expected squared error of a line fitted to 80 normal points
    truth = 1.0 * (1 + 1 / 80) * (1 + 1 / 77)
    yield Cell(
        "nadeau_bengio_interval",
        "error of a line, 5 × 5 folds of 100 rows",
        RESAMPLED,
        True,
        folds,
        truth,
        0.5,
    )


def measure(
    simulations: int, seed: int, forecasts: int, sizes: tuple[int, int] = (384, 96)
) -> pd.DataFrame:
    cells = [
        *exact_cells(),
        *closed_cells(),
        *mean_cells(),
        *rate_cells(),
        *ratio_cells(),
        *cosine_cells(),
        *fold_cells(),
    ]
    rows = []
    for row in chain(
        (measured(cell, simulations, seed) for cell in cells),
        wilson_rows(),
        forecast_rows(forecasts, seed, sizes),
    ):
        print(
            f"{row['coverage']:.3f} ± {row['mc_error']:.3f}  {row['interval']}:"
            f" {row['data']} ({row['design_range']})",
            flush=True,
        )
        rows.append(row)
    return pd.DataFrame(rows)


def coverage_table(rows: list[dict[str, Any]]) -> str:
    """Markdown for docs/statistics.md: every cell, with the goal where it lies inside the design
    range.
    """
    lines = [
        "| interval | data | design range | coverage | goal | reached |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        goal = (
            "–" if row["goal"] is None else f"{100 * row['goal'][0]:g} to {100 * row['goal'][1]:g}"
        )
        reached = "–" if row["reached"] is None else "yes" if row["reached"] else "**no**"
        error = (
            "exact sum"
            if row["mc_error"] == 0 and row["simulations"] == 0
            else f"± {100 * row['mc_error']:.1f}"
        )
        cells = [
            row["interval"],
            row["data"],
            row["design_range"],
            f"{100 * row['coverage']:.1f} {error}",
            goal,
            reached,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(simulations: int = 2000, forecasts: int = 250, seed: int = 0) -> None:
    table = measure(simulations, seed, forecasts)
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    path = record(
        "interval_coverage",
        [seed],
        {"simulations": simulations, "resamples": RESAMPLES, "rows": rows},
    )
    show("goals not reached", table[table["reached"] == False].drop(columns=["goal"]))  # noqa: E712
    print(f"written: {path.relative_to(EVIDENCE.parent.parent)}")
