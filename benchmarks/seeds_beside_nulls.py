"""How often is a mean over seeds called beyond a null that it lies at, where seeds share prompts?

A value is what the prompts give, which all seeds share, plus noise of the seed. A draw of the null
has other prompts (`fresh prompts`, as where rows are drawn), or the same prompts and another seed
(`same prompts`, as where adapters are trained). Nulls are normal or skewed. Statements "shown" are
counted under the exact null, beside what a t interval over seeds would say, and under a true
difference.
"""

from itertools import product
from typing import Any, Final

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from benchmarks.records import record, show
from emlens.foundation.seeds import numpy_rng
from emlens.stats import NullDistribution
from emlens.stats.shared_noise import mean_beyond_nulls

SEEDS: Final = (2, 3, 4, 5)
NOISES: Final = (0.05, 0.1, 0.2, 0.5)
DRAWS: Final = {"fresh prompts": (199,), "same prompts": (19,)}
SHAPES: Final = ("normal", "skewed")
GOAL: Final = 0.035
"""The most statements "shown" under the exact null."""
EFFECT: Final = 4.0
"""A true difference, in standard deviations of the null."""


def noise_of(rng: np.random.Generator, shape: str, n: int) -> np.ndarray:
    """Mean 0 and standard deviation 1; skewed: a gamma distribution of skewness .8."""
    if shape == "normal":
        return rng.normal(size=n)
    return (rng.gamma(6.25, size=n) - 6.25) / 2.5


def null_and_values(
    rng: np.random.Generator, kind: str, draws: int, shape: str, noise: float, seeds: int
) -> tuple[NullDistribution, np.ndarray]:
    """Draws of a null, and values of seeds under it."""
    prompts = noise_of(rng, shape, 1)
    values = prompts + noise * rng.normal(size=seeds)
    if kind == "fresh prompts":
        return NullDistribution(noise_of(rng, shape, draws), kind), values
    return NullDistribution(prompts + noise * rng.normal(size=draws), kind), values


def cell(
    kind: str, draws: int, shape: str, noise: float, seeds: int, runs: int, seed: int
) -> dict[str, Any]:
    """Shares of runs in which the mean over seeds is called beyond its null."""
    rng = numpy_rng(seed, kind, draws, shape, str(noise), seeds)
    shown, shown_by_t, shown_effect = 0, 0, 0
    student = float(scipy_stats.t.ppf(0.975, seeds - 1))
    for _ in range(runs):
        null, values = null_and_values(rng, kind, draws, shape, noise, seeds)
        beyond = mean_beyond_nulls(values, [null] * seeds)
        error = float(values.std(ddof=1)) / np.sqrt(seeds)
        shown += beyond.low > 0
        shown_by_t += beyond.value > student * error
        # a true difference moves all seeds alike, so the interval moves with it
        shown_effect += beyond.low + EFFECT * null.sd > 0
    return {
        "null": kind,
        "draws": draws,
        "shape": shape,
        "noise": noise,
        "seeds": seeds,
        "runs": runs,
        "shown": shown / runs,
        "by_t_interval": shown_by_t / runs,
        "power": shown_effect / runs,
    }


def measure(runs: int, seed: int) -> pd.DataFrame:
    """One row per kind of null, number of draws, shape, seed noise and number of seeds."""
    rows = []
    for kind, numbers in DRAWS.items():
        for draws, shape, noise, seeds in product(numbers, SHAPES, NOISES, SEEDS):
            rows.append(cell(kind, draws, shape, noise, seeds, runs, seed))
    return pd.DataFrame(rows)


def shown_table(values: dict[str, Any]) -> str:
    """Markdown for docs/statistics.md: the largest share over shapes and numbers of draws."""
    rows = pd.DataFrame(values["rows"])
    largest = rows.groupby(["null", "noise", "seeds"], sort=False).agg(
        {"shown": "max", "by_t_interval": "max", "power": "min"}
    )
    lines = [
        "| draws of the null | seed noise | seeds | shown | by a t interval over seeds |"
        f" shown where {EFFECT:g} sd apart |",
        "|---|---|---|---|---|---|",
    ]
    for (kind, noise, seeds), row in largest.iterrows():
        cells = [f"{100 * row[name]:.1f} %" for name in ("shown", "by_t_interval", "power")]
        lines.append(f"| {kind} | {noise:g} | {seeds} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(runs: int = 2000, seed: int = 0) -> None:
    table = measure(runs, seed)
    worst = table.loc[table["shown"].idxmax()]
    values = {
        "runs_a_cell": runs,
        "goal": GOAL,
        "most_shown": float(worst["shown"]),
        "reached": bool((table["shown"] <= GOAL).all()),
        "rows": table.to_dict("records"),
    }
    record("seeds_beside_nulls", [seed], values)
    show("most shown", table.sort_values("shown").tail(5))


if __name__ == "__main__":
    main()
