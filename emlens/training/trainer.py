"""The one place that drives `transformers.Trainer`; imported only when something is trained.

Each part of an optimiser step (one, unless the recipe accumulates) is one item of a dataset, read
in order, so a run depends on nothing but recipe, data and model. Nothing is evaluated, reported or
uploaded here, and the Trainer's own pickled checkpoints are off: `emlens.training.resuming` keeps
what a run needs to go on.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from emlens.foundation.errors import InputError
from emlens.foundation.seeds import derive_seed
from emlens.training.launchers import one_process
from emlens.training.objectives import SCALES, Loss, ObjectiveLoss
from emlens.training.optimisers import make_optimiser, make_schedule
from emlens.training.parallel import LossOfPart
from emlens.training.recipes import Recipe
from emlens.training.resuming import Snapshots
from emlens.training.stopping import StopRun, TrainingCallback
from emlens.training.trackers import Report

Batches = Callable[[int], Sequence[Mapping[str, Tensor]]]
"""0-based step to the parts that its rows are run in; `share` in a part is its weight in the step's
loss (none: 1).
"""


@contextmanager
def seeded(seed: int, *names: str | int) -> Iterator[None]:
    """Global random states set from a seed inside, and as they were outside."""
    states = random.getstate(), np.random.get_state()
    value = derive_seed(seed, *names)
    with torch.random.fork_rng():
        random.seed(value)
        np.random.seed(value % 2**32)
        torch.manual_seed(value)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


class _Parts(torch.utils.data.Dataset[Mapping[str, Tensor]]):
    """Parts of the steps from `start` on, one after the other."""

    def __init__(self, batches: Batches, start: int, steps: int, parts: int):
        self.batches = batches
        self.start = start
        self.steps = steps
        self.parts = parts
        self._last: tuple[int, Sequence[Mapping[str, Tensor]]] = (-1, ())

    def __len__(self) -> int:
        return (self.steps - self.start) * self.parts

    def __getitem__(self, index: int) -> Mapping[str, Tensor]:
        step, part = divmod(index, self.parts)
        if self._last[0] != step:
            self._last = step, self.batches(self.start + step)
        return self._last[1][part]


class _OneDevice(TrainingArguments):
    """Settings of a run on the device that its model is on, however many devices are visible.

    The Trainer takes all of them by itself: it splits each batch over them and reads as many
    batches at a step. A run here has one device, and its step one batch.
    """

    run_device: torch.device | None = None

    @property
    def n_gpu(self) -> int:
        return min(1, super().n_gpu)

    @property
    def device(self) -> torch.device:
        return self.run_device or super().device


class _StepTrainer(Trainer):
    """The Trainer with a loss passed in; for SAM it keeps the parts of a step, which are run again
    at the perturbed weights.
    """

    loss_is_scaled_for_ga = True  # by the shares of the parts

    def __init__(self, *, loss: Loss, recipe: Recipe, **kwargs: Any):
        super().__init__(**kwargs)
        self.step_loss, self.clip = loss, recipe.clip
        self._parts_of_step: list[Any] = []
        self._has_two_passes = recipe.optimiser == "sam"
        if self._has_two_passes:
            self.optimizer.again = self._second_pass

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        share = inputs.get("share")
        if isinstance(_inside(model), LossOfPart):
            batch = {name: value for name, value in inputs.items() if name not in SCALES}
            # through the wrapper, which adds the gradients of all processes
            return model(batch, share)
        # ObjectiveLoss needs the shares: it weighs each of its terms by its own tokens.
        if not isinstance(self.step_loss, ObjectiveLoss):
            inputs = {name: value for name, value in inputs.items() if name not in SCALES}
        loss = self.step_loss(model, inputs)
        if share is not None:
            loss = loss * share
        return (loss, None) if return_outputs else loss

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> Tensor:
        if self._has_two_passes:
            self._parts_of_step.append(inputs)
        return super().training_step(model, inputs, num_items_in_batch)

    def _second_pass(self) -> None:
        """The gradient at the perturbed weights, clipped as the Trainer clips the first."""
        with getattr(self.step_loss, "unlogged", nullcontext)():
            for inputs in self._parts_of_step:
                self.compute_loss(self.model, self._prepare_inputs(inputs)).backward()
        self._parts_of_step = []
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)


def _inside(model: nn.Module) -> nn.Module:
    """The module that DistributedDataParallel wraps, or the model itself."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        inner: nn.Module = model.module
        return inner
    return model


class _Recorder(TrainerCallback):
    """One row per step; the caller's callbacks run at the end of each step and may stop the run;
    snapshots are taken when due.
    """

    def __init__(
        self,
        callbacks: Sequence[TrainingCallback],
        snapshots: Snapshots | None,
        on_step: Callable[[int, int], None] | None,
        start: int,
        steps: int,
        rows: list[dict[str, Any]],
        report: Report | None = None,
    ):
        self.report = report
        self.callbacks = callbacks
        self.snapshots = snapshots
        self.on_step = on_step
        self.start = start
        self.steps = steps
        self.rows = rows
        self.extra: dict[str, Any] = {}
        self.stopped: str | None = None
        self._begun = False
        self.trained: nn.Module | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self._begun and self.snapshots is not None:
            self.snapshots.restore_random()
        self._begun = True

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.extra = {}
        step = self.start + state.global_step
        model = self.trained or model
        try:
            for callback in self.callbacks:
                self.extra |= dict(callback(model, step) or {})
        except StopRun as stop:
            self.stopped = stop.reason
            self.extra |= stop.values
            control.should_training_stop = True
        if self.on_step is not None:
            self.on_step(step, self.steps)

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: Mapping[str, Any] | None = None,
        model: Any = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        if logs and "loss" in logs and "grad_norm" in logs:
            step = self.start + state.global_step
            row = {
                "step": step,
                "loss": float(logs["loss"]),
                "learning_rate": float(logs["learning_rate"]),
            }
            if not np.isfinite(row["loss"]):
                raise InputError(
                    f"loss became {row['loss']} at step {row['step']};"
                    f" lower learning_rate={args.learning_rate} or clip"
                )
            row |= {"grad_norm": float(logs["grad_norm"]), **self.extra}
            self.rows.append(row)
            if self.report is not None:
                self.report(step, row)
            if self.snapshots is not None and self.stopped is None and self.snapshots.due(step):
                self.snapshots.take(
                    step,
                    model,
                    getattr(optimizer, "optimizer", optimizer),
                    self.rows,
                    self.callbacks,
                )


def train(
    recipe: Recipe,
    module: nn.Module,
    batches: Batches,
    loss: Loss,
    scratch: Path,
    callbacks: Sequence[TrainingCallback] = (),
    snapshots: Snapshots | None = None,
    on_step: Callable[[int, int], None] | None = None,
    report: Report | None = None,
    on_resume: Callable[[int], None] | None = None,
) -> tuple[list[dict[str, Any]], str | None]:
    """Train `module` in place, from its newest snapshot on; rows of the log, and the reason if a
    callback stopped the run.

    Args:
        module: a `LossOfPart` where several processes train this run together.
        on_step: told the steps done and all steps. on_resume: told the step of the snapshot.
        report: told each row of the log.
    """
    optimiser = make_optimiser(recipe, module)
    start, rows = (0, []) if snapshots is None else snapshots.restore(module, optimiser, callbacks)
    if start == recipe.steps:
        return rows, None
    if on_resume is not None and start:
        on_resume(start)
    schedule = make_schedule(recipe, optimiser, start)
    recorder = _Recorder(callbacks, snapshots, on_step, start, recipe.steps, rows, report)
    alone: AbstractContextManager[None] = nullcontext()
    if not isinstance(module, LossOfPart):
        alone = one_process()
    with alone:
        _run_trainer(recipe, module, batches, loss, scratch, (optimiser, schedule), recorder)
    return recorder.rows, recorder.stopped


def _run_trainer(
    recipe: Recipe,
    module: nn.Module,
    batches: Batches,
    loss: Loss,
    scratch: Path,
    optimizers: tuple[Any, Any],
    recorder: _Recorder,
) -> None:
    start = recorder.start
    device = next(module.parameters()).device
    parts = recipe.accumulation
    if isinstance(module, LossOfPart):
        parts *= module.count
        recorder.trained = module.module
    arguments = _OneDevice(
        output_dir=str(scratch),
        max_steps=recipe.steps - start,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=recipe.accumulation,
        learning_rate=recipe.learning_rate,
        max_grad_norm=0.0 if recipe.clip is None else recipe.clip,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        use_cpu=device.type == "cpu",
        seed=derive_seed(recipe.seed, "trainer") % 2**32,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        label_names=["labels"],
    )
    arguments.run_device = device
    if device.type == "cuda":
        torch.cuda.set_device(device)  # accelerate puts batches on the current one
    trainer = _StepTrainer(
        loss=loss,
        recipe=recipe,
        model=module,
        args=arguments,
        train_dataset=_Parts(batches, start, recipe.steps, parts),
        data_collator=lambda items: dict(items[0]),
        optimizers=optimizers,
        callbacks=[recorder],
    )
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ in ("PrinterCallback", "ProgressCallback"):
            trainer.remove_callback(callback)
    trainer.train()
