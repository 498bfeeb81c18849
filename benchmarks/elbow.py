"""Does the elbow find how many directions were planted, and is an overlap at a k that was chosen by
it tested at its level?

Spectra: k planted directions above noise of several kinds, or none. Rivals read the same singular
values. Level: training and evaluation rows are drawn from one population, so that the covariance
null holds; k is the elbow of the training rows. The null either keeps that k, or finds the elbow of
each of its own draws.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.records import record, show
from emlens.foundation.errors import InputError
from emlens.foundation.seeds import numpy_rng
from emlens.geometry import covariance_overlap_null, subspace_overlap, top_k_subspace
from emlens.geometry.components import elbow

SIZES = ((24, 576), (48, 576), (100, 576), (100, 128))
"""(rows, width)."""
FALLS = (0.0, 0.25, 0.5)
"""Exponent with which the noise falls over its coordinates."""
PLANTED = (0, 1, 2, 4, 8)
ABOVE_NOISE = 2.0
"""Singular value of the weakest planted direction over the largest of the noise."""
ALPHA = 0.05
Rule = Callable[[np.ndarray], int]


def by_likelihood(values: np.ndarray) -> int:
    """The split of largest profile likelihood (Zhu and Ghodsi 2006)."""
    spreads = []
    for count in range(1, len(values)):
        first, second = values[:count], values[count:]
        spreads.append(((first - first.mean()) ** 2).sum() + ((second - second.mean()) ** 2).sum())
    return int(np.argmin(spreads)) + 1


def by_chord(values: np.ndarray) -> int:
    """The value farthest below the line from the first to the last (Satopaa et al. 2011)."""
    line = np.linspace(values[0], values[-1], len(values))
    return max(1, int(np.argmax(line - values)))


def by_growth_ratio(values: np.ndarray) -> int:
    """The largest ratio of growth rates of the remaining variance (Ahn and Horenstein 2013)."""
    variances = values**2
    remaining = variances.sum() - np.cumsum(variances)
    growth = np.log1p(variances[:-1] / remaining[:-1])
    return int(np.argmax(growth[: len(values) // 2] / growth[1 : len(values) // 2 + 1])) + 1


def by_published_gap(values: np.ndarray) -> int:
    """The gap rule with a tail of five values and two slopes (Onatski 2010)."""
    eigenvalues = (values / values[0]) ** 2
    last = min(len(values) // 2, len(values) - 5)
    gaps = eigenvalues[:last] - eigenvalues[1 : last + 1]
    count = last
    for _ in range(4):
        tail = np.arange(count, count + 5)
        slope = np.polyfit(tail ** (2 / 3), eigenvalues[tail], 1)[0]
        larger = np.flatnonzero(gaps > 2 * abs(slope))
        count = int(larger.max()) + 1 if len(larger) else 0
    return count


def by_gap(values: np.ndarray) -> int:
    """The elbow of this library."""
    return elbow(torch.from_numpy(values))


RULES: dict[str, Rule] = {
    "elbow": by_gap,
    "gap, as published": by_published_gap,
    "profile likelihood": by_likelihood,
    "distance to the chord": by_chord,
    "growth ratio": by_growth_ratio,
}


@dataclass(frozen=True)
class Kind:
    """One kind of planted spectrum."""

    n: int
    d: int
    fall: float
    shape: str
    planted: int


def kinds() -> Iterator[Kind]:
    for n, d in SIZES:
        for fall in FALLS:
            for planted in PLANTED:
                shapes = ("equal", "linear", "geometric", "one dominates")
                for shape in shapes if planted > 1 else ("equal",):
                    yield Kind(n, d, fall, shape, planted)


def strengths(shape: str, planted: int) -> np.ndarray:
    """Of the planted directions, the weakest being 1."""
    if planted == 0:
        return np.empty(0)
    return {
        "equal": np.ones(planted),
        "linear": np.linspace(2, 1, planted),
        "geometric": np.geomspace(4, 1, planted),
        "one dominates": np.array([6.0, *[1.0] * (planted - 1)]),
    }[shape]


def spectra(kind: Kind, count: int, seed: int) -> Iterator[np.ndarray]:
    """Singular values of centred rows with planted directions."""
    rng = numpy_rng(seed, "elbow", *map(str, vars(kind).values()))
    scales = np.arange(1, kind.d + 1) ** -kind.fall
    noises = [rng.normal(size=(kind.n, kind.d)) * scales for _ in range(count)]
    largest = [np.linalg.norm(noise - noise.mean(0), 2) for noise in noises]
    strength = ABOVE_NOISE * np.median(largest) / np.sqrt(kind.n)
    for noise in noises:
        planted = strengths(kind.shape, kind.planted) * strength
        axes = np.linalg.qr(rng.normal(size=(kind.d, kind.planted)))[0]
        rows = noise + rng.normal(size=(kind.n, kind.planted)) * planted @ axes.T
        yield np.linalg.svd(rows - rows.mean(0), compute_uv=False)[: min(kind.n - 1, kind.d)]


def accuracy(chosen: list[Kind], count: int, seed: int) -> pd.DataFrame:
    """One row per kind and rule: how often exactly the planted number was found, and the median."""
    rows = []
    for kind in chosen:
        values = list(spectra(kind, count, seed))
        for name, rule in RULES.items():
            answers = np.array([rule(each) for each in values])
            head = {**vars(kind), "rule": name}
            right = float((answers == kind.planted).mean())
            rows.append({**head, "right": right, "median": float(np.median(answers))})
    return pd.DataFrame(rows)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row per rule: share that was right, over all and by what was varied."""
    parts = {"all": table.groupby("rule")["right"].mean()}
    for column in ("planted", "shape", "fall"):
        for value, rows in table.groupby(column):
            parts[f"{column} {value}"] = rows.groupby("rule")["right"].mean()
    return pd.DataFrame(parts).loc[list(RULES)].reset_index()


def overlap_at_elbow(pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[int, float]:
    """k of the first rows, and the overlap of both at it; (0, nan) where they have no elbow."""
    try:
        space = top_k_subspace(pair[0], "elbow", center=True)
    except InputError:
        return 0, np.nan
    return space.k, float(subspace_overlap(space, top_k_subspace(pair[1], space.k, center=True)))


def level(scales: np.ndarray, n: int, pairs: int, draws: int, seed: int) -> dict[str, float]:
    """Share of p at most .05 where both sides are samples of one population."""
    rng = numpy_rng(seed, "elbow level", str(len(scales)), str(n))

    def pair() -> tuple[torch.Tensor, torch.Tensor]:
        first, second = (torch.from_numpy(rng.normal(size=(n, len(scales))) * scales) for _ in "ab")
        return first, second

    covariance = torch.diag(torch.from_numpy(scales**2))
    observed = [overlap_at_elbow(pair()) for _ in range(pairs)]
    drawn = [overlap_at_elbow(pair())[1] for _ in range(draws)]
    by_rule = np.array([value for value in drawn if np.isfinite(value)])
    nulls = {}
    same_k, same_rule = [], []
    for k, value in observed:
        if k == 0:
            continue
        if k not in nulls:
            nulls[k] = covariance_overlap_null(
                covariance, n, n, k, center=True, draws=draws, seed=seed
            )
        same_k.append(nulls[k].p_value(value))
        same_rule.append((1 + (by_rule >= value).sum()) / (1 + len(by_rule)))
    return {
        "n": n,
        "d": len(scales),
        "with_elbow": len(same_k) / pairs,
        "k_low": min(k for k, _ in observed if k),
        "k_high": max(k for k, _ in observed),
        "same_k": float((np.array(same_k) <= ALPHA).mean()),
        "same_rule": float((np.array(same_rule) <= ALPHA).mean()),
    }


def populations(d: int) -> dict[str, np.ndarray]:
    """Scales of the coordinates: a power law, and four directions above flat noise."""
    four = np.ones(d)
    four[:4] = [8.0, 6.0, 5.0, 4.0]
    return {"power law": np.arange(1, d + 1) ** -0.5, "four directions": four}


def levels(d: int, sizes: tuple[int, ...], pairs: int, draws: int) -> pd.DataFrame:
    rows = []
    for name, scales in populations(d).items():
        for n in sizes:
            rows.append({"population": name, **level(scales, n, pairs, draws, 0)})
    return pd.DataFrame(rows)


def rules_table(values: Mapping[str, Any]) -> str:
    """Which rule finds the planted number, for the page on geometry."""
    columns = {
        "all": "all",
        "planted 0": "none planted",
        "planted 1": "1",
        "planted 2": "2",
        "planted 4": "4",
        "planted 8": "8",
        "shape one dominates": "one dominates",
        "fall 0.5": "noise falls as i^-0.5",
    }
    lines = [
        f"| rule | {' | '.join(columns.values())} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for row in values["rules"]:
        shares = " | ".join(f"{row[column]:.2f}" for column in columns)
        lines.append(f"| {row['rule']} | {shares} |")
    return "\n".join(lines)


def level_table(values: Mapping[str, Any]) -> str:
    """How often an overlap at the elbow is called shared where nothing is, for the page on
    nulls.
    """
    lines = [
        "| population | n | with an elbow | k | null of the same k | elbow in every draw |",
        "|---|---|---|---|---|---|",
    ]
    for row in values["level"]:
        ks = f"{row['k_low']}–{row['k_high']}"
        lines.append(
            f"| {row['population']} | {row['n']} | {row['with_elbow']:.2f} | {ks} |"
            f" {row['same_k']:.3f} | {row['same_rule']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    count, pairs, draws = 20, 1000, 999
    table = accuracy(list(kinds()), count, 0)
    by_rule = summary(table)
    show("share of spectra whose planted number was found", by_rule)
    by_population = levels(96, (24, 48, 100), pairs, draws)
    show(f"share of p <= {ALPHA} without anything to find", by_population)
    record(
        "elbow",
        [0],
        {
            "spectra_a_kind": count,
            "pairs": pairs,
            "draws": draws,
            "rules": by_rule.to_dict("records"),
            "level": by_population.to_dict("records"),
        },
    )


if __name__ == "__main__":
    main()
