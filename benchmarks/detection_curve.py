"""A planted shared subspace: how often does each null see it, by signal-to-noise and number of
vectors?

Two sets of n vectors: noise of a known covariance, plus two directions that both sets share, each
with a variance of signal-to-noise times that of the strongest noise direction. Controls: no signal
(false alarms), and planted directions of which each set has its own (nothing is shared). Nulls side
by side: isotropic, the covariance of the noise, and a reference of 2n noise vectors of which only
the sample is known.
"""

from collections.abc import Iterator

import pandas as pd
import torch
from torch import Tensor

from benchmarks.null_calibration import ALPHA, SPECTRA, eigenvalues, gaussian, observed, share
from benchmarks.records import record, show
from emlens.foundation.seeds import torch_rng
from emlens.geometry import covariance_overlap_null, overlap_null, reference_overlap_null

PLANTED = 2


def pairs(
    values: Tensor, n: int, snr: float, shared: bool, count: int, seed: int
) -> tuple[Tensor, Tensor]:
    rng, d = torch_rng(seed, "pairs", n, str(snr), int(shared)), len(values)
    directions = [torch.linalg.qr(gaussian(rng, count, d, PLANTED)).Q for _ in range(2)]
    if shared:
        directions[1] = directions[0]
    a, b = (
        gaussian(rng, count, n, d) * values.sqrt()
        + snr**0.5 * gaussian(rng, count, n, PLANTED) @ w.mT
        for w in directions
    )
    return a, b


def curve(
    d: int,
    k: int,
    sizes: tuple[int, ...],
    ratios: tuple[float, ...],
    count: int,
    draws: int,
    references: int,
    seed: int,
) -> Iterator[dict[str, object]]:
    for spectrum in SPECTRA:
        values = eigenvalues(spectrum, d)
        for n in sizes:
            nulls = {
                "isotropic": [overlap_null(d, k, k, draws=10 * draws, seed=seed)],
                "covariance, known": [
                    covariance_overlap_null(
                        torch.diag(values), n, n, k, center=True, draws=5 * draws, seed=seed
                    )
                ],
                "reference of 2n": [
                    reference_overlap_null(
                        gaussian(torch_rng(seed, "reference", n, i), 2 * n, d) * values.sqrt(),
                        n,
                        n,
                        k,
                        center=True,
                        draws=draws,
                        seed=i,
                    )
                    for i in range(references)
                ],
            }
            for snr in (0.0, *ratios):
                for shared in (True, False) if snr else (False,):
                    found = observed(*pairs(values, n, snr, shared, count, seed), k, True).numpy()
                    planted = "shared" if shared else "apart" if snr else "none"
                    head = {
                        "noise": spectrum,
                        "n": n,
                        "signal-to-noise": snr,
                        "planted": planted,
                        "overlap": float(found.mean()),
                    }
                    yield head | {
                        name: float(sum(share(null, found)[0] for null in each) / len(each))
                        for name, each in nulls.items()
                    }


def main() -> None:
    pairs_a_row, references = 100, 2
    table = pd.DataFrame(
        curve(64, 4, (20, 50, 120), (0.25, 0.5, 1.0, 2.0, 4.0), pairs_a_row, 200, references, 0)
    )
    show(f"share of pairs with p <= {ALPHA}", table)
    record(
        "detection_curve",
        [0],
        {"pairs": pairs_a_row, "references": references, "rows": table.to_dict("records")},
    )
