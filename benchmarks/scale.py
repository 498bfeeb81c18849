"""What a study of a 14B-shaped model costs where no such model is at hand: pieces of it on
synthetic activations of its sizes.

`covariance nulls`: every null of one fine-tune in `delta_overlap`, from rows; at one place also
from the covariance (d, d), whose draws are compared first.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.records import EVIDENCE, record
from emlens.foundation.files import read_json
from emlens.geometry import covariance_overlap_null
from emlens.studies.delta_overlap import MOST_LANDMARK_DRAWS
from emlens.studies.overlap_nulls import OverlapNulls

LAYERS, D = 48, 5120
"""Of Qwen2.5-14B."""
MEASURED = 8
"""Layers whose nulls are drawn; the others cost as much."""
POSITIONS = 2
PROMPTS = 200
"""Of each side."""
K = 8
SAME = 1e-6


def stream(n: int, d: int, seed: int) -> Tensor:
    """Rows (n, d) in float32 with variances ∝ 1/i along random axes and a mean, as a stream has."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.arange(1, n + 1).pow(-0.5)
    axes = torch.randn(n, d, generator=generator) / d**0.5
    return torch.randn(n, n, generator=generator) * scales @ axes + 0.1


def covariance_nulls(
    layers: int = LAYERS,
    measured: int = MEASURED,
    positions: int = POSITIONS,
    n: int = PROMPTS,
    d: int = D,
    k: int = K,
    draws: int = MOST_LANDMARK_DRAWS,
    same: float = SAME,
) -> dict[str, Any]:
    """Seconds of the nulls of some layers, of all of them at that rate, and of one null from a
    covariance (d, d).
    """
    before = stream(2 * n, d, seed=0)
    started = time.process_time()
    moments = torch.cov(before.double().T)
    whole = covariance_overlap_null(moments, n, n, k, center=True, draws=draws)
    whole_seconds = time.process_time() - started
    nulls = OverlapNulls(draws, seed=0)
    started = time.process_time()
    of_rows = nulls.at((-1, 0), before).covariance(n, n, k)
    one_seconds = time.process_time() - started
    gap = float(abs(of_rows.draws - whole.draws).max())
    if not gap < same:
        raise SystemExit(f"draws from rows and from the covariance differ by {gap:.2g}")
    seconds = 0.0
    for layer in range(measured):
        for position in range(positions):
            place = nulls.at((layer, position), stream(2 * n, d, seed=1 + layer))
            started = time.process_time()
            for center in (False, True):
                place.covariance(n, n, k, center=center)
            seconds += time.process_time() - started
    return {
        "layers": layers,
        "measured_layers": measured,
        "positions": positions,
        "rows": 2 * n,
        "d": d,
        "draws": draws,
        "nulls": layers * positions * 2,
        "cpu_s_of_measured": seconds,
        "cpu_s": seconds / measured * layers,
        "cpu_s_of_one": one_seconds,
        "cpu_s_of_one_from_covariance": whole_seconds,
        "gap": gap,
    }


PIECES: dict[str, Callable[[], dict[str, Any]]] = {"covariance nulls": covariance_nulls}


def main(names: Sequence[str] = tuple(PIECES)) -> None:
    """Measure some pieces; the others stay as they are."""
    torch.set_num_threads(1)
    path = EVIDENCE / "scale.json"
    values: dict[str, Any] = read_json(path)["values"] if path.exists() else {}
    for name in names:
        values[name] = PIECES[name]()
        record("scale", [0], values)
