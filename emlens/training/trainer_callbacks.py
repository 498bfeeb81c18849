"""A training callback of emlens in a plain transformers or TRL trainer."""

from typing import Any

from transformers import TrainerCallback

from emlens.training.stopping import StopRun, TrainingCallback


class _Adapted(TrainerCallback):
    def __init__(self, callback: TrainingCallback, trainer: Any):
        self.callback, self.trainer = callback, trainer
        self.stopped: str | None = None

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        begin = getattr(self.callback, "begin", None)
        if begin is not None:
            begin(model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        try:
            values = dict(self.callback(model, state.global_step) or {})
        except StopRun as stop:
            values = dict(stop.values)
            self.stopped = stop.reason
            control.should_training_stop = True
        if values:
            self.trainer.log(values)


def as_trainer_callback(callback: TrainingCallback, trainer: Any) -> TrainerCallback:
    """A callback `(model, step) -> mapping` as one for `trainer.add_callback`.

    What it returns goes through `trainer.log`; `StopRun` ends the run, and its reason is kept as
    `.stopped`. Where it has `begin(model)`, that is called before the first step.
    """
    return _Adapted(callback, trainer)
