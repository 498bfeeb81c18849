"""Overlap with an isotropic null for a grid of layers × positions × pairs, against the obvious
loop.

The loop is what one would write first: per cell `scipy.linalg.subspace_angles` of both bases, and
of 1,000 pairs of QR draws. It is timed on a few cells and multiplied. Beside it a loop that draws
its null once for all cells. Before anything is timed the overlaps are shown to agree, and the draws
to have one distribution. Seconds are those of the processor, one thread, so that other load on the
machine does not count.
"""

import time

import numpy as np
import torch
from scipy import stats
from scipy.linalg import subspace_angles

from benchmarks.records import record
from emlens.foundation.seeds import numpy_rng, torch_rng
from emlens.geometry import overlap_null, subspace_overlap

AGREEMENT = 1e-10
ALPHA = 1e-4


def angle_overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((np.cos(subspace_angles(a, b)) ** 2).mean())


def qr_null(d: int, k: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    return np.array(
        [
            angle_overlap(*(np.linalg.qr(rng.standard_normal((d, k)))[0] for _ in "ab"))
            for _ in range(draws)
        ]
    )


def timed_loop(
    bases: torch.Tensor, draws: int, cells: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Overlaps, draws, seconds of the draws of one cell, seconds of one cell's own overlap."""
    values, nulls, spent, own = [], [], [], []
    for a, b in bases.reshape(-1, *bases.shape[-3:])[:cells].numpy():
        start = time.process_time()
        values.append(angle_overlap(a, b))
        middle = time.process_time()
        nulls.append(qr_null(len(a), a.shape[1], draws, rng))
        spent.append(time.process_time() - middle)
        own.append(middle - start)
    return np.array(values), np.concatenate(nulls), float(np.median(spent)), float(np.median(own))


def measure(
    layers: int,
    positions: int,
    pairs: int,
    d: int,
    k: int,
    draws: int,
    loop_cells: int,
    seed: int = 0,
) -> dict[str, float]:
    rng = torch_rng(seed, "overlap grid")
    cells = layers * positions * pairs
    spent = 0.0
    # a layer at a time: bases of the whole grid would not fit beside each other
    for layer in range(layers):
        bases = torch.randn(positions, pairs, 2, d, k, dtype=torch.float64, generator=rng)
        if layer == 0:
            found, drawn, loop_draws_s, loop_own_s = timed_loop(
                bases, draws, loop_cells, numpy_rng(seed, "loop")
            )
            mine = subspace_overlap(bases[..., 0, :, :], bases[..., 1, :, :]).flatten().numpy()
            gap = np.abs(mine[:loop_cells] - found).max()
            agree = stats.ks_2samp(drawn, overlap_null(d, k, k, draws=draws).draws).pvalue
            if gap > AGREEMENT or agree < ALPHA:
                raise SystemExit(
                    f"overlaps differ by {gap:.1e}, draws agree with p={agree:.1e};"
                    " not timing different results"
                )
        start = time.process_time()
        if layer == 0:
            null = overlap_null(d, k, k, draws=draws)
        p = null.p_values(subspace_overlap(bases[..., 0, :, :], bases[..., 1, :, :]))
        spent += time.process_time() - start
        if p.shape != (positions, pairs):
            raise SystemExit(f"{p.shape} p-values for {positions} positions and {pairs} pairs")
    loop = cells * (loop_draws_s + loop_own_s)
    shared = loop_draws_s + cells * loop_own_s
    return {
        "cells": cells,
        "d": d,
        "k": k,
        "draws": draws,
        "loop_cells_timed": loop_cells,
        "seconds": spent,
        "loop_seconds_extrapolated": loop,
        "loop_with_one_null_seconds": shared,
        "over_loop": spent / loop,
        "over_loop_with_one_null": spent / shared,
    }


def main() -> None:
    found = measure(64, 4, 8, 5120, 8, 1000, 3)
    print("\noverlap grid: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()))
    record("overlap_grid_speed", [0], found)
