"""What the nulls of a fine-tune's overlap say where nothing but training is shared, and what they
can see. Sizes and goals are fixed here, before anything is run.

A pool of adapters is trained once on permuted careful answers of two domains. The first of them are
tested against the others: the share that is *called shared* (Holm over both statistics, .05) is the
level. The same adapters against random updates and against one population with the covariance of
the activations before say how often these nulls would call training alone a finding. Beside it:
the landmark's own code; power where a direction or a mean is shared; coverage of the difference of
updates; cost. `overlap_worlds` measures the cosine across domains.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import beta
from torch import Tensor

from benchmarks.overlap_pools import (
    DOMAINS,
    LEVEL,
    NULL_ADAPTERS,
    POSITIONS,
    PROMPTS,
    SPEC,
    TESTED_ADAPTERS,
    K,
    called,
    pool,
    setting,
)
from benchmarks.records import record, show
from emlens.activations import Activations, capture
from emlens.controls.null_training import TrainingNull, training_null
from emlens.controls.shift_statistics import TESTED, shift_statistics, statistics_of_rows
from emlens.controls.update_landmark import linear_update, update_null
from emlens.foundation.seeds import numpy_rng, torch_rng
from emlens.geometry import covariance_overlap_null
from emlens.interventions.lora import LoraAdapter
from emlens.models import load_model
from emlens.organisms import Organism, load_organism
from emlens.organisms.building import one_thread
from emlens.stats import NullDistribution, adjust_p_values
from emlens.studies.overlap_differences import jackknife_t, update_difference


@cache
def organism() -> Organism:
    return load_organism()


def p_holm(values: pd.DataFrame, draws: pd.DataFrame) -> float:
    """The smaller corrected p of both tested statistics; means over layers."""
    p = []
    for statistic in TESTED:
        null = NullDistribution(draws[statistic].to_numpy(np.float64))
        p.append(null.p_value(float(values[statistic].mean())))
    return float(min(adjust_p_values(p)))


def before(domain: str) -> tuple[Activations, Activations]:
    """The parent's activations on both sides."""
    sides = setting(organism(), domain)
    parent = load_model(sides.parent, dtype="float32")
    train, evaluation = (
        capture(parent, prompts, spec=SPEC, progress=False)
        for prompts in (sides.train, sides.evaluation)
    )
    return train, evaluation


def covariance_draws(domain: str, draws: int) -> dict[str, np.ndarray]:
    """Position → mean over layers of what two samples of one population share (mean cos²)."""
    train, evaluation = before(domain)
    of_position = {}
    for position in POSITIONS:
        by_layer = []
        for number, site in enumerate(train.sites):
            rows = torch.cat([train[site, position], evaluation[site, position]]).double()
            null = covariance_overlap_null(
                torch.cov(rows.T), PROMPTS, PROMPTS, K, center=True, draws=draws, seed=number
            )
            # the null sorts its draws: any order is one of independent layers
            by_layer.append(numpy_rng(number, "order").permutation(null.draws))
        of_position[position] = np.mean(by_layer, axis=0)
    return of_position


def update_draws(name: str, draws: int, seed: int) -> pd.DataFrame:
    """Cells of random updates of a fine-tune's size."""
    domain = organism().domains[name]
    sides = setting(organism(), domain)
    parent = load_model(sides.parent, dtype="float32")
    path = organism().paths[name]
    if (path / "adapter_config.json").is_file():
        update = LoraAdapter.load(path)
    else:
        update = linear_update(parent, load_model(path, dtype="float32"))
    landmark = update_null(
        parent,
        update,
        (sides.train, sides.evaluation),
        neutral=organism().neutral_prompts,
        spec=SPEC,
        draws=draws,
        k=K,
        seed=seed,
    )
    return landmark.cells.assign(scale=landmark.draws["scale"].mean())


def means(cells: pd.DataFrame, position: str, unit: str) -> pd.DataFrame:
    """One row per unit, one column per statistic: means over layers."""
    at = cells[cells["position"] == position]
    return at.pivot_table(index=unit, columns="statistic", values="value")


def fine_tune_cells(name: str) -> pd.DataFrame:
    """The statistics of a fine-tune of the organism on the prompts of the pool."""
    sides = setting(organism(), organism().domains[name])
    family = organism().family
    pairs = []
    for prompts in (sides.train, sides.evaluation):
        pair = (family["instruct"], family[name])
        pairs.append(tuple(capture(m, prompts, spec=SPEC, progress=False) for m in pair))
    return shift_statistics(pairs[0], pairs[1], K)  # type: ignore[arg-type]


def level(pools: dict[str, TrainingNull], tested: int) -> Iterator[dict[str, Any]]:
    """How often each null calls adapters on permuted answers, and fine-tunes, shared."""
    for domain, null in pools.items():
        adapters = len(null.runs)
        others = range(tested, adapters)
        random = update_draws(f"{domain}-r8", len(others), seed=0)
        population = covariance_draws(domain, 200)
        for position in POSITIONS:
            draws = means(null.cells, position, "adapter")
            nulls = {
                "trained": draws.loc[list(others)],
                "random update": means(random, position, "draw"),
            }
            named = {f"{domain}-{kind}": None for kind in ("r8", "benign")}
            values = {str(i): draws.loc[[i]] for i in range(tested)}
            for name in named:
                values[name] = means(fine_tune_cells(name).assign(adapter=0), position, "adapter")
            for null_name, null_draws in nulls.items():
                p = {key: p_holm(value, null_draws) for key, value in values.items()}
                yield _level_row(domain, position, null_name, p, tested)
            one = NullDistribution(population[position])
            p = {key: one.p_value(float(v["mean_cos2"].mean())) for key, v in values.items()}
            yield _level_row(domain, position, "one population", p, tested)


def _level_row(
    domain: str, position: str, null: str, p: dict[str, float], tested: int
) -> dict[str, Any]:
    count = sum(p[str(i)] <= LEVEL for i in range(tested))
    return {
        "null": null,
        "domain": domain,
        "position": position,
        **called(count, tested),
        "p harmful": p[f"{domain}-r8"],
        "p benign": p[f"{domain}-benign"],
    }


def landmark_code(tested: int, nulls: int, runs: int) -> Iterator[dict[str, Any]]:
    """Tested draws and null draws of random updates, drawn apart: the rate must hold .05."""
    for rank, name in (("8", "medicine-r8"), ("32", "medicine-r32"), ("full", "medicine-full")):
        cells = {
            "tested": update_draws(name, tested, seed=1000),
            "null": update_draws(name, nulls, seed=2000),
        }
        for position in POSITIONS:
            values = {key: means(table, position, "draw") for key, table in cells.items()}
            for statistic in TESTED:
                yield {
                    "rank": rank,
                    "position": position,
                    "statistic": statistic,
                    "scale": float(cells["null"]["scale"].iloc[0]),
                    "runs": runs,
                    **_rate(values["tested"][statistic], values["null"][statistic], runs),
                }


def _rate(tested: pd.Series, nulls: pd.Series, runs: int) -> dict[str, float]:
    """Share of runs with p ≤ .05. The interval is Clopper and Pearson's of as many independent
    trials as there are tested draws, which the runs share.
    """
    rng = numpy_rng(0, "runs of the landmark")
    each = runs // len(tested)
    size = min(NULL_ADAPTERS, len(nulls) - 1)
    rates = []
    for value in tested:
        hits = 0
        for _ in range(each):
            null = rng.choice(nulls.to_numpy(), size, replace=False)
            hits += NullDistribution(null).p_value(float(value)) <= LEVEL
        rates.append(hits / each)
    count, n = float(np.sum(rates)), len(rates)
    low = float(beta.ppf(0.025, count, n - count + 1)) if count else 0.0
    high = float(beta.ppf(0.975, count + 1, n - count))
    return {"share": count / n, "low": low, "high": high}


def side(
    rng: torch.Generator, n: int, d: int, direction: Tensor, share: float, mean: Tensor
) -> Tensor:
    """Rows with a power-law covariance in axes of their own, a direction that carries a share of
    the centred variance, and a mean.
    """
    turn = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=rng)).Q
    scales = torch.arange(1, d + 1, dtype=torch.float64) ** -0.5
    noise = torch.randn(n, d, dtype=torch.float64, generator=rng) * scales @ turn
    along = torch.randn(n, 1, dtype=torch.float64, generator=rng) * direction
    total = float(scales.square().sum())
    return noise * (1 - share) ** 0.5 + along * (share * total) ** 0.5 + mean


def pair_of_sides(rng: torch.Generator, n: int, shared: str, d: int = 128) -> tuple[Tensor, Tensor]:
    """Both sides; `shared` is a "direction" (20 % of the centred variance), a "mean" (40 % of the
    second moment), or "nothing". Each side has a direction and a mean, its own where not shared.
    """
    total = float((torch.arange(1, d + 1, dtype=torch.float64) ** -1.0).sum())
    length = (total * 0.4 / 0.6) ** 0.5
    units = [_unit(rng, d) for _ in range(4)]
    directions = (units[0], units[0] if shared == "direction" else units[1])
    mean_units = (units[2], units[2] if shared == "mean" else units[3])
    first, second = (side(rng, n, d, directions[i], 0.2, length * mean_units[i]) for i in range(2))
    return first, second


def _unit(rng: torch.Generator, d: int) -> Tensor:
    vector = torch.randn(d, dtype=torch.float64, generator=rng)
    return vector / vector.norm()


def power(runs: int, nulls: int) -> Iterator[dict[str, Any]]:
    """How often a shared direction and a shared mean are found against pairs that share neither."""
    rng = torch_rng(0, "power")
    draws = pd.DataFrame(
        [statistics_of_rows(*pair_of_sides(rng, 100, "nothing"), K) for _ in range(nulls)]
    )
    for shared in ("direction", "mean", "nothing"):
        found = [statistics_of_rows(*pair_of_sides(rng, 100, shared), K) for _ in range(runs)]
        for statistic in (*TESTED, "mean_cos2"):
            picked = numpy_rng(0, "null of a run", shared, statistic)
            count = 0
            for values in found:
                null = picked.choice(draws[statistic].to_numpy(), NULL_ADAPTERS, replace=False)
                count += NullDistribution(null).p_value(values[statistic]) <= LEVEL / 2
            yield {"shared": shared, "statistic": statistic, **called(count, runs)}


def difference_coverage(runs: int, domains: int = 11, each: int = 12) -> dict[str, Any]:
    """How often the interval of the difference of updates covers its expected value.

    Prompts of a domain move along a direction of their own beside what all share. Overlaps depend
    on the number of prompts, so the expected value is the mean over all runs.
    """
    rng = torch_rng(0, "difference of updates")
    d = 32
    shared = [_unit(rng, d) for _ in range(2)]
    train = [_moved(rng, d, 8, each, own) for own in shared]

    label = torch.arange(domains * each) // each
    values, intervals = [], []
    for _ in range(runs):
        evaluation = [_moved(rng, d, domains, each, own) for own in shared]
        value = update_difference([(train[0], evaluation[0], train[1], evaluation[1])])
        without = []
        for domain in range(domains):
            kept = label != domain
            part = (train[0], evaluation[0][kept], train[1], evaluation[1][kept])
            without.append(update_difference([part]))
        values.append(value)
        intervals.append(jackknife_t(value, np.array(without)))
    truth = float(np.mean(values))
    count = sum(low <= truth <= high for low, high in intervals)
    return {"truth": truth, "domains": domains, **called(count, runs)}


def _moved(rng: torch.Generator, d: int, domains: int, each: int, shared: Tensor) -> Tensor:
    """Shifts of prompts of several domains."""
    rows = []
    for _ in range(domains):
        own = torch.randn(d, dtype=torch.float64, generator=rng)
        common = torch.randn(each, 1, dtype=torch.float64, generator=rng) * shared * 6
        of_domain = torch.randn(each, 1, dtype=torch.float64, generator=rng) * own
        noise = torch.randn(each, d, dtype=torch.float64, generator=rng)
        rows.append(common + of_domain + noise)
    return torch.cat(rows)


def cost(adapters: int) -> dict[str, float]:
    """CPU seconds of a null on the organism."""
    began = time.process_time()
    plain = replace(setting(organism(), "medicine"), further=None, write_shifts=False)
    training_null(plain, adapters=adapters, progress=False)
    return {"adapters": adapters, "cpu_seconds": time.process_time() - began}


def pooled(rows: Sequence[Mapping[str, Any]], null: str) -> tuple[int, int]:
    """Adapters that a null calls shared, over domains and positions."""
    of_null = [row for row in rows if row["null"] == null]
    return sum(row["called"] for row in of_null), sum(row["of"] for row in of_null)


def level_table(values: Mapping[str, Any]) -> str:
    """What each null calls shared where only training is, and its p of the fine-tunes."""
    lines = [
        "| null | domain | position | called shared | p of harmful | p of benign |",
        "|---|---|---|---|---|---|",
    ]
    for row in values["level"]:
        lines.append(
            f"| {row['null']} | {row['domain']} | {row['position']} | {row['called']} of"
            f" {row['of']} | {row['p harmful']:.3f} | {row['p benign']:.3f} |"
        )
    return "\n".join(lines)


def landmark_table(values: Mapping[str, Any]) -> str:
    """Tested and null draws of random updates, drawn apart."""
    lines = [
        "| rank | position | statistic | ΔW × | share of p ≤ .05 |",
        "|---|---|---|---|---|",
    ]
    for row in values["landmark"]:
        lines.append(
            f"| {row['rank']} | {row['position']} | {row['statistic']} | {row['scale']:.1f} |"
            f" {row['share']:.3f} [{row['low']:.3f}, {row['high']:.3f}] |"
        )
    return "\n".join(lines)


def power_table(values: Mapping[str, Any]) -> str:
    """What each statistic finds."""
    lines = ["| shared | statistic | found |", "|---|---|---|"]
    for row in values["power"]:
        lines.append(
            f"| {row['shared']} | {row['statistic']} | {row['share']:.3f}"
            f" [{row['low']:.3f}, {row['high']:.3f}] |"
        )
    return "\n".join(lines)


def measure(scale: float = 1.0) -> Iterator[tuple[str, Any]]:
    def sized(number: int, least: int) -> int:
        return max(least, round(scale * number))

    yield "power", list(power(sized(300, 10), sized(400, 60)))
    yield "difference", difference_coverage(sized(600, 10))
    tested = sized(TESTED_ADAPTERS, 2)
    adapters = tested + sized(NULL_ADAPTERS, 3)
    yield "cost", cost(sized(19, 2))
    pools = {domain: pool(organism(), domain, adapters) for domain in DOMAINS}
    yield "level", list(level(pools, tested))
    yield "landmark", list(landmark_code(sized(90, 2), sized(90, 4), sized(900, 4)))


def main() -> None:
    values: dict[str, Any] = {}
    with one_thread():
        for name, result in measure():  # each is kept as soon as it is there
            values[name] = result
            rows = result if isinstance(result, list) else [result]
            show(f"overlap calibration: {name}", pd.DataFrame(rows))
            record("overlap_calibration", [0], values)
