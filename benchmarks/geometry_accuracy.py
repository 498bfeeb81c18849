"""How far computed principal angles are from the true ones, where the truth is known to 50 digits.

Planted angles: a basis pair is built in *integers* and handed over as floats without rounding, so
what is measured is the library alone. Column i of B is 2^45 e_i + t_i e_{k+i} (or the two swapped),
whose angle with e_i is atan(t_i / 2^45) exactly; a Hadamard matrix, signs and permutations turn it
into dense columns, and blocks of D·Hadamard mix columns. Every entry stays below 2^53.
`conditioned` says how far mixing stretches the columns.

Against mpmath: random float matrices of at most 64 dimensions, orthonormalised and decomposed at 50
digits from the very floats that the library gets.
"""

import math
import time
from typing import Any

import mpmath
import numpy as np
import pandas as pd
import scipy.linalg
import torch

from benchmarks.records import record, show
from emlens.foundation.seeds import numpy_rng
from emlens.geometry import principal_angles

DIGITS = 50
UNIT = 2**45
EXACT = 2**53  # integers up to here are float64 numbers
GOAL = 1e-13
CELLS = tuple(
    (d, k_a, k_b)
    for d, pairs in {
        64: ((1, 1), (8, 8), (8, 24), (16, 5)),
        512: ((1, 1), (8, 8), (8, 128), (64, 32)),
        2048: ((8, 8), (128, 128), (40, 128)),
        8192: ((1, 1), (8, 8), (8, 128), (128, 40), (128, 128)),
    }.items()
    for k_a, k_b in pairs
)


def planted_tangents(m: int) -> list[tuple[int, bool]]:
    """m angles from 1e-12 to π/2 − 1e-12, as (t, near π/2): θ = atan(t / 2^45), or π/2 less
    that.
    """
    if m == 1:
        return [(round(1e-12 * UNIT), False)]
    low = (m + 1) // 2
    near = [round(math.tan(x) * UNIT) for x in np.logspace(-12, math.log10(math.pi / 4), low)]
    return [(t, False) for t in near] + [(t, True) for t in near[: m - low]]


def true_angles(tangents: list[tuple[int, bool]]) -> list[mpmath.mpf]:
    with mpmath.workdps(DIGITS):
        angles = [mpmath.atan(mpmath.mpf(t) / UNIT) for t, _ in tangents]
        return sorted(
            mpmath.pi / 2 - x if far else x for x, (_, far) in zip(angles, tangents, strict=True)
        )


def hadamard_rows(integers: np.ndarray) -> np.ndarray:
    """The Sylvester–Hadamard matrix times integer columns, by the fast transform."""
    out, step = integers.copy(), 1
    while step < len(out):
        pairs = out.reshape(-1, 2, step, out.shape[1])
        out = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).reshape(
            out.shape
        )
        step *= 2
    return out


def mixing(k: int, stretch: int, rng: np.random.Generator) -> np.ndarray:
    """An invertible integer matrix of blocks D·H, H Hadamard of 16 or fewer and D powers of two up
    to `stretch`.
    """
    mixed, start = np.zeros((k, k), dtype=np.int64), 0
    while start < k:
        size = min(16, 1 << ((k - start).bit_length() - 1))
        scales = np.array([1 << int(x) for x in rng.integers(0, stretch.bit_length(), size)])
        scales[0], scales[-1] = 1, stretch  # the whole range, where the block has two columns
        mixed[start : start + size, start : start + size] = scales[:, None] * scipy.linalg.hadamard(
            size, dtype=np.int64
        )
        start += size
    return mixed[rng.permutation(k)][:, rng.permutation(k)]


def planted_pair(
    d: int, k_a: int, k_b: int, *, stretch: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, list[tuple[int, bool]]]:
    """Dense float matrices (d, k_a) and (d, k_b) that hold the integers exactly; d is a power of
    two, at least k_a + k_b + min.
    """
    rng = numpy_rng(seed, "planted angles", d, k_a, k_b)
    m = min(k_a, k_b)
    tangents = planted_tangents(m)
    a, b = np.zeros((d, k_a), dtype=np.int64), np.zeros((d, k_b), dtype=np.int64)
    a[range(k_a), range(k_a)] = 1
    for i, (t, far) in enumerate(tangents):
        b[i, i], b[k_a + i, i] = (t, UNIT) if far else (UNIT, t)
    extra = range(m, k_b)
    b[[k_a + m + i - m for i in extra], extra] = UNIT  # directions of B outside everything in A
    # without places drawn at random, one Hadamard matrix would undo part of the other
    sides, places = [], rng.permutation(d)
    for side in (a, b):
        side = hadamard_rows(side[places]) @ mixing(side.shape[1], stretch, rng)
        if np.abs(side).max() > EXACT:
            raise SystemExit(
                f"an entry of {np.abs(side).max()} is no float64 integer;"
                " not measuring rounding of the construction"
            )
        sides.append(side)
    signs, order = rng.choice([-1, 1], size=(d, 1)), rng.permutation(d)
    first, second = ((side * signs)[order] for side in sides)
    return (
        torch.from_numpy(first.astype(np.float64)),
        torch.from_numpy(second.astype(np.float64)),
        tangents,
    )


def largest_error(found: np.ndarray, true: list[mpmath.mpf]) -> float:
    with mpmath.workdps(DIGITS):
        return float(
            max(abs(mpmath.mpf(float(x)) - y) for x, y in zip(np.sort(found), true, strict=True))
        )


def arc_cosines(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    return torch.acos(
        torch.linalg.svdvals(torch.linalg.qr(a).Q.T @ torch.linalg.qr(b).Q).clamp(max=1)
    ).numpy()


def planted_table(
    cells: tuple[tuple[int, int, int], ...] = CELLS,
    stretches: tuple[int, ...] = (1, 8),
    seeds: int = 3,
) -> pd.DataFrame:
    rows = []
    for d, k_a, k_b in cells:
        for stretch in stretches:
            errors, cosine_errors, scipy_errors, seconds = [], [], [], []
            for seed in range(seeds):
                a, b, tangents = planted_pair(d, k_a, k_b, stretch=stretch, seed=seed)
                true = true_angles(tangents)
                started = time.perf_counter()
                found = principal_angles(a, b).numpy()
                seconds.append(time.perf_counter() - started)
                errors += [
                    largest_error(found, true),
                    largest_error(principal_angles(b, a).numpy(), true),
                ]
                cosine_errors.append(largest_error(arc_cosines(a, b), true))
                scipy_errors.append(
                    largest_error(scipy.linalg.subspace_angles(a.numpy(), b.numpy()), true)
                )
            rows.append(
                {
                    "d": d,
                    "k_a": k_a,
                    "k_b": k_b,
                    "conditioned": stretch,
                    "smallest": float(true[0]),
                    "right_angle_less_largest": float(mpmath.pi / 2 - true[-1]),
                    "error": max(errors),
                    "error_scipy": max(scipy_errors),
                    "error_arc_cosine": max(cosine_errors),
                    "seconds": float(np.median(seconds)),
                }
            )
    return pd.DataFrame(rows)


def reference_angles(a: np.ndarray, b: np.ndarray) -> list[mpmath.mpf]:
    """Principal angles of two float matrices at 50 digits: Gram–Schmidt, then arc cosines of
    singular values.
    """
    with mpmath.workdps(2 * DIGITS):  # the arc cosine halves the digits of a small angle
        first, second = (mpmath.qr(mpmath.matrix(x.tolist()), mode="skinny")[0] for x in (a, b))
        cosines = mpmath.svd_r(first.T * second, compute_uv=False)
        return sorted(mpmath.acos(min(x, mpmath.mpf(1))) for x in cosines)


def tilted_pair(
    d: int, k_a: int, k_b: int, condition: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Random float matrices of given condition number; B leans against A by angles of all sizes, to
    the rounding of its floats.
    """
    rng = numpy_rng(seed, "tilted", d, k_a, k_b)
    a = rng.standard_normal((d, k_a))
    m = min(k_a, k_b)
    b = rng.standard_normal((d, k_b))
    b[:, :m] = a[:, :m] + np.logspace(-13, 3, m) * b[:, :m]
    out = []
    for side in (a, b):
        k = side.shape[1]
        turn = np.linalg.qr(rng.standard_normal((k, k)))[0] * np.logspace(
            0, math.log10(condition), k
        )
        out.append(np.linalg.qr(side)[0] @ turn @ np.linalg.qr(rng.standard_normal((k, k)))[0])
    return out[0], out[1]


def reference_table(
    dimensions: tuple[int, ...] = (16, 64),
    conditions: tuple[float, ...] = (1.0, 10.0, 1000.0),
    seeds: int = 2,
) -> pd.DataFrame:
    rows = []
    for d in dimensions:
        for k_a, k_b in ((1, 1), (4, 4), (3, 8), (12, 7)):
            for condition in conditions:
                errors, cosine_errors, forced = [], [], max(0, k_a + k_b - d)
                for seed in range(seeds):
                    a, b = tilted_pair(d, k_a, k_b, condition, seed)
                    true = reference_angles(a, b)
                    found = principal_angles(torch.from_numpy(a), torch.from_numpy(b)).numpy()
                    errors.append(largest_error(found, true))
                    cosine_errors.append(
                        largest_error(arc_cosines(torch.from_numpy(a), torch.from_numpy(b)), true)
                    )
                rows.append(
                    {
                        "d": d,
                        "k_a": k_a,
                        "k_b": k_b,
                        "conditioned": condition,
                        "forced_zeros": forced,
                        "smallest": float(true[forced]),
                        "error": max(errors),
                        "error_arc_cosine": max(cosine_errors),
                    }
                )
    return pd.DataFrame(rows)


def measure(**sizes: Any) -> dict[str, Any]:
    planted = planted_table(
        **{name: value for name, value in sizes.items() if name in ("cells", "stretches", "seeds")}
    )
    referenced = reference_table(
        **{name: value for name, value in sizes.items() if name in ("dimensions", "conditions")}
    )
    within = referenced[referenced["conditioned"] <= 10]
    return {
        "goal": GOAL,
        "digits": DIGITS,
        "worst_planted": float(planted["error"].max()),
        "worst_planted_scipy": float(planted["error_scipy"].max()),
        "worst_planted_arc_cosine": float(planted["error_arc_cosine"].max()),
        "worst_against_mpmath_condition_10": float(within["error"].max()),
        "worst_against_mpmath": float(referenced["error"].max()),
        "planted": planted.to_dict("records"),
        "against_mpmath": referenced.to_dict("records"),
    }


def main() -> None:
    torch.set_num_threads(1)
    found = measure()
    show(
        f"planted principal angles, exact construction (goal: error at most {GOAL})",
        pd.DataFrame(found["planted"]),
    )
    show(f"random matrices against {DIGITS} digits", pd.DataFrame(found["against_mpmath"]))
    record("geometry_accuracy", [0, 1, 2], found)
