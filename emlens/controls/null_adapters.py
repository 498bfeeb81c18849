"""One adapter of a training null: trained on permuted careful answers, measured, and forgotten.

Each adapter is a unit of work, so that a killed call goes on from the finished ones, and ranks or
Ray actors share them. Cost of a unit: a training run, and one capture of each set of prompts.
"""

import copy
import gc
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pandas as pd
import torch
from safetensors.torch import save_file

from emlens.activations import Activations, CaptureSpec, activation_deltas, capture
from emlens.controls.permuted_answers import permuted_answers
from emlens.controls.shift_statistics import shift_statistics
from emlens.data import PromptSet
from emlens.foundation.files import publishing
from emlens.foundation.provenance import hash_json
from emlens.foundation.seeds import derive_seed
from emlens.geometry.shifts import components_above_rounding
from emlens.interventions.applied_adapter import applied_adapter
from emlens.interventions.lora import LoraAdapter
from emlens.models import load_model
from emlens.models.checkpoint_files import checkpoint_hashes
from emlens.models.hooked import HookedModel
from emlens.models.live_module import live_module
from emlens.runs import Unit, Worker
from emlens.runs.units import UnitResult
from emlens.training import Recipe, fit
from emlens.training.fitting import Parent, load_parent
from emlens.training.stopping import StopRun, TrainingCallback

ADAPTERS_FOLDER: Final = "adapters"
SHIFTS_FOLDER: Final = "shifts"


def rendered_hash(activations: Activations) -> str:
    """Hash of the rendered prompts."""
    return str(activations.provenance["rendered_sha256"])


@dataclass(frozen=True)
class NullSetting:
    """Everything that the draws of a training null depend on.

    Args:
        parent: checkpoint directory of the model that was fine-tuned.
        recipe: the fine-tune's own.
        careful: its training questions with careful answers (`with_careful_answers`), which are
            permuted for each adapter (`permuted_answers`).
        train, evaluation: the prompts on which shifts are compared; as many of each.
        spec: what is captured; by default `resid_post` of every layer at `last_prompt`. Blocks
            before the first adapted one do not move and are left out.
        k: dimension of the subspaces of `first_angle` and `mean_cos2`.
        further: prompts on which shifts are measured too, to compare adapters of two domains; read
            with `write_shifts`.
        write_shifts: write each adapter's shifts on all prompts (`TrainingNull.shifts`).
        stop_after: steps after which each run ends, where the fine-tune ended before its recipe's
            last step; the schedule stays that of the recipe.
        chat_template: what renders the chats; None: the parent's own.
    """

    parent: Path
    recipe: Recipe
    careful: PromptSet
    train: PromptSet
    evaluation: PromptSet
    spec: CaptureSpec = field(default_factory=CaptureSpec)
    k: int = 8
    further: PromptSet | None = None
    write_shifts: bool = False
    stop_after: int | None = None
    chat_template: str | None = None

    def recipe_of(self, number: int) -> Recipe:
        return self.recipe.changed(seed=derive_seed(self.recipe.seed, "training null", number))

    def to_record(self) -> dict[str, Any]:
        return {
            "parent": checkpoint_hashes(self.parent),
            "recipe": self.recipe.to_record(),
            "careful": self.careful.content_hash,
            "train": self.train.content_hash,
            "evaluation": self.evaluation.content_hash,
            "spec": hash_json(repr(self.spec)),
            "k": self.k,
            "further": None if self.further is None else self.further.content_hash,
            "write_shifts": self.write_shifts,
            "stop_after": self.stop_after,
            "chat_template": self.chat_template,
        }

    @property
    def callbacks(self) -> list[TrainingCallback]:
        """Stops a run where the fine-tune stopped, on the way of the recipe's own schedule."""
        if self.stop_after is None:
            return []
        return [_StopAfter(self.stop_after)]


@dataclass(frozen=True)
class _StopAfter:
    """Ends a run after so many steps."""

    steps: int

    def __call__(self, model: Any, step: int) -> None:
        if step >= self.steps:
            raise StopRun(f"the fine-tune stopped after {self.steps} steps")


def shares_parent(recipe: Recipe) -> bool:
    """Whether one copy of the parent is trained and read: adapters on a parent in its own dtype."""
    return recipe.method == "lora" and recipe.parent_dtype == "own"


class NullWorker(Worker):
    """One process: trains adapters on its own copy of the parent, and measures each."""

    def __init__(
        self,
        setting: NullSetting,
        adapters: int,
        out: Path,
        keep: bool,
        device: str,
        after_each: Callable[[], None] | None = None,
    ):
        self.setting = setting
        self.adapters = adapters
        self.out = out
        self.keep = keep
        self.device = device
        self.after_each = after_each
        self.model, self.module, self.tokenizer = self._loaded()
        self._before: dict[str, Activations] | None = None

    def plan(self) -> Sequence[Unit]:
        record = self.setting.to_record()
        return [
            Unit(f"adapter {number}", {**record, "number": number, "kept": self.keep})
            for number in range(self.adapters)
        ]

    def run(self, unit: Unit) -> UnitResult:
        number = int(unit.inputs["number"])
        recipe = self.setting.recipe_of(number)
        rows = permuted_answers(self.setting.careful, seed=recipe.seed)
        with tempfile.TemporaryDirectory() as scratch:
            target = Path(scratch) / "adapter"
            if self.keep:
                target = self.out / ADAPTERS_FOLDER / f"{number:03d}"
                shutil.rmtree(target, ignore_errors=True)
            log = self._trained(recipe, rows, target)
            with self._tuned(target) as model:
                after = self._captured(model)
            files = [path for path in sorted(target.rglob("*")) if path.is_file()]
        if not self.keep:
            files = []
        if self.setting.write_shifts:
            files.append(self._saved_shifts(number, after))
        before = self._before_training()
        cells = shift_statistics(
            (before["train"], after["train"]),
            (before["evaluation"], after["evaluation"]),
            self.setting.k,
        )
        result = {
            "rendered": [rendered_hash(before[side]) for side in ("train", "evaluation")],
            "seed": recipe.seed,
            "steps": len(log),
            "final_loss": float(log["loss"].iloc[-1]),
            "cells": cells.to_dict("list"),
        }
        if self.after_each is not None:
            self.after_each()
        return result, files

    def _trained(self, recipe: Recipe, rows: PromptSet, target: Path) -> pd.DataFrame:
        has_adapter = recipe.method == "lora"
        module = self.module if has_adapter else copy.deepcopy(self.module)
        parent = Parent(module, directory=self.setting.parent)
        # the Trainer collects garbage after every run: what lies in memory already, a whole study,
        # need not be looked through each time (a fifth of the time on the organism)
        gc.freeze()
        try:
            fitted = fit(
                recipe,
                parent,
                rows,
                target,
                tokenizer=self.tokenizer,
                callbacks=self.setting.callbacks,
            )
            if has_adapter:
                self.module = fitted.model.unload().eval().requires_grad_(False)
        except BaseException:
            # The model in memory may hold half an adapter.
            self.model, self.module, self.tokenizer = self._loaded()
            raise
        finally:
            gc.unfreeze()
        return fitted.log

    def _loaded(self) -> tuple[HookedModel, Any, Any]:
        """The parent as it is read, as it is trained, and a tokenizer that renders chats as the
        first does.
        """
        recipe, parent = self.setting.recipe, self.setting.parent
        template = self.setting.chat_template
        if shares_parent(recipe):
            module, tokenizer = load_parent(Path(parent), self.device, recipe.parent_dtype)
            module.eval().requires_grad_(False)
            if template is not None:
                tokenizer.chat_template = template
            return live_module(module, tokenizer, tokenizer.chat_template), module, tokenizer
        model = load_model(parent, device=self.device, dtype="float32", chat_template=template)
        module, tokenizer = load_parent(Path(parent), self.device, recipe.parent_dtype)
        tokenizer.chat_template = model.chat_template
        return model, module, tokenizer

    def _tuned(self, directory: Path) -> AbstractContextManager[HookedModel]:
        """The parent as it is after this training."""
        if self.setting.recipe.method == "lora":
            return applied_adapter(self.model, LoraAdapter.load(directory))
        tuned = load_model(
            directory,
            device=self.device,
            dtype="float32",
            chat_template=self.model.chat_template,
        )
        return nullcontext(tuned)

    def _before_training(self) -> dict[str, Activations]:
        """The parent's activations on every set of prompts, captured once."""
        if self._before is None:
            self._before = self._captured(self.model)
        return self._before

    def _captured(self, model: HookedModel) -> dict[str, Activations]:
        setting = self.setting
        sets = {"train": setting.train, "evaluation": setting.evaluation}
        if setting.further is not None:
            sets["further"] = setting.further
        captured = {}
        for name, prompts in sets.items():
            captured[name] = capture(model, prompts, spec=setting.spec, progress=False)
        return captured

    def _saved_shifts(self, number: int, after: dict[str, Activations]) -> Path:
        """Write this adapter's shifts on all prompts, where something moved.

        In bfloat16, so that many adapters have room: a cosine of thousands of coordinates moves by
        1e-5, and no massive coordinate overflows.
        """
        tensors = {}
        for side, before in self._before_training().items():
            shifts = activation_deltas(before, after[side])
            for key in shifts.keys:
                if components_above_rounding(shifts[key], before[key]) >= 2:
                    site, position = key
                    tensors[f"{side} {site} {position}"] = shifts[key].to(torch.bfloat16)
        path = shifts_file(self.out, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        with publishing(path) as temporary:
            save_file({name: rows.contiguous() for name, rows in tensors.items()}, temporary)
        return path


def shifts_file(out: Path, number: int) -> Path:
    """Where an adapter's shifts lie: "side site position" → (row, d)."""
    return out / SHIFTS_FOLDER / f"{number:03d}.safetensors"
