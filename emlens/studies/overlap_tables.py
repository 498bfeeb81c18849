"""Further tables of `delta_overlap`: each evaluation group apart, several k, and the benign
fine-tune compared with an interval.

Groups have few prompts, and an overlap depends on how many: the training side is drawn down to each
group's number, in the overlap and in its null. The reference null asks what two disjoint sets of a
*benign* fine-tune's shifts share; it needs as many of them as both sides have.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats as scipy_stats
from torch import Tensor

from emlens.activations import Activations
from emlens.foundation.errors import InputError
from emlens.foundation.seeds import numpy_rng
from emlens.geometry import (
    covariance_overlap_null,
    reference_overlap_null,
    subspace_overlap,
    top_k_subspace,
)
from emlens.geometry.shifts import components_above_rounding
from emlens.stats import NullDistribution, adjust_p_values, cosine_of_means, mantel_test

BLOCKS = 8
"""Blocks of prompts that are left out in turn."""
SPLITS = 3
"""Pairs of disjoint sets of benign shifts."""
NEUTRAL = "neutral text"
OWN = "own domain"


@dataclass(frozen=True)
class Place:
    """One site and position of one fine-tune, with what every row says of it."""

    model: str
    site: str
    position: str

    @property
    def head(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "site": self.site,
            "layer": int(self.site.rsplit(".", 1)[1]),
            "position": self.position,
        }


def overlap(a: Tensor, b: Tensor, k: int) -> float:
    """Centred mean squared cosine of the top-k subspaces."""
    return float(
        subspace_overlap(
            top_k_subspace(a.double(), k, center=True), top_k_subspace(b.double(), k, center=True)
        )
    )


def by_group(
    place: Place,
    train: Tensor,
    groups: dict[str, Tensor],
    before: Tensor,
    k: int,
    *,
    draws: int,
    seed: int,
    nulls: dict[tuple[object, ...], NullDistribution],
    key: tuple[object, ...],
) -> list[dict[str, Any]]:
    """Training shifts against the shifts of each group, at the group's number of prompts.

    Groups that cannot carry k components are left out. p is Holm's over the groups of the place.
    """
    rows: list[dict[str, Any]] = []
    for group, shifts in groups.items():
        n = min(len(shifts), len(train))
        if n < k + 2 or components_above_rounding(shifts, before) < k:
            continue
        order = numpy_rng(seed, "equal n", place.model, group).permutation(len(train))[:n]
        value = overlap(train[np.sort(order).tolist()], shifts[:n], k)
        name = (*key, place.site, place.position, n, k)
        if name not in nulls:
            nulls[name] = covariance_overlap_null(
                torch.cov(before.double().T), n, n, k, center=True, draws=draws, seed=seed
            )
        null = nulls[name]
        means = cosine_of_means(train.double().numpy(), shifts.double().numpy())
        rows.append(
            {
                **place.head,
                "group": group,
                "k": k,
                "overlap": value,
                "null_mean": null.mean,
                "null_q95": null.quantile(0.95),
                "p": null.p_value(value),
                "cosine": means.value,
                "cosine_low": means.low,
                "cosine_high": means.high,
                "n": n,
            }
        )
    for row, p in zip(rows, adjust_p_values([r["p"] for r in rows]) if rows else [], strict=True):
        row["p_holm"] = float(p)
    return rows


def lead_over_benign(
    place: Place,
    tuned: tuple[Tensor, Tensor],
    benign: tuple[Tensor, Tensor],
    reference: Tensor | None,
    k: int,
    *,
    draws: int,
    seed: int,
    nulls: dict[tuple[object, ...], NullDistribution],
    key: tuple[object, ...],
) -> dict[str, Any]:
    """Overlap of the fine-tune minus that of its benign control, with a jackknife interval over
    blocks of prompts, and the reference null.

    Blocks of all four sets are left out in turn, evaluation prompts of both models together. `null`
    is the mean overlap of two disjoint sets of the benign fine-tune's own shifts on unrelated
    prompts (`reference_overlap_null`); missing where it has too few.
    """
    mine, other = overlap(*tuned, k), overlap(*benign, k)
    low, high = _jackknife(mine - other, tuned, benign, k, seed)
    null = (
        _reference(
            reference,
            tuned,
            k,
            draws,
            seed,
            nulls,
            (*key, place.site, place.position, len(tuned[0]), k),
        )
        if reference is not None
        else None
    )
    return {
        **place.head,
        "k": k,
        "overlap": mine,
        "benign": other,
        "lead": mine - other,
        "lead_low": low,
        "lead_high": high,
        "null_mean": np.nan if null is None else null.mean,
        "null_q95": np.nan if null is None else null.quantile(0.95),
        "p": np.nan if null is None else null.p_value(mine),
        "n": len(tuned[0]),
    }


def _jackknife(
    value: float, tuned: tuple[Tensor, Tensor], benign: tuple[Tensor, Tensor], k: int, seed: int
) -> tuple[float, float]:
    rng = numpy_rng(seed, "blocks of prompts")
    sizes = [len(side) for side in (*tuned, *benign)]
    blocks = [np.arange(n)[rng.permutation(n)] % BLOCKS for n in sizes]
    if sizes[1] == sizes[3]:
        blocks[3] = blocks[1]
    if min(sizes) - max(sizes) // BLOCKS - 1 < k + 1:
        return np.nan, np.nan
    values = []
    for block in range(BLOCKS):
        kept = [
            side[np.flatnonzero(labels != block).tolist()]
            for side, labels in zip((*tuned, *benign), blocks, strict=True)
        ]
        values.append(overlap(kept[0], kept[1], k) - overlap(kept[2], kept[3], k))
    left = np.array(values)
    error = float(np.sqrt((BLOCKS - 1) / BLOCKS * ((left - left.mean()) ** 2).sum()))
    half = float(scipy_stats.t.ppf(0.975, BLOCKS - 1)) * error
    return value - half, value + half


def _reference(
    reference: Tensor,
    tuned: tuple[Tensor, Tensor],
    k: int,
    draws: int,
    seed: int,
    nulls: dict[tuple[object, ...], NullDistribution],
    key: tuple[object, ...],
) -> NullDistribution | None:
    if key not in nulls:
        try:
            sizes, tested = (len(tuned[0]), len(tuned[1])), [side.double() for side in tuned]
            nulls[key] = reference_overlap_null(
                reference.double(),
                *sizes,
                k,
                center=True,
                tested=tested,
                splits=SPLITS,
                draws=draws,
                seed=seed,
            )
        except InputError:  # too few benign shifts, or of too low a rank
            return None
    return nulls[key]


def by_k(
    place: Place,
    tuned: tuple[Tensor, Tensor],
    before: Tensor,
    ks: Sequence[int],
    *,
    benign: tuple[Tensor, Tensor] | None,
    draws: int,
    seed: int,
    nulls: dict[tuple[object, ...], NullDistribution],
    key: tuple[object, ...],
) -> list[dict[str, Any]]:
    """The same overlap at several k, each beside its own null; k that the shifts do not carry are
    left out.
    """
    rows: list[dict[str, Any]] = []
    for k in ks:
        if k > min(len(tuned[0]) - 1, *(components_above_rounding(side, before) for side in tuned)):
            continue
        name = (*key, place.site, place.position, len(tuned[0]), k)
        if name not in nulls:
            nulls[name] = covariance_overlap_null(
                torch.cov(before.double().T),
                len(tuned[0]),
                len(tuned[1]),
                k,
                center=True,
                draws=draws,
                seed=seed,
            )
        value, null = overlap(*tuned, k), nulls[name]
        fits = benign is not None and k <= min(
            len(benign[0]) - 1, *(components_above_rounding(side, before) for side in benign)
        )
        rows.append(
            {
                **place.head,
                "k": k,
                "overlap": value,
                "null_mean": null.mean,
                "null_q95": null.quantile(0.95),
                "p": null.p_value(value),
                "benign": overlap(*benign, k) if fits and benign is not None else np.nan,
                "n": len(tuned[0]),
            }
        )
    return rows


def mantel(
    before: Tensor,
    shifts: Tensor,
    groups: Sequence[str],
    lengths: Sequence[float],
    *,
    draws: int,
    seed: int,
) -> dict[str, float]:
    """Do prompts that lie alike before shift alike? Stratified partial Mantel test over evaluation
    prompts.

    Cosines of centred activations against cosines of shifts; prompts swap within their group, and
    length and both norms are partialled out.
    """
    centred = torch.nn.functional.normalize(before - before.mean(0), dim=1)
    moved = torch.nn.functional.normalize(shifts, dim=1)
    covariates: list[Any] = [
        before.norm(dim=1).numpy(),
        shifts.norm(dim=1).numpy(),
        *([np.asarray(lengths)] if np.ptp(lengths) else []),
    ]
    strata = list(groups) if len(set(groups)) < len(groups) else None
    try:
        found = mantel_test(
            (centred @ centred.T).numpy(),
            (moved @ moved.T).numpy(),
            covariates=covariates,
            strata=strata,
            draws=draws,
            seed=seed,
        )
    except InputError:  # fewer than 4 prompts, or prompts that all shift alike
        return {"mantel": np.nan, "mantel_p": np.nan}
    return {"mantel": found.effect, "mantel_p": found.p}


def grouped(
    shifts: Activations, site: str, position: str, own: str, neutral: Activations | None
) -> dict[str, Tensor]:
    """Shifts by evaluation group; the fine-tune's own domain and neutral text by those names."""
    rows: dict[str, list[int]] = {}
    for number, group in enumerate(shifts.groups):
        rows.setdefault(OWN if group == own else str(group), []).append(number)
    found = {group: shifts[site, position][members] for group, members in sorted(rows.items())}
    return found if neutral is None else {**found, NEUTRAL: neutral[site, position]}
