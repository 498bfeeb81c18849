"""`fit`: one recipe, one model, one data set → one checkpoint directory with its record.

The directory appears whole or not at all: an ordinary Hugging Face directory, a PEFT adapter or
steering vectors, with `emlens.json` (parent's hash, recipe, seed, data, objectives, threads, why it
stopped) and `training_log.csv` (one row a step). No pickle is written. The loop is that of
`transformers.Trainer`. On one machine with one thread count the same call gives the same weights,
also where it was killed and called again with `resume_every`.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from emlens.foundation.errors import InputError, IntegrityError, LoadError
from emlens.foundation.files import one_line, read_json, write_json
from emlens.foundation.provenance import (
    hash_directory,
    hash_json,
    hash_tensors,
    library_versions,
    qualified_name,
)
from emlens.training.adapters import KeptAdapters, with_adapter
from emlens.training.batching import Data, step_parts
from emlens.training.objectives import Loss, Objective, ObjectiveLoss, answer_loss
from emlens.training.publishing import publishing_directory, quiet, save_model
from emlens.training.recipes import Recipe
from emlens.training.resuming import Snapshots, resume_directory
from emlens.training.stopping import TrainingCallback
from emlens.training.streams import SteeredModel

SIDECAR = "emlens.json"
LOG = "training_log.csv"


@dataclass(frozen=True)
class Fitted:
    """A finished run: where the checkpoint lies, its log (step, loss, learning_rate, grad_norm,
    ...), why it ended early.
    """

    path: Path
    log: pd.DataFrame
    stopped: str | None
    model: Any


def fit(
    recipe: Recipe,
    model: Any,
    data: Data,
    out: str | Path,
    *,
    tokenizer: Any = None,
    parent: str | Path | None = None,
    parent_name: str | None = None,
    loss: Loss = answer_loss,
    objectives: Sequence[Objective] = (),
    callbacks: Sequence[TrainingCallback] = (),
    wrap: Callable[[nn.Module], nn.Module] | None = None,
    save_dtype: Literal["float32", "float16", "bfloat16"] | None = None,
    before_publish: Callable[[Path, Any], None] | None = None,
    keep_every: int | None = None,
    resume_every: int | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Fitted:
    """Train a model by a recipe and publish the checkpoint.

    Args:
        model: a checkpoint directory (loaded in float32), or a loaded `PreTrainedModel`, which is
            trained in place.
        data: chats with answers (loss on the answers only); ready rows of `input_ids` and `labels`;
            or a callable from the 0-based step to that step's batch of tensors, which must give the
            same batch for the same step.
        out: directory to make; must not exist, or be empty.
        tokenizer: needed for chats, and saved beside a full checkpoint; a checkpoint directory's
            own if None.
        parent: directory whose hash is recorded, where `model` is a loaded model.
        parent_name: what an adapter calls its base; the parent directory's name if None.
        loss: `(model, batch) -> scalar`.
        objectives: records from `emlens.training.penalties` and `emlens.training.defences`, in any
            number; the terms of the loss join the log.
        callbacks: called after each step as `(model, step) -> mapping`; may raise
            `StopRun(reason)`. One that remembers something between steps needs `state()` and
            `restore(state)`, JSON-ready, for a run that is resumed.
        wrap: makes the module that is trained from the model; the model inside it is what is saved.
        save_dtype: dtype of the saved weights; None keeps that of training.
        before_publish: called with the directory and the trained model before it is published, to
            add files to it.
        keep_every: also keep the adapter after every so many steps, each as a PEFT directory
            `checkpoints/step-00001`.
        resume_every: write the run's state after every so many steps, hidden beside `out`; the same
            call then goes on from the newest after the process died, and ends with the bytes of an
                undisturbed run. Another call is refused: the
            starting weights and the encoded rows are hashed, `loss`, `wrap` and callbacks told
            apart by name (of an instance, the class; of a loss that is one, its plain settings
            too).
        device: where a checkpoint directory is loaded to; a loaded model stays where it is.
        progress: called after each step with (steps done, steps in all).

    Raises:
        InputError: `out` holds files; a tokenizer or data is missing; the loss is not finite; the
            adapter fits no layer; `keep_every` below 1, or without an adapter; `resume_every` below
            1, or another run's state lies beside `out`.
        IntegrityError: training changed no weight, or a weight overflows in `save_dtype`.
        LoadError: `model` is a path that holds no model.
    """
    from emlens.training import trainer

    if keep_every is not None and (recipe.method != "lora" or keep_every < 1):
        raise InputError(
            f"keep_every={keep_every} with method={recipe.method!r};"
            " pass 1 or more, and method='lora': only adapters are kept"
        )
    if recipe.method == "steering" and (save_dtype is not None or wrap is not None):
        raise InputError(
            "method='steering' saves vectors as they are and wraps the model itself;"
            " drop save_dtype and wrap"
        )
    if resume_every is not None and resume_every < 1:
        raise InputError(f"resume_every={resume_every} must be 1 or more")
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"out={str(out)!r} is there already; pass a new directory")
    if isinstance(model, str | Path):
        parent = Path(model)
        model, own_tokenizer = load_parent(parent, device)
        tokenizer = tokenizer if tokenizer is not None else own_tokenizer
    parent = None if parent is None else Path(parent)
    parent_name = parent_name or (parent.name if parent is not None else "unnamed")
    parts, data_record, rows_digest = step_parts(recipe, data, tokenizer, objectives)
    record: dict[str, Any] = {
        "kind": {"lora": "adapter", "full": "checkpoint", "steering": "steering"}[recipe.method],
        "recipe": recipe.to_record(),
        "seed": recipe.seed,
        "parent": (
            None if parent is None else {"name": parent_name, "sha256": hash_directory(parent)}
        ),
        "data": data_record,
        "save_dtype": save_dtype,
        "log": LOG,
    }
    if keep_every is not None:
        record["keep_every"] = keep_every
    if objectives:
        record["objectives"] = [objective.to_record() for objective in objectives]
    run = (
        ""
        if resume_every is None
        else hash_json({**record, **_fingerprint(model, rows_digest(), loss, wrap, callbacks)})
    )
    # the Trainer switches it off, and that would be saved
    use_cache = getattr(model.config, "use_cache", True)
    with trainer.seeded(recipe.seed, "fit"), quiet(), _scratch(out, resume_every) as scratch:
        if recipe.method == "lora":
            model = with_adapter(recipe, model, parent_name)
        if recipe.method == "steering":
            model = SteeredModel(model, recipe.layers_to_transform or ())
        trained = model if wrap is None else wrap(model)
        before = _snapshot(model)
        keeper = [] if keep_every is None else [KeptAdapters(keep_every, scratch / "kept")]
        told: list[TrainingCallback] = []
        if objectives:
            loss = ObjectiveLoss(loss, objectives, trained)
            told = [loss.values]
        snapshots = None if resume_every is None else Snapshots(scratch, resume_every, run)
        rows, stopped = trainer.train(
            recipe, trained, parts, loss, scratch, [*keeper, *told, *callbacks], progress, snapshots
        )
        _require_change(before, model)
        model.eval()
        model.config.use_cache = use_cache
        log = pd.DataFrame(rows)
        with publishing_directory(out) as staging:
            if recipe.method == "steering":
                model.save(staging)
            else:
                save_model(
                    model, staging, save_dtype, tokenizer if recipe.method == "full" else None
                )
            for kept in keeper:
                kept.publish(staging, len(log), save_dtype)
            log.to_csv(staging / LOG, index=False)
            facts = {
                "steps_done": len(log),
                "stopped": stopped,
                "threads": torch.get_num_threads(),
                "versions": library_versions(),
            }
            write_json(staging / SIDECAR, record | facts)
            if before_publish is not None:
                before_publish(staging, model)
    return Fitted(out, log, stopped, model)


def read_record(directory: str | Path) -> dict[str, Any]:
    """The `emlens.json` of a checkpoint that `fit` made.

    Raises:
        InputError: the directory has none.
    """
    path = Path(directory) / SIDECAR
    if not path.is_file():
        raise InputError(f"{directory}: has no {SIDECAR}; pass a checkpoint that emlens trained")
    record: dict[str, Any] = read_json(path)
    return record


def load_parent(path: Path, device: str = "cpu") -> tuple[Any, Any]:
    """Model in float32 and tokenizer of a checkpoint directory.

    Raises:
        LoadError: the directory holds no model, or one that cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    from emlens.models.loading import saved_tokenizer

    if not (path / "config.json").is_file():
        raise LoadError(
            f"model={str(path)!r} holds no model; pass a directory with config.json and weights"
        )
    try:
        with quiet():
            return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).to(
                device
            ), saved_tokenizer(str(path), path)
    except (OSError, ValueError) as error:
        raise LoadError(f"model={str(path)!r} cannot be loaded: {one_line(str(error))}") from error


def _fingerprint(
    model: nn.Module,
    rows: str,
    loss: Loss,
    wrap: Callable[[nn.Module], nn.Module] | None,
    callbacks: Sequence[TrainingCallback],
) -> dict[str, Any]:
    """What a run depends on beside its record."""
    settings = {
        name: repr(value)
        for name, value in getattr(loss, "__dict__", {}).items()
        if isinstance(value, bool | int | float | str)
    }
    return {
        "weights": hash_tensors(model.state_dict()),
        "rows": rows,
        "loss": [qualified_name(loss), settings],
        "wrap": None if wrap is None else qualified_name(wrap),
        "callbacks": [qualified_name(callback) for callback in callbacks],
    }


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


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
