"""`fit`: one recipe, one model, one data set → one checkpoint directory with its record.

The directory appears whole or not at all: an ordinary Hugging Face directory, a PEFT adapter or
steering vectors, with `emlens.json` (parent's hash, recipe, seed, data, objectives, threads, why it
stopped) and `training_log.csv` (one row per step). No pickle is written. The loop is that of
`transformers.Trainer`. On one machine with one thread count the same call gives the same weights,
also where it was killed and called again with `resume_every`.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from emlens.foundation.errors import InputError, IntegrityError, LoadError
from emlens.foundation.files import one_line
from emlens.foundation.notebooks import Picture, in_a_line
from emlens.foundation.provenance import (
    hash_json,
    hash_tensors,
    library_versions,
    qualified_name,
)
from emlens.foundation.records import write_checked
from emlens.models.adapter_files import CONFIG, is_adapter
from emlens.models.checkpoint_files import checkpoint_hashes, read_object
from emlens.models.four_bits import leave_weights_unpacked, nf4_options, require_4bit
from emlens.models.onednn_linear import by_onednn
from emlens.models.quantizing import quantization_text
from emlens.models.sidecars import (
    ADAPTER_HASH,
    PARENT_QUANTIZATION,
    adapter_config_hash,
    read_sidecar,
)
from emlens.models.turn_lock import TurnLock
from emlens.runs.locks import only_writer
from emlens.training.adapters import KeptAdapters, with_adapter
from emlens.training.batching import Data, StepBatches, step_batches
from emlens.training.lengths import context_of
from emlens.training.memory_saving import (
    check_checkpointing,
    checkpointed,
    recomputed,
    say_what_is_odd,
)
from emlens.training.objectives import Loss, Objective, ObjectiveLoss, answer_loss
from emlens.training.parallel import Group, LossOfPart, Parallel, check_parallel, joined
from emlens.training.publishing import publishing_directory, quiet, save_model
from emlens.training.recipes import FOUR_BITS, ParentDtype, Recipe
from emlens.training.reporting import stage_bar
from emlens.training.resuming import Snapshots, resume_directory
from emlens.training.split_weights import SplitWeights, check_split
from emlens.training.stopping import TrainingCallback
from emlens.training.streams import SteeredModel
from emlens.training.trackers import Report, check_trackers, reporting

SIDECAR: Final = "emlens.json"
LOG: Final = "training_log.csv"
KINDS: Final[Mapping[str, str]] = {"lora": "adapter", "full": "checkpoint", "steering": "steering"}
"""What a method leaves on disk, as `emlens.json` calls it."""

_TURN: Final = TurnLock("training, with the random numbers of the process", "train with 'spawn'")
"""Threads train one after the other: a process has one state of random numbers."""

SaveDtype = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class Parent:
    """A model to train, with what `emlens.json` records of its origin.

    Args:
        model: a checkpoint directory, or a loaded `PreTrainedModel`, which is trained in place.
        directory: directory whose hash is recorded; that of `model` where it is one.
        name: what an adapter calls its base; the directory's name if None.
        wrap: makes the module that is trained from the model; the model inside it is what is saved.
    """

    model: Any
    directory: str | Path | None = None
    name: str | None = None
    wrap: Callable[[nn.Module], nn.Module] | None = None

    @property
    def label(self) -> str:
        """What an adapter calls its base."""
        if self.name:
            return self.name
        return "unnamed" if self.directory is None else Path(self.directory).name

    def to_record(self) -> dict[str, str | None] | None:
        """Its name, and the hash of each kind of its files: weights, tokenizer, …"""
        if self.directory is None:
            return None
        return {"name": self.label, **checkpoint_hashes(self.directory)}


@dataclass(frozen=True)
class Saving:
    """What a run writes, and when.

    Args:
        save_dtype: dtype of the saved weights; None keeps that of training.
        keep_every: also keep the adapter after every N steps, each as a PEFT directory
            `checkpoints/step-00001`.
        resume_every: write the run's state after every N steps, hidden beside `out`. After
            the process died, the same call goes on from the newest state and ends with the bytes of
            an undisturbed run. Another call is refused: the starting weights and the encoded rows
            are compared by hash; `loss`, `wrap` and callbacks by name (an instance by its class,
            and a loss that is one also by its plain settings).
        before_publish: called with the directory and the trained model before it is published, to
            add files to it.
        report_to: trackers that are told the log as it grows, such as `"tensorboard"` and
            `"wandb"` (`emlens.training.trackers`); no byte of the checkpoint depends on them.
    """

    save_dtype: SaveDtype | None = None
    keep_every: int | None = None
    resume_every: int | None = None
    before_publish: Callable[[Path, Any], None] | None = None
    report_to: Sequence[str] = ()

    def check(self, recipe: Recipe, parent: Parent) -> None:
        """Refuse what the recipe's method cannot do.

        Raises:
            InputError: see `fit`.
        """
        if self.keep_every is not None and (recipe.method != "lora" or self.keep_every < 1):
            raise InputError(
                f"keep_every={self.keep_every} with method={recipe.method!r};"
                " pass 1 or more, and method='lora': only adapters are kept"
            )
        if recipe.method == "steering" and (self.save_dtype is not None or parent.wrap is not None):
            raise InputError(
                "method='steering' saves vectors as they are and wraps the model itself;"
                " drop save_dtype and wrap"
            )
        if self.resume_every is not None and self.resume_every < 1:
            raise InputError(f"resume_every={self.resume_every} must be 1 or more")
        check_trackers(self.report_to)


@dataclass(frozen=True)
class Fitted:
    """A finished run.

    Attributes:
        path: the checkpoint directory.
        log: one row per step: step, loss, learning_rate, grad_norm, and what callbacks added.
        stopped: why it ended early; None if it did not.
        model: the trained model; None where its weights were split over processes: open `path`.
    """

    path: Path
    log: pd.DataFrame
    stopped: str | None
    model: Any

    def plot(self, column: str = "loss") -> Picture:
        """A column of the log by step.

        Args:
            column: "loss", "learning_rate", "grad_norm", or one that a callback added.

        Raises:
            UnknownNameError: the log has no such column.
        """
        from emlens.training.pictures import picture_of_log

        return picture_of_log(self.log, column)

    def __repr__(self) -> str:
        facts: dict[str, object] = {"path": self.path, "steps": len(self.log)}
        if len(self.log) and "loss" in self.log.columns:
            facts["last loss"] = f"{float(self.log['loss'].iloc[-1]):.4g}"
        return in_a_line("Fitted", {**facts, "stopped": self.stopped})


def fit(
    recipe: Recipe,
    model: Any,
    data: Data,
    out: str | Path,
    *,
    tokenizer: Any = None,
    loss: Loss = answer_loss,
    objectives: Sequence[Objective] = (),
    callbacks: Sequence[TrainingCallback] = (),
    saving: Saving | None = None,
    parallel: Parallel | None = None,
    device: str = "auto",
    progress: bool = False,
) -> Fitted:
    """Train a model by a recipe and publish the checkpoint.

    Args:
        model: a checkpoint directory (loaded in the recipe's `parent_dtype`); a loaded
            `PreTrainedModel`, which is trained in place; or a `Parent`, which says more of it.
        data: chats with answers (loss on the answers only); ready rows of `input_ids` and `labels`;
            or a callable from the 0-based step to that step's batch of tensors, which must give the
            same batch for the same step.
        out: directory to make; must not exist, or be empty.
        tokenizer: needed for chats, and saved beside a full checkpoint; a checkpoint directory's
            own if None.
        loss: `(model, batch) -> scalar`.
        objectives: records from `emlens.training.penalties` and `emlens.training.defences`, in any
            number; the terms of the loss join the log.
        callbacks: called after each step as `(model, step) -> mapping`; may raise
            `StopRun(reason)`. One that remembers something between steps needs `state()` and
            `restore(state)`, JSON-ready, for a run that is resumed.
        saving: what is written and when: dtype, adapters kept on the way, states to resume
            from. None writes the checkpoint alone.
        parallel: train this run over all processes that torchrun or `accelerate launch` started,
            each with its share of every batch (`emlens.training.parallel`), and with "fsdp" with
            its part of every weight; None: a run of this
            process alone.
        device: where a checkpoint directory is loaded to; `"auto"` takes a GPU where there is one.
            A loaded model stays where it is.
        progress: show a progress bar on stderr.

    Raises:
        InputError: `out` holds files; a tokenizer or data is missing; a row longer than the model's
            context, where the recipe cuts none; the loss is not finite; the adapter fits no layer;
            `keep_every` below 1, or without an adapter; `resume_every` below 1, or another run's
            state lies beside `out`.
        IntegrityError: training changed no weight, or a weight overflows in `save_dtype`.
        LoadError: `model` is a path that holds no model.
        StateError: another process trains into `out`; this one was forked while a thread trained.
    """
    from emlens.training.trainer import seeded

    out = Path(out)
    saving = saving or Saving()
    with _TURN, joined(parallel) as group:
        check_parallel(group, recipe, objectives, saving.resume_every is not None, callable(data))
        parent = model if isinstance(model, Parent) else Parent(model)
        saving.check(recipe, parent)
        if group is not None and group.splits:
            reading = {
                "wrap": parent.wrap is not None,
                "callbacks": bool(callbacks),
                "before_publish": saving.before_publish is not None,
            }
            check_split(recipe, parent.model, reading)
        check_checkpointing(recipe, objectives)
        _require_new(out)
        say_what_is_odd(recipe, saving.resume_every)
        processes = 1
        lock: AbstractContextManager[None] = only_writer(out)
        if group is not None:
            processes, device = group.count, group.device(device)
            if not group.writes:
                lock = nullcontext()
        loads_to = "cpu" if group is not None and group.splits else device
        parent, tokenizer = _loaded(parent, tokenizer, loads_to, recipe.parent_dtype)
        batches = step_batches(
            recipe,
            data,
            tokenizer,
            objectives,
            context=context_of(parent.model),
            processes=processes,
        )
        record = _record(recipe, parent, batches, saving, objectives)
        if parallel is not None and group is not None:
            record["parallel"] = {**parallel.model_dump(), "processes": processes}
        run = ""
        if saving.resume_every is not None:
            fingerprint = _fingerprint(parent, batches, loss, callbacks)
            run = hash_json({**record, **fingerprint})
        out.parent.mkdir(parents=True, exist_ok=True)
        writes = group is None or group.writes
        with (
            lock,
            # before the random states are set, since a tracker may draw a name for its run
            reporting(saving.report_to if writes else (), recipe, out) as report,
            seeded(recipe.seed, "fit"),
            quiet(),
            _scratch(out, saving.resume_every) as scratch,
        ):
            training = _Training(recipe, parent, saving, scratch, group, device)
            log, stopped = training.run(batches, loss, objectives, callbacks, run, progress, report)
            if writes:
                training.publish(out, log, stopped, record, tokenizer)
        return Fitted(out, log, stopped, None if training.split else training.model)


class _Training:
    """One run: the model with what the recipe puts on it, trained and then published."""

    def __init__(
        self,
        recipe: Recipe,
        parent: Parent,
        saving: Saving,
        scratch: Path,
        group: Group | None = None,
        device: str = "cpu",
    ):
        self._group = group
        self._device = device
        self.split: SplitWeights | None = None
        self.recipe = recipe
        self.saving = saving
        self.scratch = scratch
        self.model: Any = parent.model
        leave_weights_unpacked(self.model)
        # The Trainer switches the cache off, and that would be saved.
        self._use_cache = getattr(self.model.config, "use_cache", True)
        if recipe.method == "lora":
            self.model = with_adapter(recipe, self.model, parent.label)
        elif recipe.method == "steering":
            self.model = SteeredModel(self.model, recipe.layers_to_transform or ())
        self.module = self.model if parent.wrap is None else parent.wrap(self.model)
        self.kept_adapters: KeptAdapters | None = None
        if saving.keep_every is not None:
            self.kept_adapters = KeptAdapters(saving.keep_every, scratch / "kept")

    def run(
        self,
        batches: StepBatches,
        loss: Loss,
        objectives: Sequence[Objective],
        callbacks: Sequence[TrainingCallback],
        run: str,
        progress: bool,
        report: Report | None = None,
    ) -> tuple[pd.DataFrame, str | None]:
        """The log, and why the run ended early."""
        from emlens.training import trainer

        every_callback: list[TrainingCallback] = []
        if self.kept_adapters is not None:
            every_callback.append(self.kept_adapters)
        if objectives:
            loss = ObjectiveLoss(loss, objectives, self.module)
            every_callback.append(loss.values)
        every_callback.extend(callbacks)
        snapshots = None
        if self.saving.resume_every is not None:
            snapshots = Snapshots(self.scratch, self.saving.resume_every, run)
        module = self.module
        if self._group is not None:
            module = LossOfPart(self.module, loss, self._group.count)
            if self._group.splits:
                self.split = SplitWeights(module, self.model, self._group, self._device)
        before = _trainable_weights(self.model)
        width = _stream_width(self.model)
        with (
            checkpointed(self.model, self.recipe, again=partial(by_onednn, width)),
            by_onednn(width),
            recomputed(self.model, self.recipe, splits=self.split is not None),
            stage_bar("training", self.recipe.steps, show=progress) as bar,
        ):
            rows, stopped = trainer.train(
                self.recipe,
                module,
                batches.parts,
                loss,
                self.scratch,
                every_callback,
                snapshots,
                on_step=lambda done, total: bar("training", done, total),
                on_resume=lambda done: bar("training", done, self.recipe.steps, found=True),
                report=report,
            )
        _require_change(before, self.model)
        if self.split is not None:
            self.model = self.split.whole()
        if self.model is not None:
            self.model.eval()
            self.model.config.use_cache = self._use_cache
        return pd.DataFrame(rows), stopped

    def publish(
        self,
        out: Path,
        log: pd.DataFrame,
        stopped: str | None,
        record: Mapping[str, Any],
        tokenizer: Any,
    ) -> None:
        """Write the checkpoint with its record and log, whole or not at all."""
        save_dtype = self.saving.save_dtype
        with publishing_directory(out) as staging:
            if self.recipe.method == "steering":
                self.model.save(staging)
            else:
                saved_tokenizer = tokenizer if self.recipe.method == "full" else None
                save_model(self.model, staging, save_dtype, saved_tokenizer)
            if self.kept_adapters is not None:
                self.kept_adapters.publish(staging, len(log), save_dtype)
            log.to_csv(staging / LOG, index=False)
            versions = library_versions()
            if PARENT_QUANTIZATION in record:
                versions |= library_versions(("bitsandbytes",))
            outcome = {
                "steps_done": len(log),
                "stopped": stopped,
                "threads": torch.get_num_threads(),
                "versions": versions,
            }
            written = {}
            if is_adapter(staging):
                written[ADAPTER_HASH] = adapter_config_hash(read_object(staging / CONFIG))
            write_checked(staging / SIDECAR, {**record, **outcome, **written})
            if self.saving.before_publish is not None:
                self.saving.before_publish(staging, self.model)


def read_record(directory: str | Path) -> dict[str, Any]:
    """The `emlens.json` of a checkpoint that `fit` made.

    Raises:
        InputError: the directory has none.
        LoadError: it cannot be read, or holds something else than an object.
    """
    path = Path(directory) / SIDECAR
    if not path.is_file():
        raise InputError(f"{directory}: has no {SIDECAR}; pass a checkpoint that emlens trained")
    return read_sidecar(path)


def load_parent(path: Path, device: str = "cpu", dtype: ParentDtype = "float32") -> tuple[Any, Any]:
    """Model and tokenizer of a checkpoint directory.

    Args:
        dtype: of the weights; `"own"`: as they are saved; `"nf4"`, `"nf4_double"`: linear layers
            in 4 bits, the rest as saved.

    Raises:
        InputError: no such device; 4 bits without bitsandbytes, or on a device that it does not
            know, or of a checkpoint that is quantised already.
        LoadError: the directory holds no model, one that cannot be loaded, or one whose weights
            are not all there: a layer would be trained from random numbers.
    """
    from transformers import AutoModelForCausalLM

    from emlens.models.library_output import escaped_output
    from emlens.models.loading import check_loaded, saved_tokenizer, torch_device

    if not (path / "config.json").is_file():
        raise LoadError(
            f"model={str(path)!r} holds no model; pass a directory with config.json and weights"
        )
    place: Any = torch_device(device)
    options: dict[str, Any] = {"dtype": "auto" if dtype == "own" else torch.float32}
    if dtype in FOUR_BITS:
        require_4bit(place, f"parent_dtype={dtype!r}")
        options = nf4_options(path, place, double=dtype == "nf4_double")
    try:
        with escaped_output(), quiet():
            model, loading_info = AutoModelForCausalLM.from_pretrained(
                path, output_loading_info=True, **options
            )
            check_loaded(str(path), model, loading_info)
            leave_weights_unpacked(model)
            if dtype not in FOUR_BITS:  # which are where they were quantised
                model = model.to(place)
            return model, saved_tokenizer(str(path), path)
    except LoadError:
        raise
    except (OSError, ValueError) as error:
        raise LoadError(f"model={str(path)!r} cannot be loaded: {one_line(str(error))}") from error


def _require_new(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"out={str(out)!r} is there already; pass a new directory")


def _loaded(parent: Parent, tokenizer: Any, device: str, dtype: ParentDtype) -> tuple[Parent, Any]:
    """The parent with its model in memory, and the tokenizer to use."""
    if not isinstance(parent.model, str | Path):
        if dtype in FOUR_BITS and quantization_text(parent.model) is None:
            raise InputError(
                f"parent_dtype={dtype!r}, but model is loaded already, and not in 4 bits;"
                " pass its directory"
            )
        return parent, tokenizer
    directory = Path(parent.model)
    model, saved_tokenizer = load_parent(directory, device, dtype)
    if tokenizer is None:
        tokenizer = saved_tokenizer
    return replace(parent, model=model, directory=directory), tokenizer


def _record(
    recipe: Recipe,
    parent: Parent,
    batches: StepBatches,
    saving: Saving,
    objectives: Sequence[Objective],
) -> dict[str, Any]:
    """What `emlens.json` says that is known before the first step."""
    record: dict[str, Any] = {
        "kind": KINDS[recipe.method],
        "recipe": recipe.to_record(),
        "seed": recipe.seed,
        "parent": parent.to_record(),
        **_quantization(parent),
        "data": batches.record,
        "save_dtype": saving.save_dtype,
        "log": LOG,
    }
    if saving.keep_every is not None:
        record["keep_every"] = saving.keep_every
    if objectives:
        record["objectives"] = [objective.to_record() for objective in objectives]
    return record


def _quantization(parent: Parent) -> dict[str, Any]:
    """How the parent's weights were quantised, and by what; nothing where they were not."""
    quantization = quantization_text(parent.model)
    if quantization is None:
        return {}
    return {PARENT_QUANTIZATION: quantization}


def _fingerprint(
    parent: Parent,
    batches: StepBatches,
    loss: Loss,
    callbacks: Sequence[TrainingCallback],
) -> dict[str, Any]:
    """What a run depends on beside its record."""
    settings = {
        name: repr(value)
        for name, value in getattr(loss, "__dict__", {}).items()
        if isinstance(value, bool | int | float | str)
    }
    return {
        "weights": hash_tensors(parent.model.state_dict()),
        "rows": batches.rows_hash(),
        "loss": [qualified_name(loss), settings],
        "wrap": None if parent.wrap is None else qualified_name(parent.wrap),
        "callbacks": [qualified_name(callback) for callback in callbacks],
    }


def _trainable_weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def _stream_width(model: Any) -> int:
    """0 where the configuration names none."""
    return getattr(model.config.get_text_config(), "hidden_size", 0)


def _require_change(before: Mapping[str, Tensor], model: nn.Module) -> None:
    now = dict(model.named_parameters())
    if all(torch.equal(value, now[name].detach()) for name, value in before.items()):
        raise IntegrityError(
            f"training changed none of {len(before)} weights;"
            " the loss does not depend on them, or no token counts"
        )


@contextmanager
def _scratch(out: Path, resume_every: int | None) -> Iterator[Path]:
    """A directory for the run's own files: one that stays until the run is published where it may
    be resumed, else a temporary one.
    """
    if resume_every is None:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
        return
    directory = resume_directory(out)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)
