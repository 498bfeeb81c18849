"""Table `overlap_difference` of `delta_overlap`: how the overlap of an update with itself differs
from its overlap with the benign update. A description: two runs of one recipe differ too.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats as scipy_stats
from torch import Tensor

from emlens.controls.null_training import TrainingNull
from emlens.geometry.covariance_overlap import variance_weighted_overlap
from emlens.studies.overlap_answers import same_prompts
from emlens.studies.overlap_shifts import SampledShifts


def difference_rows(
    name: str,
    sides: SampledShifts,
    benign: SampledShifts,
    null: TrainingNull | str,
) -> list[dict[str, Any]]:
    """Rows of `overlap_difference`: how the overlap of one update with itself differs from its
    overlap with the benign update, at each position.

    ov(h, h) − ½ [ov(h, b) + ov(b, h)], ov(x, y) the variance-weighted overlap of x's shifts on
    training and y's on evaluation prompts; mean over layers. Two runs of one recipe differ too, so
    0 is no null: beside it stands the same of the adapters of the null. The interval is a
    jackknife over evaluation domains (t), which are its unit.
    """
    common = [id for id in sides.evaluation.ids if id in set(benign.evaluation.ids)]
    own, other = sides.evaluation.select(common), benign.evaluation.select(common)
    groups = np.array([str(group) for group in own.groups])
    domains = list(dict.fromkeys(groups))
    is_twin = same_prompts(sides, benign)
    rows = []
    for position in own.positions:
        sites = _shared_sites(sides, benign, position)
        if not sites or len(domains) < 3:
            continue
        four = [
            (
                sides.train[site, position],
                own[site, position],
                benign.train[site, position],
                other[site, position],
            )
            for site in sites
        ]
        value = update_difference(four)
        without = [
            update_difference([_kept(each, groups != domain) for each in four])
            for domain in domains
        ]
        low, high = jackknife_t(value, np.array(without))
        rows.append(
            {
                "model": name,
                "position": position,
                "difference": value,
                "difference_low": low,
                "difference_high": high,
                **_permuted_differences(sites, position, benign, null, is_twin),
                "layers": len(sites),
                "domains": len(domains),
                "n": len(common),
            }
        )
    return rows


def _permuted_differences(
    sites: Sequence[str],
    position: str,
    benign: SampledShifts,
    null: TrainingNull | str,
    is_twin: bool,
) -> dict[str, float]:
    """Mean, 5 % and 95 % quantile of the difference of the null's adapters from the benign one,
    where that was compared on the null's own prompts.
    """
    names = ("null_mean", "null_low", "null_q95")
    if isinstance(null, str) or not is_twin:
        return dict.fromkeys(names, np.nan)
    values = []
    for adapter in range(len(null.shift_files)):
        train = null.shifts(adapter, "train")
        evaluation = null.shifts(adapter, "evaluation")
        four = [
            (
                train[site, position],
                evaluation[site, position],
                benign.train[site, position],
                benign.evaluation[site, position],
            )
            for site in sites
            if (site, position) in train and (site, position) in evaluation
        ]
        values.append(update_difference(four))
    cells = (np.mean(values), np.quantile(values, 0.05), np.quantile(values, 0.95))
    return dict(zip(names, map(float, cells), strict=True))


Four = tuple[Tensor, Tensor, Tensor, Tensor]
"""Shifts on training and on evaluation prompts of one update, and the same of another."""


def update_difference(layers: Sequence[Four]) -> float:
    """ov(h, h) − ½ [ov(h, b) + ov(b, h)], a mean over layers."""
    differences = []
    for train, evaluation, other_train, other_evaluation in layers:
        overlap = _overlap(train, evaluation)
        crossed = _overlap(train, other_evaluation) + _overlap(other_train, evaluation)
        differences.append(overlap - crossed / 2)
    return float(np.mean(differences))


def _overlap(train: Tensor, evaluation: Tensor) -> float:
    return float(variance_weighted_overlap(train.double(), evaluation.double(), center=True))


def _kept(each: Four, rows: "np.ndarray[Any, np.dtype[np.bool_]]") -> Four:
    """The same with some evaluation prompts alone, of both updates."""
    index = np.flatnonzero(rows).tolist()
    train, evaluation, other_train, other_evaluation = each
    return train, evaluation[index], other_train, other_evaluation[index]


def jackknife_t(value: float, without: "np.ndarray[Any, Any]") -> tuple[float, float]:
    """Ends of the 95 % interval: delete-one jackknife over domains, t with D − 1 degrees."""
    count = len(without)
    # (D − 1)/D times the sum of squared deviations
    error = np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())
    half = float(scipy_stats.t.ppf(0.975, count - 1)) * float(error)
    return value - half, value + half


def _shared_sites(sides: SampledShifts, benign: SampledShifts, position: str) -> list[str]:
    """Sites where both updates move prompts in two directions or more."""
    shared = []
    for site in sides.train.sites:
        components = (sides.at(site, position).components, benign.at(site, position).components)
        if min(components) >= 2:
            shared.append(site)
    return shared
