"""The one place that drives `transformers.Trainer`; imported only when something is trained.

Each optimiser step is one item of a dataset, read in order, so a run depends on nothing but recipe, data and model.
Nothing is saved, evaluated, reported or uploaded here.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainingArguments

from emlens.foundation.errors import InputError
from emlens.foundation.seeds import derive_seed
from emlens.training.objectives import Loss
from emlens.training.recipes import Recipe
from emlens.training.stopping import StopRun, TrainingCallback

Batches = Callable[[int], Mapping[str, Tensor]]


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


class _Steps(torch.utils.data.Dataset[Mapping[str, Tensor]]):
    def __init__(self, batches: Batches, steps: int):
        self.batches, self.steps = batches, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> Mapping[str, Tensor]:
        return self.batches(index)


class _StepTrainer(Trainer):
    def __init__(self, *, loss: Loss, **kwargs: Any):
        super().__init__(**kwargs)
        self.step_loss = loss

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        loss = self.step_loss(model, inputs)
        return (loss, None) if return_outputs else loss


class _Recorder(TrainerCallback):
    """One row a step; the caller's callbacks run at the end of each step and may stop the run."""

    def __init__(self, callbacks: Sequence[TrainingCallback], progress: Callable[[int, int], None] | None):
        self.callbacks, self.progress = callbacks, progress
        self.rows: list[dict[str, Any]] = []
        self.extra: dict[str, Any] = {}
        self.stopped: str | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.extra = {}
        try:
            for callback in self.callbacks:
                self.extra |= dict(callback(model, state.global_step) or {})
        except StopRun as stop:
            self.stopped = stop.reason
            self.extra |= stop.values
            control.should_training_stop = True
        if self.progress is not None:
            self.progress(state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs and "grad_norm" in logs:
            row = {"step": state.global_step, "loss": float(logs["loss"]), "learning_rate": float(logs["learning_rate"])}
            if not np.isfinite(row["loss"]):
                raise InputError(f"loss became {row['loss']} at step {row['step']}; lower learning_rate={args.learning_rate} or clip")
            self.rows.append({**row, "grad_norm": float(logs["grad_norm"]), **self.extra})


def optimiser(recipe: Recipe, module: nn.Module) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """AdamW over what requires a gradient, matrices with weight decay and vectors without, and the recipe's schedule."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW([g for g in groups if g["params"]], lr=recipe.learning_rate, betas=recipe.betas)
    return adam, LambdaLR(adam, recipe.rate_factor)


def train(
    recipe: Recipe,
    module: nn.Module,
    batches: Batches,
    loss: Loss,
    scratch: Path,
    callbacks: Sequence[TrainingCallback] = (),
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[dict[str, Any]], str | None]:
    """Train `module` in place; rows of the log, and the reason if a callback stopped the run."""
    recorder = _Recorder(callbacks, progress)
    arguments = TrainingArguments(
        output_dir=str(scratch),
        max_steps=recipe.steps,
        per_device_train_batch_size=1,
        learning_rate=recipe.learning_rate,
        max_grad_norm=0.0 if recipe.clip is None else recipe.clip,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        use_cpu=next(module.parameters()).device.type == "cpu",
        seed=derive_seed(recipe.seed, "trainer") % 2**32,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        label_names=["labels"],
    )
    trainer = _StepTrainer(
        loss=loss,
        model=module,
        args=arguments,
        train_dataset=_Steps(batches, recipe.steps),
        data_collator=lambda items: dict(items[0]),
        optimizers=optimiser(recipe, module),
        callbacks=[recorder],
    )
    for printer in [c for c in trainer.callback_handler.callbacks if type(c).__name__ in ("PrinterCallback", "ProgressCallback")]:
        trainer.remove_callback(printer)
    trainer.train()
    return recorder.rows, recorder.stopped
