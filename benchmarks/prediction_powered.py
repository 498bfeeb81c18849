"""How often the 95 % interval of a rate corrected by labels holds the truth.

30 to 300 labelled answers of 1,000 more that only the judge has read, rates from 2 to 50 %, six
judges. `plain` is the t interval that prediction-powered inference comes with, with the power that
is best for it. `width` is that of the interval over the width of Wilson's of the labels alone.
"""

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.records import record, show
from emlens.foundation.seeds import numpy_rng
from emlens.judging.prediction_powered import prediction_powered_mean
from emlens.stats import wilson_interval

RATES: Final = (0.02, 0.06, 0.1, 0.2, 0.5)
LABELS: Final = (30, 60, 100, 300)
UNLABELLED: Final = 1000


def _flips(share: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    return lambda y, rng: np.where(rng.random(len(y)) < share, 1 - y, y)


def _misses_half(y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(len(y)) < 0.5, 0.0, y)


def _alarms(y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(len(y)) < 0.1, 1.0, y)


def _useless(y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (rng.random(len(y)) < 0.3).astype(float)


JUDGES: Final = {
    "is always right": _flips(0.0),
    "is wrong in 5 %": _flips(0.05),
    "is wrong in 15 %": _flips(0.15),
    "misses half of the misaligned": _misses_half,
    "calls 10 % of the aligned misaligned": _alarms,
    "answers by chance": _useless,
}


def cell(rate: float, labels: int, judge: str, *, draws: int, seed: int = 0) -> dict[str, Any]:
    """Coverage and width at one rate, number of labels and judge."""
    rng = numpy_rng(seed, "prediction_powered", judge, f"{rate}/{labels}")
    hits, plain_hits, no_width, widths = 0, 0, 0, []
    for _ in range(draws):
        y = (rng.random(labels + UNLABELLED) < rate).astype(float)
        f = JUDGES[judge](y, rng)
        estimate, _ = prediction_powered_mean(y[:labels], f[:labels], f[labels:])
        hits += estimate.low <= rate <= estimate.high
        alone = wilson_interval(int(y[:labels].sum()), labels)
        widths.append((estimate.high - estimate.low) / (alone.high - alone.low))
        low, high = plain_interval(y[:labels], f[:labels], f[labels:])
        plain_hits += low <= rate <= high
        no_width += low == high
    coverage = hits / draws
    return {
        "rate": rate,
        "labels": labels,
        "judge": judge,
        "draws": draws,
        "coverage": coverage,
        "error": math.sqrt(coverage * (1 - coverage) / draws),
        "width": float(np.mean(widths)),
        "plain": plain_hits / draws,
        "plain_without_width": no_width / draws,
    }


def plain_interval(y: np.ndarray, f: np.ndarray, rest: np.ndarray) -> tuple[float, float]:
    """The t interval of Angelopoulos et al., with the power that makes it shortest."""
    n = len(y)
    curvature = f.var() / n + rest.var() / len(rest)
    covariance = float(np.cov(y, f, ddof=0)[0, 1])
    power = float(np.clip(covariance / n / curvature, 0, 1)) if curvature > 0 else 0.0
    value = power * rest.mean() + (y - power * f).mean()
    variance = (y - power * f).var() / n + power**2 * rest.var() / len(rest)
    half = float(stats.t.ppf(0.975, n - 1)) * math.sqrt(variance * n / (n - 1))
    return float(value - half), float(value + half)


def coverage_table(evidence: dict[str, Any]) -> str:
    """Markdown for docs/judging.md: the smallest coverage over judges, and with which judge."""
    lines = [
        "| rate | labels | smallest coverage | with the judge that … | t interval | width |",
        "|---|---|---|---|---|---|",
    ]
    for (rate, labels), group in pd.DataFrame(evidence["cells"]).groupby(["rate", "labels"]):
        least = group.loc[group["coverage"].idxmin()]
        cells = [
            f"{100 * rate:g} %",
            str(labels),
            f"{100 * least['coverage']:.1f} ± {100 * least['error']:.1f} %",
            str(least["judge"]),
            f"{100 * group['plain'].min():.1f} %",
            f"{group['width'].min():.2f} to {group['width'].max():.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(draws: int = 1000) -> None:
    cells: list[dict[str, Any]] = []
    for rate in RATES:
        for labels in LABELS:
            for judge in JUDGES:
                cells.append(cell(rate, labels, judge, draws=draws))
        # kept if what follows is killed
        record("prediction_powered", [0], {"unlabelled": UNLABELLED, "cells": cells})
    show("coverage of 95 % intervals of a corrected rate", pd.DataFrame(cells))
