"""Do two fine-tunes of different domains shift prompts of a third domain alike?

What two trainings share without the content: pairs of adapters, one of each domain's training null,
each trained on permuted careful answers. The i-th adapter of one goes with the i-th of the other,
so that pairs are independent. Two harmful fine-tunes share something specific to harm where they
lie above these pairs, and two benign ones do not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from torch import Tensor

from emlens.controls.null_training import TrainingNull
from emlens.foundation.errors import InputError
from emlens.foundation.notebooks import Brief
from emlens.geometry import direction_cosine
from emlens.geometry.prompt_cosine import centred_prompt_cosine
from emlens.stats import NullDistribution

PROMPT_COSINE: Final = "prompt_cosine"
"""The tested statistic: mean over prompts of the cosine of both centred shifts."""
MEANS: Final = "cosine_of_means"
"""Described beside it: benign fine-tunes are exceptional in it too (docs/nulls.md)."""

Shifts = Mapping[tuple[str, str], Tensor]
"""Site and position → shifts (row, d) on the third domain's prompts, in one order."""


def pair_statistics(first: Shifts, second: Shifts) -> pd.DataFrame:
    """One row per site, position and statistic, for the places that both have.

    Returns:
        Columns site, position, statistic, value; values lie in [-1, 1].
    """
    rows: list[dict[str, object]] = []
    for key, a in first.items():
        if key not in second:
            continue
        a, b = a.double(), second[key].double()
        values = {
            PROMPT_COSINE: centred_prompt_cosine(a, b),
            MEANS: float(direction_cosine(a.mean(0), b.mean(0))),
        }
        site, position = key
        for statistic, value in values.items():
            rows.append(
                {"site": site, "position": position, "statistic": statistic, "value": value}
            )
    return pd.DataFrame(rows, columns=["site", "position", "statistic", "value"])


@dataclass(frozen=True, eq=False, repr=False)
class DomainPairs(Brief):
    """What pairs of adapters on permuted careful answers of two domains share.

    Args:
        cells: pair, site, position, statistic, value (`pair_statistics`).
        pairs: how many; a p-value lies at 1 / (pairs + 1) and above.
    """

    cells: pd.DataFrame
    pairs: int

    @classmethod
    def of(cls, first: TrainingNull, second: TrainingNull) -> "DomainPairs":
        """Pairs of the adapters of two nulls that were made with the same further prompts.

        Raises:
            InputError: nulls without further prompts, or with other numbers of them.
        """
        numbers = [len(null.shift_files) for null in (first, second)]
        pairs = min(numbers)
        if pairs < 2:
            raise InputError(
                f"the nulls have {numbers[0]} and {numbers[1]} adapters with shifts on further"
                " prompts; give further and write_shifts in the NullSetting of both"
            )
        cells = []
        for number in range(pairs):
            of_pair = pair_statistics(first.shifts(number), second.shifts(number))
            cells.append(of_pair.assign(pair=number))
        return cls(pd.concat(cells, ignore_index=True), pairs)

    def distribution(
        self, statistic: str, position: str, sites: list[str]
    ) -> tuple[NullDistribution, list[str]]:
        """Means over those of the sites that every pair has, and these sites.

        Raises:
            InputError: no such site.
        """
        cells = self.cells[
            (self.cells["position"] == position) & (self.cells["statistic"] == statistic)
        ]
        counts = cells.groupby("site", sort=False)["pair"].nunique()
        common = [site for site in sites if counts.get(site, 0) == self.pairs]
        if not common:
            raise InputError(
                f"at position {position!r} no site has shifts with two components in all of"
                f" {self.pairs} pairs and in what is tested"
            )
        values = cells[cells["site"].isin(common)].groupby("pair")["value"].mean()
        label = f"{statistic} of {self.pairs} pairs of adapters on permuted careful answers"
        return NullDistribution(values.to_numpy(np.float64), label), common

    def test(self, first: Shifts, second: Shifts) -> pd.DataFrame:
        """Two fine-tunes beside these pairs: one row per position and statistic.

        Columns position, statistic, value, null_mean, null_q95, p, sites; each value is the mean
        over the sites that the fine-tunes and all pairs have. `p` is that of a value above the
        pairs (+1 rule).
        """
        rows = []
        cells = pair_statistics(first, second)
        for (position, statistic), at in cells.groupby(["position", "statistic"], sort=False):
            null, sites = self.distribution(str(statistic), str(position), list(at["site"]))
            value = float(at.loc[at["site"].isin(sites), "value"].mean())
            rows.append(
                {
                    "position": position,
                    "statistic": statistic,
                    "value": value,
                    "null_mean": null.mean,
                    "null_q95": null.quantile(0.95),
                    "p": null.p_value(value, "greater"),
                    "sites": len(sites),
                }
            )
        return pd.DataFrame(rows)
