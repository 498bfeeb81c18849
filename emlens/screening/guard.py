"""A training callback that watches the residual stream and raises an alarm before behaviour shows
what is being learnt.

Every few steps a few fixed prompts run through the model that is being trained, no deeper than the
deepest watched site. From the shift against the model before training come: its projection on a
reference direction, its cosine with it, the share of it that lies in a reference subspace, and a
forecast. Thresholds are quantiles over benign runs, or given. The callback changes nothing in
training: no random number is drawn, no weight or mode is left changed, so a run with it ends in the
same bytes.

Refused: nothing to watch, an adapter-less model whose state before training was not seen, a run
with `method="steering"`, and what `live_models` refuses.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from emlens.activations import Activations
from emlens.data import PromptSet, QuestionSet
from emlens.foundation.errors import InputError, StateError
from emlens.foundation.estimate import Estimate
from emlens.foundation.sites import Site
from emlens.geometry import Direction, Subspace
from emlens.probes import Forecaster
from emlens.screening.live_model import LiveModel, adapter_off, plain_model
from emlens.stats.intervals import clopper_pearson_interval
from emlens.training import StopRun
from emlens.training.streams import SteeredModel

QUANTITIES: Final = ("projection", "cosine", "overlap", "forecast")
"""What can be watched. All alarm upwards but the forecast, a score that falls."""
_LIVE: Final = ("model", "far", "shift", "stale")
"""Reasons for which a forecaster would refuse a model in training, which is none it was fitted on;
the guard shows what it says all the same.
"""


@dataclass(frozen=True)
class GuardThresholds:
    """From where on a quantity raises an alarm.

    Args:
        limits: quantity → value; an alarm is beyond it (below, of the forecast).
        false_alarm: the share of new benign runs, exchangeable with those calibrated on and no
            longer, that may raise one; `nan` where the limits were given.
        runs: benign runs calibrated on; 0 where the limits were given.
    """

    limits: Mapping[str, float]
    false_alarm: float = math.nan
    runs: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.limits if name not in QUANTITIES]
        if unknown or not self.limits:
            raise InputError(
                f"limits names {unknown or 'nothing'}; pass some of {', '.join(QUANTITIES)}"
            )
        for name, value in self.limits.items():
            if not math.isfinite(value):
                raise InputError(f"limits has {name}={value!r}; pass a finite number")


def calibrate_thresholds(
    runs: Sequence[pd.DataFrame],
    *,
    quantities: Sequence[str] = ("cosine",),
    false_alarm: float = 0.05,
) -> GuardThresholds:
    """Limits that a share of at most `false_alarm` of new benign runs goes beyond, from the worst
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
    GuardThresholds(dict.fromkeys(quantities, 0.0))
    share, n = false_alarm / len(quantities), len(runs)
    rank = math.ceil((n + 1) * (1 - share) - 1e-9)
    if rank > n:
        needed = math.ceil(1 / share - 1e-9) - 1
        raise InputError(
            f"runs holds {n} benign runs; a share of {false_alarm:g} over {len(quantities)}"
            f" quantities needs {needed} or more"
        )
    limits = {}
    for name in quantities:
        sign = -1.0 if name == "forecast" else 1.0
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
    """The first alarm of a run: the step, which quantity went beyond its limit, and where it
    was.
    """

    step: int
    quantity: str
    value: float
    limit: float

    @property
    def reason(self) -> str:
        side = "below" if self.quantity == "forecast" else "above"
        return (
            f"guard: {self.quantity} {self.value:.3g} is {side} {self.limit:.3g} at step"
            f" {self.step}"
        )


@dataclass(eq=False)
class Guard:
    """Watches a model in training; pass it among the `callbacks` of `fit`, or `trainer_callback` to
    another trainer.

    Args:
        prompts: a few, fixed; outside the training data, over the domains that should stay as they
            are.
        tokenizer: of the model that is trained.
        direction: where misaligned fine-tunes moved this family, with its site and position; from
            another fine-tune of the same parent.
        subspace: of such shifts; read where the direction is, or at `site` and `position`.
        forecaster: of `emlens.fit_forecaster`; its mean prediction over the prompts, from the model
            as it is now. context: what it needs.
        thresholds: None: watch only.
        every: check after every so many steps.
        stop: end the run at the alarm.
        patience: checks in a row that must be beyond a limit.
        chat_template: in place of the tokenizer's own.
    """

    prompts: PromptSet | QuestionSet
    tokenizer: Any
    direction: Direction | None = None
    subspace: Subspace | None = None
    forecaster: Forecaster | None = None
    thresholds: GuardThresholds | None = None
    every: int = 5
    stop: bool = False
    patience: int = 1
    site: str | None = None
    position: str = "last_prompt"
    context: Mapping[str, float] | None = None
    chat_template: str | None = None
    alarm: Alarm | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        for name in ("every", "patience"):
            if (
                isinstance(getattr(self, name), bool)
                or not isinstance(getattr(self, name), int)
                or getattr(self, name) < 1
            ):
                raise InputError(f"{name}={getattr(self, name)!r} must be an integer of 1 or more")
        if self.direction is not None:
            self.site, self.position = (
                str(self.direction.site),
                self.direction.position or self.position,
            )
        self.site = None if self.site is None else str(Site.parse(self.site))
        if self.subspace is not None and self.site is None:
            raise InputError(
                "subspace came without a place; pass site=, or a direction, whose place is taken"
            )
        watched = [name for name, given in self._given().items() if given]
        if not watched:
            raise InputError(
                "there is nothing to watch; pass a direction, a subspace or a forecaster"
            )
        asked = (
            []
            if self.thresholds is None
            else [name for name in self.thresholds.limits if name not in watched]
        )
        if asked:
            raise InputError(
                f"thresholds has a limit for {asked[0]!r}, which this guard does not measure;"
                f" it measures {', '.join(watched)}"
            )
        if self.stop and self.thresholds is None:
            raise InputError(
                "stop=True came without thresholds, so nothing would stop the run; pass thresholds"
            )
        self._rows: list[dict[str, float]] = []
        self._before: Tensor | None = None
        self._beyond: dict[str, int] = {}
        self._live: LiveModel | None = None

    def _given(self) -> dict[str, bool]:
        directed, spanned = self.direction is not None, self.subspace is not None
        return {
            "projection": directed,
            "cosine": directed,
            "overlap": spanned,
            "forecast": self.forecaster is not None,
        }

    @property
    def table(self) -> pd.DataFrame:
        """One row a check: step, and what was measured (projection: of the mean shift, in lengths
        of the direction).
        """
        return pd.DataFrame(
            self._rows, columns=["step", *(name for name, given in self._given().items() if given)]
        )

    def begin(self, model: Any) -> None:
        """Read the model before training. Needed before the first step of a full fine-tune; an
        adapter is switched off for it instead.

        Raises:
            InputError: a direction or subspace of another width, a site the model lacks, prompts
                that cannot be rendered, a model whose steering vectors are trained.
        """
        _require_readable(model)
        if self.site is None or (self.direction is None and self.subspace is None):
            return
        with adapter_off(model):
            self._before = self._read(model)[self.site, self.position].double()
        for name, given in (("direction", self.direction), ("subspace", self.subspace)):
            width = (
                None
                if given is None
                else given.d_model
                if isinstance(given, Direction)
                else given.basis.shape[-2]
            )
            if width is not None and width != self._before.shape[1]:
                raise InputError(
                    f"{name} has {width} coordinates, but the model's stream has"
                    f" {self._before.shape[1]}"
                )

    def __call__(self, model: Any, step: int) -> Mapping[str, Any]:
        """What is logged after a step: `guard/<quantity>` and `guard/alarm` (1 from the first alarm
        on); nothing between checks.

        Raises:
            StopRun: with `stop`, at the first alarm; it says why.
            InputError: a model whose steering vectors are trained.
            StateError: a model without an adapter that was not seen before training.
        """
        _require_readable(model)
        shifts = self.direction is not None or self.subspace is not None
        if shifts and self._before is None:
            if not hasattr(model, "disable_adapter"):
                raise StateError(
                    "the model has no adapter to switch off;"
                    " call guard.begin(model) before training, so that shifts can be measured"
                )
            self.begin(model)
        if step % self.every:
            return {}
        values = self._measure(model)
        self._rows.append({"step": step, **values})
        limits = {} if self.thresholds is None else self.thresholds.limits
        for name, limit in limits.items():
            beyond = values[name] < limit if name == "forecast" else values[name] > limit
            self._beyond[name] = self._beyond.get(name, 0) + 1 if beyond else 0
            if self._beyond[name] >= self.patience and self.alarm is None:
                self.alarm = Alarm(step, name, values[name], limit)
        told: dict[str, Any] = {f"guard/{name}": value for name, value in values.items()} | {
            "guard/alarm": int(self.alarm is not None)
        }
        if self.stop and self.alarm is not None:
            raise StopRun(self.alarm.reason, **told)
        return told

    def _measure(self, model: Any) -> dict[str, float]:
        found = self._read(model)
        values: dict[str, float] = {}
        if self._before is not None and self.site is not None:
            shift = found[self.site, self.position].double() - self._before
            if self.direction is not None:
                mean, vector = shift.mean(0), self.direction.vector.double().cpu()
                along = float(mean @ vector) / float(vector.norm())
                length = float(mean.norm())
                values |= {
                    "projection": along / float(vector.norm()),
                    "cosine": along / length if length > 0 else 0.0,
                }
            if self.subspace is not None:
                lengths = shift.norm(dim=1)
                inside = (shift @ self.subspace.basis.double().cpu()).norm(dim=1)
                values["overlap"] = float(torch.where(lengths > 0, inside / lengths, 0.0).mean())
        if self.forecaster is not None and self._live is not None:
            key, rows = (self.forecaster.site, self.forecaster.position), self._live.reading.rows
            acts = Activations(
                {key: found[key]},
                ids=rows.ids,
                groups=rows.groups,
                sites=[key[0]],
                positions=[key[1]],
                provenance={},
            )
            values["forecast"] = float(
                np.nanmean(self.forecaster.predict(acts, context=self.context, allow=_LIVE))
            )
        return values

    def _read(self, model: Any) -> dict[tuple[str, str], Tensor]:
        """Activations of the model as it is at every watched place, rows in the order of the
        prompts.
        """
        inner = plain_model(model)
        if (
            self._live is None
            or self._live.inner is not inner
            or self._live.model.device != next(inner.parameters()).device
        ):
            places = [] if self.site is None else [(self.site, self.position)]
            if self.forecaster is not None:
                places.append((self.forecaster.site, self.forecaster.position))
            asked = (
                self.prompts.prompts() if isinstance(self.prompts, QuestionSet) else self.prompts
            )
            self._live = LiveModel.of(
                inner, self.tokenizer, self.chat_template, list(asked), places
            )
        return self._live.read()

    def trainer_callback(self, trainer: Any) -> Any:
        """The guard as a callback of a plain transformers or TRL trainer:
        `trainer.add_callback(guard.trainer_callback(trainer))`.

        What it measures goes through `trainer.log`, so to every logger the trainer has; with `stop`
        the run ends at the alarm.
        """
        from emlens.training.trainer_callbacks import as_trainer_callback

        return as_trainer_callback(self, trainer)

    def state(self) -> dict[str, Any]:
        """What a run that is resumed has to give back, JSON-ready."""
        before = None if self._before is None else self._before.tolist()
        alarm = None if self.alarm is None else vars(self.alarm)
        return {
            "rows": list(self._rows),
            "beyond": dict(self._beyond),
            "alarm": alarm,
            "before": before,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._rows, self._beyond = [dict(row) for row in state["rows"]], dict(state["beyond"])
        self.alarm = None if state["alarm"] is None else Alarm(**state["alarm"])
        self._before = (
            None if state["before"] is None else torch.tensor(state["before"], dtype=torch.float64)
        )


def _require_readable(model: Any) -> None:
    if isinstance(plain_model(model), SteeredModel):
        raise InputError(
            "method='steering' trains vectors that lie outside the model,"
            " so a guard would read it without them; pass 'lora' or 'full'"
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
        """Whether a run that lost alignment was alarmed before it had."""
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
            " pass one pair a measurement, at least one"
        )
    if not lost > 0:
        raise InputError(f"lost={lost!r} must be positive, in the units of alignment")
    raised = alarm.step if isinstance(alarm, Alarm) else alarm
    when = next(
        (
            int(step)
            for step, value in zip(steps, alignment, strict=True)
            if value <= alignment[0] - lost
        ),
        None,
    )
    return LeadTime(
        raised, when, math.nan if raised is None or when is None else float(when - raised)
    )
