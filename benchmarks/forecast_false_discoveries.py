"""How often does a forecast from activations that know nothing look like a discovery? Designs are
fixed here, before any is run.

Null data: 96 questions in 12 groups of 8, 6 layers × 2 positions of 64 coordinates (neighbouring
cells share half of their variance, coordinates fall off as i^-1/2), 7 penalties, nested 5 × 5
folds, 99 shuffles; scores are drawn apart. Tests at .05: the nested forecast against its shuffles
(cell and penalty chosen anew for each), and the best cell against the maximum over the grid. Beside
them what a hurried reader would do: the best cell against its own shuffles. In the clustered design
half of the variance of scores and of activations lies between groups, groups are held out, and
scores are dealt either among groups or, wrongly, among all questions. In the free design questions
are held out and both are independent of groups.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from benchmarks.records import record, show
from emlens.foundation.seeds import numpy_rng
from emlens.probes.features import MatrixFeatures
from emlens.probes.record import pooled_r2, site_table
from emlens.probes.shuffles import Shuffle, shuffled_targets
from emlens.probes.validation import NestedFolds, nested_ridge, outer_folds, training_means
from emlens.stats import NullDistribution, wilson_interval

ALPHA, GOAL = 0.05, 0.065
PENALTIES = tuple(float(a) for a in np.logspace(-1, 5, 7))


def drawn(
    groups: int, each: int, layers: int, positions: int, d: int, clustered: bool, seed: int
) -> tuple[list[MatrixFeatures], np.ndarray]:
    """Activations by cell and scores, independent of each other."""
    rng = numpy_rng(seed, "null forecast", int(clustered))
    n, scale = groups * each, np.arange(1, d + 1) ** -0.5

    def rows(width: int) -> np.ndarray:
        single = rng.standard_normal((n, width))
        if not clustered:
            return single
        of_groups = np.repeat(rng.standard_normal((groups, width)), each, axis=0)
        return (single + of_groups) / 2**0.5

    shared = rows(d)
    cells = [
        MatrixFeatures(f"{i}@{j}", (shared + rows(d)) * scale)
        for i in range(layers)
        for j in range(positions)
    ]
    return cells, 50 + 10 * rows(1)[:, 0]


def p_values(
    cells: list[MatrixFeatures],
    y: np.ndarray,
    groups: int,
    held: bool,
    shuffle: Shuffle,
    draws: int,
    folds: int,
    seed: int,
) -> dict[str, float]:
    """One run: nested R², its p, the smallest corrected p of the grid, and the smallest uncorrected
    one.
    """
    questions = [f"q{i}" for i in range(len(y))]
    labels = [f"g{i // (len(y) // groups)}" for i in range(len(y))]
    held_out = labels if held else questions
    targets = np.column_stack([y, *shuffled_targets(y, questions, labels, shuffle, draws, seed)])
    outer = outer_folds(held_out, folds, 1, seed)
    nested_folds = NestedFolds(held_out, outer, folds, seed)
    result = nested_ridge(cells, targets, nested_folds, alphas=PENALTIES, keep=1)
    means = training_means(targets, outer)
    r2 = pooled_r2(result.nested, means, targets)
    sites = site_table(result.candidates, result.squared, means, targets)
    single = 1 - result.squared / ((means - targets) ** 2).sum((0, 1))
    hurried = min(NullDistribution(row[1:], observed=float(row[0])).p_value() for row in single)
    nested, highest = NullDistribution(r2[1:]).p_value(float(r2[0])), float(sites["p_max"].min())
    return {
        "r2": float(r2[0]),
        "nested": nested,
        "maximum": highest,
        "best cell, uncorrected": hurried,
    }


def rates(design: str, found: list[dict[str, float]], window: bool) -> Iterator[dict[str, object]]:
    for test in ("nested", "maximum", "best cell, uncorrected"):
        hits = sum(one[test] <= ALPHA for one in found)
        rate = wilson_interval(hits, len(found))
        goal = window and test != "best cell, uncorrected"
        verdict = "" if not goal else "met" if rate.value <= GOAL else "missed"
        yield {
            "design": design,
            "test": test,
            "runs": len(found),
            "rejected": rate.value,
            "low": rate.low,
            "high": rate.high,
            "goal ≤ .065": verdict,
            "mean nested R²": float(np.mean([one["r2"] for one in found])),
        }


def measure(
    runs: int,
    clustered_runs: int,
    groups: int = 12,
    each: int = 8,
    layers: int = 6,
    positions: int = 2,
    d: int = 64,
    draws: int = 99,
    folds: int = 5,
) -> Iterator[list[dict[str, object]]]:
    """Rows of the table, design by design."""
    designs: tuple[tuple[str, bool, Shuffle, int, bool], ...] = (
        ("free, questions held out", False, "question", runs, True),
        ("clustered, groups held out, dealt among groups", True, "group", clustered_runs, True),
        (
            "clustered, groups held out, dealt among questions",
            True,
            "question",
            clustered_runs,
            False,
        ),
    )
    for name, clustered, shuffle, count, window in designs:
        found = []
        for seed in range(count):
            cells, y = drawn(groups, each, layers, positions, d, clustered, seed)
            found.append(p_values(cells, y, groups, clustered, shuffle, draws, folds, seed))
        yield list(rates(name, found, window))


def rates_table(values: list[dict[str, object]]) -> str:
    """Rates with their intervals, as markdown; a goal where the design is to hold its level."""
    lines = ["| design | test | rejected at .05 | runs | goal |", "|---|---|---|---|---|"]
    for row in values:
        goal = "≤ .065" if row["goal ≤ .065"] else "–"
        lines.append(
            f"| {row['design']} | {row['test']} | {row['rejected']:.3f} [{row['low']:.3f},"
            f" {row['high']:.3f}] | {row['runs']} | {goal} |"
        )
    return "\n".join(lines)


def main() -> None:
    table: list[dict[str, object]] = []
    for rows in measure(1000, 250):  # each design is kept as soon as it is there
        table += rows
        show(f"rejections at {ALPHA}", pd.DataFrame(table))
        record("forecast_false_discoveries", [0], table)
