"""Tables of `delta_overlap` by evaluation group and by k: description.

Groups have few prompts, and an overlap depends on how many: the training side is subsampled to each
group's number.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from emlens.activations import Activations
from emlens.foundation.seeds import numpy_rng
from emlens.geometry.shifts import components_above_rounding
from emlens.stats import cosine_of_means
from emlens.studies.null_columns import null_spread
from emlens.studies.overlap_measures import mean_cos2_overlap
from emlens.studies.overlap_nulls import NullsAtPlace, Pair
from emlens.studies.overlap_shifts import Place

NEUTRAL_GROUP = "neutral text"
OWN = "own domain"


def shifts_by_group(
    shifts: Activations, place: Place, own_domain: str, neutral: Tensor | None
) -> dict[str, Tensor]:
    """Shifts at a place by evaluation group, in the order of the names.

    The fine-tune's own domain is called `own domain`, and neutral text `neutral text`.
    """
    members: dict[str, list[int]] = {}
    for row, group in enumerate(shifts.groups):
        label = OWN if group == own_domain else str(group)
        members.setdefault(label, []).append(row)
    at_place = shifts[place.site, place.position]
    by_group = {group: at_place[rows] for group, rows in sorted(members.items())}
    if neutral is not None:
        by_group[NEUTRAL_GROUP] = neutral
    return by_group


def overlap_by_group(
    place: Place,
    train: Tensor,
    groups: Mapping[str, Tensor],
    before: Tensor,
    k: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Training shifts against the shifts of each group, at the group's number of prompts.

    Groups that cannot carry k components are left out.
    """
    rows: list[dict[str, Any]] = []
    for group, shifts in groups.items():
        n = min(len(shifts), len(train))
        # n centred rows have n − 1 components: k + 2 rows leave at least one beside the top k
        if n < k + 2 or components_above_rounding(shifts, before) < k:
            continue
        order = numpy_rng(seed, "equal n", place.model, group).permutation(len(train))[:n]
        train_rows = train[np.sort(order).tolist()]
        value = mean_cos2_overlap(train_rows.double(), shifts[:n].double(), k)
        cosine = cosine_of_means(train.double().numpy(), shifts.double().numpy())
        rows.append(
            {
                **place.columns,
                "group": group,
                "k": k,
                "overlap": value,
                "cosine": cosine.value,
                "cosine_low": cosine.low,
                "cosine_high": cosine.high,
                "n": n,
            }
        )
    return rows


def _overlap_of(pair: Pair, k: int) -> float:
    """Centred overlap of both sides, computed in float64."""
    return mean_cos2_overlap(pair[0].double(), pair[1].double(), k)


def overlap_by_k(
    place: Place,
    fine_tune: Pair,
    benign: Pair | None,
    nulls: NullsAtPlace,
    ks: Sequence[int],
) -> list[dict[str, Any]]:
    """The same overlap at several k, each beside its own null; k that the shifts do not carry are
    left out.
    """
    rows: list[dict[str, Any]] = []
    for k in ks:
        if not _carries(fine_tune, nulls.before, k):
            continue
        value, control = _overlap_of(fine_tune, k), np.nan
        if benign is not None and _carries(benign, nulls.before, k):
            control = _overlap_of(benign, k)
        rows.append(
            {
                **place.columns,
                "k": k,
                "overlap": value,
                **null_spread(nulls.covariance(len(fine_tune[0]), len(fine_tune[1]), k)),
                "benign": control,
                "n": len(fine_tune[0]),
            }
        )
    return rows


def _carries(pair: Pair, before: Tensor, k: int) -> bool:
    """Whether both sets of shifts have k components above rounding, and more than k rows."""
    components = [components_above_rounding(side, before) for side in pair]
    return k <= min(len(pair[0]) - 1, *components)
