"""Tables of `delta_overlap` by evaluation group, by k, and of the lead over the benign fine-tune.

Groups have few prompts, and an overlap depends on how many: the training side is subsampled to each
group's number, in the overlap and in its null. The reference null asks what two disjoint sets of a
*benign* fine-tune's shifts share; it needs as many of them as both sides have.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats as scipy_stats
from torch import Tensor

from emlens.activations import Activations
from emlens.foundation.seeds import numpy_rng
from emlens.geometry.shifts import components_above_rounding
from emlens.stats import NullDistribution, adjust_p_values, cosine_of_means
from emlens.studies.null_columns import null_columns
from emlens.studies.overlap_measures import mean_cos2_overlap
from emlens.studies.overlap_nulls import NullsAtPlace, Pair
from emlens.studies.overlap_shifts import Place

BLOCKS = 8
"""Blocks of prompts that are left out in turn."""
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
    nulls: NullsAtPlace,
    k: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Training shifts against the shifts of each group, at the group's number of prompts.

    Groups that cannot carry k components are left out. p is Holm's over the groups of the place.
    """
    rows: list[dict[str, Any]] = []
    for group, shifts in groups.items():
        n = min(len(shifts), len(train))
        # n centred rows have n − 1 components: k + 2 rows leave at least one beside the top k
        if n < k + 2 or components_above_rounding(shifts, nulls.before) < k:
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
                **null_columns(nulls.covariance(n, n, k), value),
                "cosine": cosine.value,
                "cosine_low": cosine.low,
                "cosine_high": cosine.high,
                "n": n,
            }
        )
    _correct(rows)
    return rows


def _correct(rows: Sequence[dict[str, Any]]) -> None:
    """Give every row its p, corrected by Holm over all of them."""
    if not rows:
        return
    corrected = adjust_p_values([row["p"] for row in rows])
    for row, p in zip(rows, corrected, strict=True):
        row["p_holm"] = float(p)


def lead_over_benign(
    place: Place, fine_tune: Pair, benign: Pair, k: int, null: NullDistribution | None, seed: int
) -> dict[str, Any]:
    """Overlap of the fine-tune minus that of its benign control, with a jackknife interval over
    blocks of prompts.

    Blocks of all four sets are left out in turn, evaluation prompts of both models together.

    Args:
        null: `OverlapNulls.of_benign_shifts`, or None where it is missing.
    """
    value, control = _overlap_of(fine_tune, k), _overlap_of(benign, k)
    low, high = _jackknife(value - control, fine_tune, benign, k, seed)
    return {
        **place.columns,
        "k": k,
        "overlap": value,
        "benign": control,
        "lead": value - control,
        "lead_low": low,
        "lead_high": high,
        **null_columns(null, value),
        "n": len(fine_tune[0]),
    }


def _overlap_of(pair: Pair, k: int) -> float:
    """Centred overlap of both sides, computed in float64."""
    return mean_cos2_overlap(pair[0].double(), pair[1].double(), k)


def _jackknife(
    lead: float, fine_tune: Pair, benign: Pair, k: int, seed: int
) -> tuple[float, float]:
    """Ends of the 95 % interval of a lead; `nan` where a set without a block cannot carry k."""
    rng = numpy_rng(seed, "blocks of prompts")
    sides = (*fine_tune, *benign)
    sizes = [len(side) for side in sides]
    blocks = [rng.permutation(n) % BLOCKS for n in sizes]
    # both models answer the same evaluation prompts, so they lose the same ones
    if sizes[1] == sizes[3]:
        blocks[3] = blocks[1]
    if min(sizes) - max(sizes) // BLOCKS - 1 < k + 1:
        return np.nan, np.nan
    leads = np.array([_lead_without(block, sides, blocks, k) for block in range(BLOCKS)])
    # delete-a-block jackknife: (B − 1)/B times the sum of squared deviations
    error = float(np.sqrt((BLOCKS - 1) / BLOCKS * ((leads - leads.mean()) ** 2).sum()))
    half = float(scipy_stats.t.ppf(0.975, BLOCKS - 1)) * error
    return lead - half, lead + half


def _lead_without(
    block: int, sides: Sequence[Tensor], blocks: Sequence[np.ndarray], k: int
) -> float:
    """The lead where the prompts of one block are left out of all four sets."""
    remaining = [
        side[np.flatnonzero(labels != block).tolist()]
        for side, labels in zip(sides, blocks, strict=True)
    ]
    train, evaluation, benign_train, benign_evaluation = remaining
    return _overlap_of((train, evaluation), k) - _overlap_of((benign_train, benign_evaluation), k)


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
                **null_columns(nulls.covariance(len(fine_tune[0]), len(fine_tune[1]), k), value),
                "benign": control,
                "n": len(fine_tune[0]),
            }
        )
    return rows


def _carries(pair: Pair, before: Tensor, k: int) -> bool:
    """Whether both sets of shifts have k components above rounding, and more than k rows."""
    components = [components_above_rounding(side, before) for side in pair]
    return k <= min(len(pair[0]) - 1, *components)
