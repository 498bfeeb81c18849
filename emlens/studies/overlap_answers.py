"""Table `overlap_test` of `delta_overlap`: what a fine-tune's shifts share, beside what any
training on these prompts gives.

Every number is the mean over the layers that a fine-tune and all adapters of its null have, so that
no layer is chosen. What cannot be answered is a row too, which says what is missing.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import torch

from emlens.controls.null_training import TrainingNull
from emlens.controls.shift_statistics import (
    DESCRIBED,
    TESTED,
    split_half_statistics,
    statistics_of_shifts,
)
from emlens.studies.overlap_shifts import SampledShifts

LEVEL: Final = 0.05
YES: Final = "more"
NO: Final = "not more"
UNDECIDED: Final = "undecided"
IDENTITY_ANSWER: Final = "identity"
CEILING_ANSWER: Final = "cannot be shown"
SPECIFIC: Final = "specific to harm"
UNSPECIFIC: Final = "shared by benign fine-tunes too"
HALVINGS: Final = 20


def test_rows(
    name: str,
    sides: SampledShifts,
    benign: SampledShifts | None,
    null: TrainingNull | str,
    cells: pd.DataFrame,
    benign_cells: pd.DataFrame | None,
    seed: int,
    *,
    identity: bool,
) -> list[dict[str, Any]]:
    """Rows of `overlap_test` of one fine-tune: one per position and statistic.

    Args:
        cells, benign_cells: the statistics of both at every place (`cells_of`). null: or a
            sentence that says why there is none. identity: its shifts are one direction.
    """
    if not len(cells):
        return []
    tested = _tested(cells, null)
    rows = []
    for position, at_position in tested.groupby("position", sort=False):
        ceilings = _ceilings(sides, str(position), at_position["sites"].iloc[0], seed)
        answer, why = _answer(at_position, null, ceilings, identity)
        for row in at_position.to_dict(orient="records"):
            measure = str(row["statistic"])
            beside = _benign_beside(sides, benign, benign_cells, null, str(position), measure)
            is_tested = measure in TESTED
            rows.append(
                {
                    "model": name,
                    "position": position,
                    "measure": measure,
                    **{column: row[column] for column in ("value", *_OF_NULL)},
                    "split_half": ceilings.get(measure, np.nan),
                    **beside,
                    "adapters": row["adapters"],
                    "layers": len(row["sites"]),
                    "answered": answer if is_tested else "described",
                    "why": why if is_tested else "",
                    "n": len(sides.train),
                }
            )
    return rows


_OF_NULL: Final = ("null_mean", "null_low", "null_q95", "p", "p_holm", "smallest_p_holm")


def cells_of(sides: SampledShifts, k: int) -> pd.DataFrame:
    """What both sides share at every site and position (`statistics_of_shifts`)."""
    return statistics_of_shifts(
        (sides.before_train, sides.train), (sides.before_evaluation, sides.evaluation), k
    )


def _tested(cells: pd.DataFrame, null: TrainingNull | str) -> pd.DataFrame:
    """The values with what their null says; `sites`: those that count."""
    if not isinstance(null, str):
        table = null.test_cells(cells).rename(columns={"null_high": "null_q95"})
        table["sites"] = [null.common_sites(position, cells) for position in table["position"]]
        return table
    rows = []
    for position, at_position in cells.groupby("position", sort=False):
        means = at_position.groupby("statistic")["value"].mean()
        sites = list(at_position["site"].unique())
        for statistic in (*TESTED, *DESCRIBED):
            rows.append(
                {
                    "position": position,
                    "statistic": statistic,
                    "value": float(means[statistic]),
                    **dict.fromkeys(_OF_NULL, np.nan),
                    "adapters": 0,
                    "sites": sites,
                }
            )
    return pd.DataFrame(rows)


def _ceilings(
    sides: SampledShifts, position: str, sites: Sequence[str], seed: int
) -> dict[str, float]:
    """What halves of the training shifts share, by statistic; a mean over the sites."""
    values: dict[str, list[float]] = {name: [] for name in TESTED}
    for site in sites:
        halves = split_half_statistics(sides.train[site, position], HALVINGS, seed)
        for name, value in halves.items():
            values[name].append(value)
    return {name: float(np.mean(each)) for name, each in values.items()}


def same_prompts(sides: SampledShifts, benign: SampledShifts) -> bool:
    """Whether two fine-tunes of a parent were compared on the same prompts, whatever their ids."""
    for own, other in (
        (sides.before_train, benign.before_train),
        (sides.before_evaluation, benign.before_evaluation),
    ):
        key = own.keys[-1]
        a, b = own[key], other[key]
        # other batches of the same prompts differ by rounding
        if a.shape != b.shape or not torch.allclose(a, b, rtol=1e-2, atol=1e-3 * float(a.std())):
            return False
    return True


def _benign_beside(
    sides: SampledShifts,
    benign: SampledShifts | None,
    cells: pd.DataFrame | None,
    null: TrainingNull | str,
    position: str,
    measure: str,
) -> dict[str, float]:
    """The benign control's own value, and its p where it has the prompts of the null."""
    beside = {"benign_value": np.nan, "benign_p": np.nan}
    if benign is None or cells is None:
        return beside
    is_here = (cells["position"] == position) & (cells["statistic"] == measure)
    if not is_here.any():
        return beside
    beside["benign_value"] = float(cells.loc[is_here, "value"].mean())
    if isinstance(null, str) or not same_prompts(sides, benign):
        return beside
    table = null.test_cells(cells[cells["position"] == position])
    row = table[table["statistic"] == measure].iloc[0]
    return {"benign_value": float(row["value"]), "benign_p": float(row["p"])}


def _answer(
    rows: pd.DataFrame,
    null: TrainingNull | str,
    ceilings: Mapping[str, float],
    identity: bool,
) -> tuple[str, str]:
    """Whether a fine-tune shares more than any training on its prompts gives, and why it is not
    known where it is not.
    """
    if isinstance(null, str):
        return (IDENTITY_ANSWER if identity else UNDECIDED), null
    tested = rows[rows["statistic"].isin(TESTED)]
    if (tested["p_holm"] <= LEVEL).any():
        return YES, ""
    smallest = float(tested["smallest_p_holm"].iloc[0])
    if smallest > LEVEL:
        nulls_needed = int(np.ceil(len(TESTED) / LEVEL)) - 1
        return UNDECIDED, (
            f"{int(tested['adapters'].iloc[0])} adapters cannot reach p {LEVEL} for"
            f" {len(TESTED)} statistics; {nulls_needed} can"
        )
    below = [
        measure
        for measure, q95 in zip(tested["statistic"], tested["null_q95"], strict=True)
        if ceilings[measure] < q95
    ]
    if len(below) == len(tested):
        return CEILING_ANSWER, (
            "halves of the training prompts' own shifts share less than the null's 95 % quantile,"
            " so that no overlap could lie above it: more prompts are needed"
        )
    return NO, ""
