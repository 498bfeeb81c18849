"""A training callback that watches the residual stream and raises an alarm before behaviour shows
what is being learnt.

Every few steps a few fixed prompts run through the model that is being trained, no deeper than the
deepest watched site. From the shift against the model before training come: its projection on a
reference direction, its cosine with it, the share of it that lies in a reference subspace, and a
forecast. With `triggers` the same is measured under each of these texts, against the model before
training under the same text: what a defence hides behind a cue shows there first. The callback
changes nothing in training: no random number is drawn, no weight or mode is
left changed, so a run with it ends in the same bytes.

Refused: nothing to watch, an adapter-less model whose state before training was not read, a run
with `method="steering"`, and what `live_model` refuses.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from emlens.activations import Activations
from emlens.data import PromptSet, QuestionSet
from emlens.data.triggers import Trigger, require_names, triggered_prompts
from emlens.foundation.errors import InputError, StateError
from emlens.foundation.sites import Site
from emlens.geometry import Direction, Subspace
from emlens.models.live_module import plain_module
from emlens.probes import Forecaster
from emlens.screening.alarms import Alarm, GuardThresholds, is_beyond
from emlens.screening.live_model import LiveModel, adapter_off
from emlens.training import StopRun
from emlens.training.streams import SteeredModel

_LIVE: Final = ("model", "far", "shift", "stale")
"""Reasons for which a forecaster would refuse a model in training, which is none it was fitted on;
the guard shows its forecast all the same.
"""


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
            as it is now.
        thresholds: None: watch only.
        every: check after every N steps.
        stop: end the run at the alarm.
        patience: checks in a row that must be beyond a limit.
        site, position: of the subspace, where there is no direction.
        context: what the forecaster needs to know of the training file.
        chat_template: in place of the tokenizer's own.
        triggers: name → text under which the prompts are read too; each quantity is then also
            measured as `QUANTITY@NAME`, and may have a limit of its own.

    Raises:
        InputError: nothing to watch, a subspace without a place, a limit for what is not watched,
            `stop` without thresholds, a count below 1.
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
    triggers: Mapping[str, Trigger] = field(default_factory=dict)
    alarm: Alarm | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        _require_positive("every", self.every)
        _require_positive("patience", self.patience)
        require_names(self.triggers)
        if self.direction is not None:
            self.site = str(self.direction.site)
            self.position = self.direction.position or self.position
        if self.site is not None:
            self.site = str(Site.parse(self.site))
        self._require_something_to_watch()
        self._require_usable_thresholds()
        self._rows: list[dict[str, float]] = []
        self._before: Tensor | None = None
        self._checks_beyond: dict[str, int] = {}
        self._live: LiveModel | None = None

    def _require_something_to_watch(self) -> None:
        if self.subspace is not None and self.site is None:
            raise InputError(
                "subspace was given without a place;"
                " pass site=, or a direction, whose place is taken"
            )
        if not self._watched:
            raise InputError(
                "there is nothing to watch; pass a direction, a subspace or a forecaster"
            )

    def _require_usable_thresholds(self) -> None:
        if self.thresholds is None:
            if self.stop:
                raise InputError(
                    "stop=True was given without thresholds, so nothing would stop the run;"
                    " pass thresholds"
                )
            return
        for name in self.thresholds.limits:
            if name not in self._watched:
                raise InputError(
                    f"thresholds has a limit for {name!r}, which this guard does not measure;"
                    f" it measures {', '.join(self._watched)}"
                )

    @property
    def _watched(self) -> list[str]:
        names = []
        if self.direction is not None:
            names += ["projection", "cosine"]
        if self.subspace is not None:
            names.append("overlap")
        if self.forecaster is not None:
            names.append("forecast")
        return [name + end for end in self._endings for name in names]

    @property
    def _endings(self) -> list[str]:
        """What the names of quantities end in: nothing for the prompts as they are."""
        return ["", *(f"@{name}" for name in self.triggers)]

    @property
    def _chats(self) -> PromptSet:
        """The prompts without a trigger."""
        prompts = self.prompts
        return prompts.prompts() if isinstance(prompts, QuestionSet) else prompts

    @property
    def _watches_shifts(self) -> bool:
        return self.direction is not None or self.subspace is not None

    @property
    def table(self) -> pd.DataFrame:
        """One row per check: step, and what was measured (projection: of the mean shift, in lengths
        of the direction).
        """
        return pd.DataFrame(self._rows, columns=["step", *self._watched])

    def begin(self, model: Any) -> None:
        """Read the model before training. Needed before the first step of a full fine-tune; an
        adapter is switched off for it instead.

        Raises:
            InputError: a direction or subspace of another width, a site the model lacks, prompts
                that cannot be rendered, a model whose steering vectors are trained.
        """
        _require_readable(model)
        if self.site is None or not self._watches_shifts:
            return
        with adapter_off(model):
            self._before = self._read(model)[self.site, self.position].double()
        width = self._before.shape[1]
        if self.direction is not None:
            _require_width("direction", self.direction.d_model, width)
        if self.subspace is not None:
            _require_width("subspace", self.subspace.basis.shape[-2], width)

    def __call__(self, model: Any, step: int) -> Mapping[str, Any]:
        """What is logged after a step: `guard/<quantity>` and `guard/alarm` (1 from the first alarm
        on); nothing between checks.

        Raises:
            StopRun: with `stop`, at the first alarm; it says why.
            InputError: a model whose steering vectors are trained.
            StateError: a model without an adapter that was not read before training.
        """
        _require_readable(model)
        if self._watches_shifts and self._before is None:
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
        self._check_limits(step, values)
        logged: dict[str, Any] = {f"guard/{name}": value for name, value in values.items()}
        logged["guard/alarm"] = int(self.alarm is not None)
        if self.stop and self.alarm is not None:
            raise StopRun(self.alarm.reason, **logged)
        return logged

    def _check_limits(self, step: int, values: Mapping[str, float]) -> None:
        """Set the alarm where a quantity has been beyond its limit for `patience` checks in a
        row.
        """
        if self.thresholds is None:
            return
        for name, limit in self.thresholds.limits.items():
            if is_beyond(name, values[name], limit):
                self._checks_beyond[name] = self._checks_beyond.get(name, 0) + 1
            else:
                self._checks_beyond[name] = 0
            if self._checks_beyond[name] >= self.patience and self.alarm is None:
                self.alarm = Alarm(step, name, values[name], limit)

    def _measure(self, model: Any) -> dict[str, float]:
        acts = self._read(model)
        values: dict[str, float] = {}
        n = len(self._chats)
        for number, end in enumerate(self._endings):
            rows = slice(number * n, (number + 1) * n)
            for name, value in self._measure_rows(acts, rows).items():
                values[name + end] = value
        return values

    def _measure_rows(
        self, acts: Mapping[tuple[str, str], Tensor], rows: slice
    ) -> dict[str, float]:
        """What is measured on the prompts as they are, or under one trigger."""
        values: dict[str, float] = {}
        if self._before is not None and self.site is not None:
            shift = acts[self.site, self.position][rows].double() - self._before[rows]
            if self.direction is not None:
                values |= _along(shift.mean(0), self.direction.vector.double().cpu())
            if self.subspace is not None:
                values["overlap"] = _share_inside(shift, self.subspace.basis.double().cpu())
        if self.forecaster is not None and self._live is not None:
            values["forecast"] = self._forecast(self.forecaster, self._live, acts, rows)
        return values

    def _forecast(
        self,
        forecaster: Forecaster,
        live: LiveModel,
        acts: Mapping[tuple[str, str], Tensor],
        rows: slice,
    ) -> float:
        """Mean predicted score of these prompts, from the model as it is now."""
        place = (forecaster.site, forecaster.position)
        activations = Activations(
            {place: acts[place][rows]},
            ids=live.plan.rows.ids[rows],
            groups=live.plan.rows.groups[rows],
            sites=[place[0]],
            positions=[place[1]],
            provenance={},
        )
        predicted = forecaster.predict(activations, context=self.context, allow=_LIVE)
        return float(np.nanmean(predicted))

    def _read(self, model: Any) -> dict[tuple[str, str], Tensor]:
        """Activations of the model as it is at every watched place, rows in the order of the
        prompts.
        """
        inner = plain_module(model)
        live = self._live
        device = next(inner.parameters()).device
        if live is None or live.inner is not inner or live.model.device != device:
            places = []
            if self.site is not None:
                places.append((self.site, self.position))
            if self.forecaster is not None:
                places.append((self.forecaster.site, self.forecaster.position))
            prompts = list(self._chats)
            for name, trigger in self.triggers.items():
                prompts += triggered_prompts(self._chats, trigger, name)
            live = LiveModel.of(inner, self.tokenizer, self.chat_template, prompts, places)
            self._live = live
        return live.read()

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
        return {
            "rows": list(self._rows),
            "beyond": dict(self._checks_beyond),
            "alarm": None if self.alarm is None else vars(self.alarm),
            "before": None if self._before is None else self._before.tolist(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._rows = [dict(row) for row in state["rows"]]
        self._checks_beyond = dict(state["beyond"])
        alarm, before = state["alarm"], state["before"]
        self.alarm = None if alarm is None else Alarm(**alarm)
        self._before = None if before is None else torch.tensor(before, dtype=torch.float64)


def _along(mean: Tensor, vector: Tensor) -> dict[str, float]:
    """Projection of the mean shift on a direction, in lengths of that, and their cosine."""
    along, length = float(mean @ vector) / float(vector.norm()), float(mean.norm())
    return {
        "projection": along / float(vector.norm()),
        "cosine": along / length if length > 0 else 0.0,
    }


def _share_inside(shift: Tensor, basis: Tensor) -> float:
    """Mean over prompts of ‖Pδ‖ / ‖δ‖; 0 for a prompt that did not move."""
    lengths = shift.norm(dim=1)
    inside = (shift @ basis).norm(dim=1)
    return float(torch.where(lengths > 0, inside / lengths, 0.0).mean())


def _require_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name}={value!r} must be an integer of 1 or more")


def _require_width(name: str, width: int, expected: int) -> None:
    if width != expected:
        raise InputError(f"{name} has {width} coordinates, but the model's stream has {expected}")


def _require_readable(model: Any) -> None:
    if isinstance(plain_module(model), SteeredModel):
        raise InputError(
            "method='steering' trains vectors that lie outside the model,"
            " so a guard would read it without them; pass 'lora' or 'full'"
        )
