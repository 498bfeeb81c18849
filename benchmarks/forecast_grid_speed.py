"""A nested forecast over a grid of layers × positions × penalties, against scikit-learn's grid
search, and its permutation null.

The rival is `GridSearchCV(Pipeline(StandardScaler, Ridge))` in every outer fold of every cell, on
the same inner folds and with the same criterion (squared errors summed over folds). It is timed on
a few cells and multiplied; its predictions and penalties are compared before anything is reported.
Then the whole grid is repeated on shuffled scores, all in one call. Seconds are those of the
processor, one thread, so that other load on the machine does not count; seconds of the clock stand
beside them.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.records import record
from emlens.foundation.seeds import numpy_rng, torch_rng
from emlens.probes.features import MatrixFeatures
from emlens.probes.ridge import ALPHAS
from emlens.probes.validation import (
    NestedFolds,
    NestedPredictions,
    OuterFold,
    inner_pairs,
    nested_ridge,
    outer_folds,
)

AGREEMENT = 1e-6
"""Of predictions, in standard deviations of the score."""


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What the work gives, seconds of the processor, seconds of the clock."""
    clock, start = time.monotonic(), time.process_time()
    result = work()
    return result, time.process_time() - start, time.monotonic() - clock


def grid_search(
    cell: MatrixFeatures,
    y: np.ndarray,
    labels: list[str],
    outer: list[OuterFold],
    inner: int,
    seed: int,
) -> tuple[np.ndarray, list[float]]:
    """Out-of-fold predictions and chosen penalties of scikit-learn in one cell."""
    from sklearn.linear_model import Ridge
    from sklearn.metrics import make_scorer
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    squared = make_scorer(
        lambda truth, guess: ((truth - guess) ** 2).sum(), greater_is_better=False
    )
    values, predicted, penalties = cell.values, np.empty(len(y)), []
    for number, fold in enumerate(outer):
        cuts = []
        for fit, held_out in inner_pairs(labels, fold, number, inner, seed):
            # rows by their place among the training rows
            cuts.append((np.searchsorted(fold.train, fit), np.searchsorted(fold.train, held_out)))
        model = Pipeline([("scale", StandardScaler()), ("ridge", Ridge())])
        search = GridSearchCV(model, {"ridge__alpha": list(ALPHAS)}, cv=cuts, scoring=squared).fit(
            values[fold.train], y[fold.train]
        )
        predicted[fold.test] = search.predict(values[fold.test])
        penalties.append(float(search.best_params_["ridge__alpha"]))
    return predicted, penalties


def measure(
    layers: int,
    positions: int,
    n: int,
    d: int,
    folds: int,
    inner: int,
    permutations: int,
    rival_cells: int,
    seed: int = 0,
) -> dict[str, float]:
    cells, y, noise = planted(layers, positions, n, d, seed)
    labels = [f"q{i}" for i in range(n)]
    nested_folds = NestedFolds(labels, outer_folds(labels, folds, 1, seed), inner, seed)

    def forecast(targets: np.ndarray) -> NestedPredictions:
        return nested_ridge(cells, targets, nested_folds, keep=1)

    alone, seconds, clock = timed(lambda: forecast(y[:, None]))
    rival, gap = compared(cells, y, nested_folds, alone, rival_cells)
    shuffled = np.column_stack([y, *(noise.permutation(y) for _ in range(permutations))])
    null, null_seconds, null_clock = timed(lambda: forecast(shuffled))
    gaps = []
    for column in (0, permutations // 2):
        single = forecast(shuffled[:, [column]]).nested[..., 0]
        gaps.append(float(np.abs(null.nested[..., column] - single).max()) / float(y.std()))
    column_gap = max(gaps)
    if column_gap > AGREEMENT:
        raise SystemExit(
            f"a shuffled column forecast beside the others differs by {column_gap:.1e} from the"
            " same column alone"
        )
    return {
        "cells": len(cells),
        "penalties": len(ALPHAS),
        "questions": n,
        "d": d,
        "outer_folds": folds,
        "inner_folds": inner,
        "seconds": seconds,
        "clock_seconds": clock,
        "rival_cells_timed": rival_cells,
        "rival_seconds_a_cell": rival / len(cells),
        "rival_seconds_extrapolated": rival,
        "over_rival": seconds / rival,
        "largest_gap_in_sd": gap,
        "permutations": permutations,
        "null_seconds": null_seconds,
        "null_clock_seconds": null_clock,
        "threads": torch.get_num_threads(),
        "largest_gap_of_a_column_in_sd": column_gap,
    }


def planted(
    layers: int, positions: int, n: int, d: int, seed: int
) -> tuple[list[MatrixFeatures], np.ndarray, np.random.Generator]:
    """Activations by cell, a score that they forecast, and the generator of further draws."""
    rng = torch_rng(seed, "forecast grid")
    shared = torch.randn(n, d, generator=rng)  # neighbouring cells of a grid are alike
    scales = torch.arange(1, d + 1).pow(-0.5)
    cells = []
    for i in range(layers):
        for j in range(positions):
            values = (shared + torch.randn(n, d, generator=rng)) * scales
            cells.append(MatrixFeatures(f"{i}@{j}", values))
    noise = numpy_rng(seed, "forecast grid")
    y = 50 + 4 * shared[:, :20].sum(1).double().numpy() + 10 * noise.standard_normal(n)
    return cells, y, noise


def compared(
    cells: list[MatrixFeatures],
    y: np.ndarray,
    folds: NestedFolds,
    alone: NestedPredictions,
    rival_cells: int,
) -> tuple[float, float]:
    """(seconds of scikit-learn for the whole grid, from some cells; largest gap of predictions in
    standard deviations of the score).
    """
    rival_seconds, gap = [], 0.0
    for c in np.linspace(0, len(cells) - 1, rival_cells).astype(int):
        search = partial(
            grid_search, cells[c], y, list(folds.labels), list(folds.outer), folds.inner_folds
        )
        (predicted, penalties), spent, _ = timed(partial(search, folds.seed))
        rival_seconds.append(spent)
        difference = np.abs(predicted - alone.by_candidate[0, c, :, 0]).max()
        gap = max(gap, float(difference) / float(y.std()))
        single = nested_ridge([cells[c]], y[:, None], folds)
        chosen_penalties = [ALPHAS[number] for number in single.choices[:, 0, 1]]
        if not np.allclose(chosen_penalties, penalties, rtol=1e-12):
            raise SystemExit(
                f"penalties differ from scikit-learn's in cell {c}:"
                f" {single.choices[:, 0, 1]} against {penalties}"
            )
    if gap > AGREEMENT:
        raise SystemExit(
            f"predictions differ from scikit-learn's by {gap:.1e} standard deviations;"
            " not timing different results"
        )
    return float(np.median(rival_seconds)) * len(cells), gap


def goals_table(values: dict[str, float]) -> str:
    """Goals and what was reached, as markdown."""
    grid = (
        f"{values['cells']} cells × {values['penalties']} penalties,"
        f" nested {values['outer_folds']} × {values['inner_folds']}"
    )
    took = (
        f"{values['seconds']:.1f} s against {values['rival_seconds_extrapolated']:.0f} s,"
        f" from {values['rival_cells_timed']} cells"
    )
    rows = (
        (
            f"{grid}, {values['questions']} questions, d = {values['d']}: time ÷ `GridSearchCV`",
            "≤ 0.040",
            f"{values['over_rival']:.3f} ({took})",
        ),
        (
            "largest difference of predictions, in standard deviations of the score",
            "≤ 1e-6",
            f"{values['largest_gap_in_sd']:.0e}",
        ),
        (
            f"{values['permutations']:,} shuffles of that whole grid, seconds",
            "< 120 on 2 cores",
            f"{values['null_seconds']:.0f} on {values['threads']}",
        ),
    )
    return "\n".join(
        [
            "| figure | goal | measured |",
            "|---|---|---|",
            *(f"| {' | '.join(row)} |" for row in rows),
        ]
    )


def main() -> None:
    torch.set_num_threads(1)
    values = measure(24, 3, 320, 2048, 5, 5, 1000, 3)
    print("\nforecast grid: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
    record("forecast_grid_speed", [0], values)
