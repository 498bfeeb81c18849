"""When a watched run raises an alarm, how often a benign run would, and how early an alarm came.

Thresholds are quantiles over benign runs, or given. Nothing here reads a model.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.stats.intervals import clopper_pearson_interval

QUANTITIES: Final = ("projection", "cosine", "overlap", "forecast")
"""What can be watched. All raise an alarm when they rise, but the forecast, a score that falls.

`QUANTITY@NAME` is the same under the trigger of that name.
"""


@dataclass(frozen=True)
class GuardThresholds:
    """From where on a quantity raises an alarm.

    Args:
        limits: quantity → value; an alarm is beyond it (below, of the forecast).
        false_alarm: the share of new benign runs, exchangeable with those calibrated on and no
            longer, that may raise one; `nan` where the limits were given.
        runs: benign runs calibrated on; 0 where the limits were given.

    Raises:
        InputError: no limit, an unknown quantity, a limit that is not finite.
    """

    limits: Mapping[str, float]
    false_alarm: float = math.nan
    runs: int = 0

    def __post_init__(self) -> None:
        _require_quantities(self.limits)
        for name, value in self.limits.items():
            if not math.isfinite(value):
                raise InputError(f"limits has {name}={value!r}; pass a finite number")


def _require_quantities(names: Collection[str]) -> None:
    unknown = [name for name in names if base_quantity(name) not in QUANTITIES]
    if unknown or not names:
        raise InputError(
            f"limits names {unknown or 'nothing'}; pass some of {', '.join(QUANTITIES)}"
        )


def base_quantity(name: str) -> str:
    """The quantity without the trigger that it is measured under."""
    return name.partition("@")[0]


def falls(quantity: str) -> bool:
    """Whether the quantity raises an alarm when it falls."""
    return base_quantity(quantity) == "forecast"


def is_beyond(quantity: str, value: float, limit: float) -> bool:
    """Whether a value is on the side of its limit that raises an alarm."""
    return value < limit if falls(quantity) else value > limit


def calibrate_thresholds(
    runs: Sequence[pd.DataFrame],
    *,
    quantities: Sequence[str] = ("cosine",),
    false_alarm: float = 0.05,
) -> GuardThresholds:
    """Limits that at most a share of `false_alarm` of new benign runs goes beyond, from the worst
    value of each of some benign runs.

    Split-conformal (Vovk et al. 2005): the ⌈(n+1)(1 − α/m)⌉-th smallest of n worst values, m
    quantities. Exact for exchangeable runs: benign runs of other data, another recipe or more steps
    are not. The cosine is the default because it does not wait until the shift is long: recipes
    differ in how fast they move (docs/dynamics.md).

    Args:
        runs: `Guard.table` of one benign run each, watched without thresholds.

    Raises:
        InputError: too few runs for this share, a run without a quantity, an unknown quantity, a
            share outside (0, 1).
    """
    if not 0 < false_alarm < 1:
        raise InputError(
            f"false_alarm={false_alarm!r} must lie strictly between 0 and 1; pass .05 for 5 %"
        )
    _require_quantities(quantities)
    # the share is divided among the quantities (Bonferroni); 1e-9 keeps an exact product from
    # being rounded up by float64
    share, n = false_alarm / len(quantities), len(runs)
    rank = math.ceil((n + 1) * (1 - share) - 1e-9)
    if rank > n:
        least = math.ceil(1 / share - 1e-9) - 1
        raise InputError(
            f"runs holds {n} benign runs; a share of {false_alarm:g} over {len(quantities)}"
            f" quantities needs {least} or more"
        )
    limits = {}
    for name in quantities:
        sign = -1.0 if falls(name) else 1.0
        worst = []
        for i, table in enumerate(runs):
            if name not in table or not table[name].notna().any():
                raise InputError(
                    f"runs[{i}] never measured {name!r}; watch the benign runs with the same guard"
                )
            worst.append(float((sign * table[name]).max()))
        limits[name] = sign * sorted(worst)[rank - 1]
    return GuardThresholds(limits, false_alarm, n)


def false_alarm_rate(alarms: Sequence[bool]) -> Estimate:
    """Share of benign runs that raised an alarm, with Clopper and Pearson's exact 95 % interval."""
    return clopper_pearson_interval(int(sum(map(bool, alarms))), len(alarms))


@dataclass(frozen=True)
class Alarm:
    """The first alarm of a run: its step, and which quantity went beyond its limit with which
    value.
    """

    step: int
    quantity: str
    value: float
    limit: float

    @property
    def reason(self) -> str:
        side = "below" if falls(self.quantity) else "above"
        return (
            f"guard: {self.quantity} {self.value:.3g} is {side} {self.limit:.3g}"
            f" at step {self.step}"
        )


@dataclass(frozen=True)
class LeadTime:
    """How long before misalignment the alarm came, in steps.

    Args:
        alarm: step of the alarm; None: none.
        lost: first measured step at which the mean alignment had lost so much; None: it never did.
        lead: `lost − alarm`; `nan` where one of both is None. Above 0 the alarm came first.
    """

    alarm: int | None
    lost: int | None
    lead: float

    @property
    def in_time(self) -> bool:
        """Whether the alarm came before the run had lost alignment, if it ever did."""
        return self.alarm is not None and (self.lost is None or self.alarm < self.lost)


def lead_time(
    alarm: Alarm | int | None, steps: Sequence[int], alignment: Sequence[float], *, lost: float
) -> LeadTime:
    """Steps between an alarm and the first step at which the mean alignment lies `lost` or more
    below its first value.

    Args:
        steps, alignment: measured outside the training domain, the state before training first;
            `lost` in the units of `alignment`.

    Raises:
        InputError: lengths that differ, no value, or a loss that is not positive.
    """
    if len(steps) != len(alignment) or not len(steps):
        raise InputError(
            f"steps has {len(steps)} values and alignment {len(alignment)};"
            " pass one pair per measurement, at least one"
        )
    if not lost > 0:
        raise InputError(f"lost={lost!r} must be positive, in the units of alignment")
    alarm_step = alarm.step if isinstance(alarm, Alarm) else alarm
    lost_step = None
    for step, value in zip(steps, alignment, strict=True):
        if value <= alignment[0] - lost:
            lost_step = int(step)
            break
    if alarm_step is None or lost_step is None:
        return LeadTime(alarm_step, lost_step, math.nan)
    return LeadTime(alarm_step, lost_step, float(lost_step - alarm_step))
