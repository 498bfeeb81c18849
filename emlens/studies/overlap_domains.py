"""Table `overlap_domains` of `delta_overlap`: do fine-tunes of two domains shift prompts of a third
alike, beside pairs of adapters on permuted careful answers and the benign pair?
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from emlens.activations import Activations
from emlens.controls.domain_pairs import MEANS, PROMPT_COSINE, DomainPairs, Shifts, pair_statistics
from emlens.foundation.errors import InputError
from emlens.geometry.shifts import components_above_rounding
from emlens.stats import adjust_p_values
from emlens.studies.overlap_answers import LEVEL, NO, SPECIFIC, UNDECIDED, UNSPECIFIC


@dataclass(frozen=True, eq=False)
class OnThird:
    """Shifts of one model on prompts of third domains, where they have two components or more."""

    name: str
    domain: str
    shifts: Shifts

    @classmethod
    def of(cls, name: str, domain: str, before: Activations, shifts: Activations) -> "OnThird":
        """Keep the places where something moved in more than one direction."""
        kept: dict[tuple[str, str], Tensor] = {}
        for key in shifts.keys:
            if components_above_rounding(shifts[key], before[key]) >= 2:
                kept[key] = shifts[key]
        return cls(name, domain, kept)


def domain_rows(
    first: OnThird,
    second: OnThird,
    kind: str,
    domains: str,
    pairs: DomainPairs | str,
) -> list[dict[str, Any]]:
    """Rows of `overlap_domains` for one pair of models: one per position.

    Args:
        kind: `harmful` or `benign`. domains: those of the harmful pair, by which a benign pair is
            found. pairs: or a sentence that says why there are none.
    """
    cells = pair_statistics(first.shifts, second.shifts)
    if not len(cells):
        return []
    n = len(next(iter(first.shifts.values())))
    rows = []
    for position, at_position in cells.groupby("position", sort=False):
        means = at_position.groupby("statistic")["value"].mean()
        row: dict[str, Any] = {
            "model": first.name,
            "second_model": second.name,
            "kind": kind,
            "domain_pair": domains,
            "position": position,
            "value": float(means[PROMPT_COSINE]),
            **dict.fromkeys(("null_mean", "null_q95", "p", "p_holm"), np.nan),
            "means_cosine": float(means[MEANS]),
            **dict.fromkeys(("means_null_mean", "means_null_q95", "means_p"), np.nan),
            "null_pairs": 0,
            "layers": at_position["site"].nunique(),
            "n": n,
            "answered": UNDECIDED,
            "why": pairs if isinstance(pairs, str) else "",
        }
        if not isinstance(pairs, str):
            row |= _against_pairs(first, second, pairs, str(position))
        rows.append(row)
    return rows


def _against_pairs(
    first: OnThird, second: OnThird, pairs: DomainPairs, position: str
) -> dict[str, Any]:
    """The cells of a pair that come from permuted pairs."""
    at_position = {key: rows for key, rows in first.shifts.items() if key[1] == position}
    try:
        table = pairs.test(at_position, second.shifts)
    except InputError as error:
        return {"why": str(error)}
    by_statistic = {row["statistic"]: row for row in table.to_dict(orient="records")}
    tested, described = by_statistic[PROMPT_COSINE], by_statistic[MEANS]
    return {
        "value": float(tested["value"]),
        "null_mean": float(tested["null_mean"]),
        "null_q95": float(tested["null_q95"]),
        "p": float(tested["p"]),
        "means_cosine": float(described["value"]),
        "means_null_mean": float(described["null_mean"]),
        "means_null_q95": float(described["null_q95"]),
        "means_p": float(described["p"]),
        "null_pairs": pairs.pairs,
        "layers": int(tested["sites"]),
    }


def with_answers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `overlap_domains` with what they answer.

    p of harmful pairs is corrected (Holm) over the pairs at one position. A pair is specific to
    harm where it lies above the permuted pairs and the benign pair of the same domains does not.
    """
    for position in dict.fromkeys(row["position"] for row in rows):
        harmful = [r for r in rows if r["position"] == position and r["kind"] == "harmful"]
        tested = [row for row in harmful if not np.isnan(row["p"])]
        if not tested:
            continue
        corrected = adjust_p_values([row["p"] for row in tested])
        for row, p_holm in zip(tested, corrected, strict=True):
            row["p_holm"] = float(p_holm)
            row["answered"], row["why"] = _domain_answer(row, _benign_row(rows, row), len(tested))
    return rows


def _benign_row(rows: Sequence[dict[str, Any]], harmful: dict[str, Any]) -> dict[str, Any] | None:
    """The benign pair that stands beside a harmful one; None where there is none."""
    for row in rows:
        is_beside = all(row[name] == harmful[name] for name in ("position", "domain_pair"))
        if row["kind"] == "benign" and is_beside:
            return row
    return None


def _domain_answer(
    row: dict[str, Any], benign: dict[str, Any] | None, tests: int
) -> tuple[str, str]:
    if row["p_holm"] > LEVEL:
        if tests / (1 + row["null_pairs"]) > LEVEL:
            return UNDECIDED, (
                f"{row['null_pairs']} pairs cannot reach p {LEVEL} corrected for {tests} tested;"
                f" {int(np.ceil(tests / LEVEL)) - 1} can"
            )
        return NO, ""
    if benign is None or np.isnan(benign["p"]):
        return UNDECIDED, (
            "it lies above permuted careful answers, but there is no benign pair of these domains"
            " that could say whether harm is what is shared"
        )
    if benign["p"] <= LEVEL:
        return UNSPECIFIC, ""
    return SPECIFIC, ""
