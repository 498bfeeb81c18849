"""How often does each null call two independent sets related? Cells and windows are fixed here,
before any is run.

Known covariance: isotropic and power law (λ ∝ 1/i) × equal and unequal n × centred and not × k = 1
and 8, both nulls on the same simulated pairs. The window is [.045, .055] for the null that should
hold. Estimated covariance: plug-in and reference null, by number of reference vectors, spectrum and
k; window [.035, .065]. Wrong assumptions: a reference with a flatter or steeper spectrum than the
deltas, heavy tails. Relabellings: sign flips, labels, neutral text; window [.035, .065].
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.records import record, show
from emlens.foundation.seeds import torch_rng
from emlens.geometry import (
    covariance_overlap_null,
    label_permutation_null,
    neutral_text_null,
    overlap_null,
    reference_overlap_null,
    subspace_overlap,
    top_k_subspace,
)
from emlens.geometry.permutations import sign_flip_null
from emlens.stats import NullDistribution

ALPHA, STRICT, WIDE = 0.05, (0.045, 0.055), (0.035, 0.065)
SPECTRA = ("isotropic", "power law 1/i")


def eigenvalues(spectrum: str, d: int, power: float = 1.0) -> Tensor:
    ranks = torch.arange(1, d + 1, dtype=torch.float64)
    return ranks ** (-power if spectrum == "power law 1/i" else 0.0)


def gaussian(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=rng)


def observed(a: Tensor, b: Tensor, k: int, center: bool) -> Tensor:
    return subspace_overlap(
        top_k_subspace(a, k, center=center), top_k_subspace(b, k, center=center)
    )


def sample(rng: torch.Generator, values: Tensor, *shape: int, tails: float = 0.0) -> Tensor:
    """Gaussian vectors; with `tails`, of a multivariate t with so many degrees of freedom (an
    integer).
    """
    x = gaussian(rng, *shape, len(values)) * values.sqrt()
    if not tails:
        return x
    return x / gaussian(rng, *shape, int(tails)).square().mean(dim=-1, keepdim=True).sqrt()


def simulated(
    values: Tensor,
    n_a: int,
    n_b: int,
    k: int,
    center: bool,
    count: int,
    seed: int,
    tails: float = 0.0,
) -> np.ndarray:
    """Overlaps of `count` pairs of independent sets."""
    rng = torch_rng(seed, "simulated", n_a, n_b, k, int(center), str(float(values[1])), str(tails))
    found = []
    for start in range(0, count, 1000):
        a, b = (sample(rng, values, min(1000, count - start), n, tails=tails) for n in (n_a, n_b))
        found.append(observed(a, b, k, center))
    return torch.cat(found).numpy()


def row(
    null: str,
    cell: dict[str, object],
    rates: np.ndarray,
    trials: int,
    window: tuple[float, float] | None,
) -> dict[str, object]:
    """A rate of false positives with a 95 % interval: binomial for one null, over references for
    several.
    """
    rate = float(rates.mean())
    error = (
        float(rates.std(ddof=1) / len(rates) ** 0.5)
        if len(rates) > 1
        else (rate * (1 - rate) / trials) ** 0.5
    )
    verdict = "" if window is None else "inside" if window[0] <= rate <= window[1] else "outside"
    return {"null": null, **cell, "false positives": rate, "±": 1.96 * error, "window": verdict}


def share(null: NullDistribution, values: np.ndarray) -> np.ndarray:
    return np.array([(null.p_values(values) <= ALPHA).mean()])


def known(
    d: int,
    sizes: tuple[tuple[int, int], ...],
    ranks: tuple[int, ...],
    count: int,
    draws: int,
    seed: int,
) -> Iterator[dict[str, object]]:
    trials = int(1 / (1 / count + 1 / draws))  # simulations and draws both carry error
    for spectrum in SPECTRA:
        values = eigenvalues(spectrum, d)
        for n_a, n_b in sizes:
            for center in (False, True):
                for k in ranks:
                    found = simulated(values, n_a, n_b, k, center, count, seed)
                    cell: dict[str, object] = {
                        "spectrum": spectrum,
                        "n_a": n_a,
                        "n_b": n_b,
                        "centred": center,
                        "k": k,
                    }
                    null = overlap_null(d, k, k, draws=draws, seed=seed)
                    yield row(
                        "isotropic",
                        cell,
                        share(null, found),
                        trials,
                        STRICT if spectrum == "isotropic" else None,
                    )
                    null = covariance_overlap_null(
                        torch.diag(values), n_a, n_b, k, center=center, draws=draws, seed=seed
                    )
                    yield row("covariance, known", cell, share(null, found), trials, STRICT)


def estimated(
    d: int,
    n: int,
    ranks: tuple[int, ...],
    multiples: tuple[int, ...],
    references: int,
    draws: int,
    count: int,
    seed: int,
) -> Iterator[dict[str, object]]:
    for spectrum in SPECTRA:
        values = eigenvalues(spectrum, d)
        for k in ranks:
            found = simulated(values, n, n, k, True, count, seed)
            for multiple in multiples:
                rng = torch_rng(seed, "reference", spectrum, k, multiple)
                rates: dict[str, list[np.ndarray]] = {"covariance, plug-in": [], "reference": []}
                for i in range(references):
                    given = sample(rng, values, multiple * n)
                    null = covariance_overlap_null(given, n, n, k, center=True, draws=draws, seed=i)
                    rates["covariance, plug-in"].append(share(null, found))
                    if multiple >= 2:
                        rates["reference"].append(
                            share(
                                reference_overlap_null(
                                    given, n, n, k, center=True, draws=draws, seed=i
                                ),
                                found,
                            )
                        )
                cell: dict[str, object] = {
                    "spectrum": spectrum,
                    "n": n,
                    "k": k,
                    "reference rows": multiple * n,
                }
                for name, each in rates.items():
                    if each:
                        yield row(name, cell, np.concatenate(each), count, WIDE)


def wrong(
    d: int, n: int, k: int, count: int, references: int, seed: int
) -> Iterator[dict[str, object]]:
    values = eigenvalues("power law 1/i", d)
    null = covariance_overlap_null(torch.diag(values), n, n, k, center=True, draws=count, seed=seed)
    rng = torch_rng(seed, "heavy tails")
    heavy = [
        reference_overlap_null(
            sample(rng, values, 8 * n, tails=5.0), n, n, k, center=True, draws=200, seed=i
        )
        for i in range(references)
    ]
    for name, power, tails in (
        ("as the reference, i^-1", 1.0, 0.0),
        ("flatter, i^-0.5", 0.5, 0.0),
        ("steeper, i^-1.5", 1.5, 0.0),
        ("i^-1, t with 5 degrees", 1.0, 5.0),
    ):
        found = simulated(eigenvalues("power law 1/i", d, power), n, n, k, True, count, seed, tails)
        yield row(
            "covariance of i^-1",
            {"deltas": name, "n": n, "k": k},
            share(null, found),
            count // 2,
            None,
        )
    cell: dict[str, object] = {"deltas": "i^-1, t with 5 degrees", "n": n, "k": k}
    yield row(
        "reference of 8n such vectors",
        cell,
        np.concatenate([share(null, found) for null in heavy]),
        count,
        None,
    )


def relabelled(
    d: int, n: int, k: int, count: int, draws: int, seed: int
) -> Iterator[dict[str, object]]:
    rng, values = torch_rng(seed, "relabelled"), eigenvalues("power law 1/i", d)
    p: dict[str, list[float]] = {"sign flips": [], "labels": [], "neutral text": []}
    for i in range(count):
        a, b, c = (gaussian(rng, n, d) * values.sqrt() for _ in range(3))
        nulls = (
            sign_flip_null(a, draws=draws, seed=i),
            label_permutation_null(a + 1, b + 1, draws=draws, seed=i),
            neutral_text_null(a, b, c, k, center=True, draws=draws, seed=i),
        )
        for name, null in zip(p, nulls, strict=True):
            p[name].append(null.p_value())
    for name, each in p.items():
        yield row(name, {"n": n}, np.array([(np.array(each) <= ALPHA).mean()]), count, WIDE)


def measure(scale: float = 1.0, seed: int = 0) -> Iterator[tuple[str, pd.DataFrame]]:
    def sized(number: int, least: int) -> int:
        return max(least, int(scale * number))

    yield "wrong", pd.DataFrame(wrong(24, 20, 4, sized(10_000, 300), sized(25, 4), seed))
    yield "relabelled", pd.DataFrame(relabelled(24, 20, 4, sized(1200, 20), 199, seed))
    yield (
        "estimated",
        pd.DataFrame(
            estimated(24, 20, (1, 4), (1, 2, 8), sized(60, 4), 200, sized(5000, 300), seed)
        ),
    )
    yield (
        "known",
        pd.DataFrame(
            known(16, ((20, 20), (14, 40)), (1, 8), sized(25_000, 300), sized(50_000, 600), seed)
        ),
    )


def main() -> None:
    tables: dict[str, pd.DataFrame] = {}
    for name, table in measure():  # each table is kept as soon as it is there
        tables[name] = table
        show(f"false positives at {ALPHA}: {name}", table)
        record(
            "null_calibration",
            [0],
            {name: table.to_dict("records") for name, table in tables.items()},
        )
