"""What a test returns, and what every test refuses: samples without any spread."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate


@dataclass(frozen=True)
class TestResult:
    """One test.

    Args:
        statistic: t, F, U, W or whatever `method` names; of `permutation_test` the observed
            statistic.
        p: p-value.
        effect: effect size without a unit, named by `effect_name`; `nan` where none fits.
        estimate: what was tested, in the units of the data, with its interval.
        n: units that entered, both groups together, or pairs.
        method: test and side in words.
        effect_low, effect_high: interval of the effect at the level of the estimate's; `nan` where
            none is known.
        effect_name: which effect size it is.
        sizes: units of each group; of pairs one number.
    """

    __test__ = False  # not a test case, whatever its name suggests to pytest

    statistic: float
    p: float
    effect: float
    estimate: Estimate
    n: int
    method: str
    effect_low: float = math.nan
    effect_high: float = math.nan
    effect_name: str = ""
    sizes: tuple[int, ...] = ()

    def to_record(self) -> dict[str, Any]:
        """JSON-ready: every field, the estimate as a record of its own."""
        return asdict(self)


def require_spread(*samples: np.ndarray) -> None:
    """Raises:
    InputError: every sample is constant.
    """
    if all(np.ptp(sample) == 0 for sample in samples):
        raise InputError(
            "all values are equal within each sample, so there is no spread to test against"
        )
