"""`fit`: one recipe, one model, one data set → one checkpoint directory with its record.

The directory appears whole or not at all: an ordinary Hugging Face directory, or a PEFT adapter, with `emlens.json`
(parent's hash, recipe, seed, data, threads, why it stopped) and `training_log.csv` (one row a step). No pickle is written.
The loop is that of `transformers.Trainer`. On one machine with one thread count the same call gives the same weights.
"""

import copy
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from emlens.data.prompts import PromptSet
from emlens.foundation.errors import InputError, IntegrityError, LoadError
from emlens.foundation.files import one_line, read_json, write_json
from emlens.foundation.provenance import hash_directory, hash_json, library_versions
from emlens.training.adapters import ADAPTER_CONFIG, KeptAdapters
from emlens.training.examples import Example, encode_answers, pad_batch, shuffled_batches
from emlens.training.objectives import Loss, answer_loss
from emlens.training.recipes import Recipe
from emlens.training.stopping import TrainingCallback

SIDECAR = "emlens.json"
LOG = "training_log.csv"
Data = PromptSet | Sequence[Example] | Callable[[int], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Fitted:
    """A finished run: where the checkpoint lies, its log (step, loss, learning_rate, grad_norm, ...), why it ended early."""

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
    callbacks: Sequence[TrainingCallback] = (),
    wrap: Callable[[nn.Module], nn.Module] | None = None,
    save_dtype: Literal["float32", "float16", "bfloat16"] | None = None,
    before_publish: Callable[[Path, Any], None] | None = None,
    keep_every: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Fitted:
    """Train a model by a recipe and publish the checkpoint.

    Args:
        model: a checkpoint directory (loaded in float32), or a loaded `PreTrainedModel`, which is trained in place.
        data: chats with answers (loss on the answers only); ready rows of `input_ids` and `labels`; or a callable
            from the 0-based step to that step's batch of tensors, which must give the same batch for the same step.
        out: directory to make; must not exist, or be empty.
        tokenizer: needed for chats, and saved beside a full checkpoint; a checkpoint directory's own if None.
        parent: directory whose hash is recorded, where `model` is a loaded model.
        parent_name: what an adapter calls its base; the parent directory's name if None.
        loss: `(model, batch) -> scalar`.
        callbacks: called after each step as `(model, step) -> mapping`; may raise `StopRun(reason)`.
        wrap: makes the module that is trained from the model; the model inside it is what is saved.
        save_dtype: dtype of the saved weights; None keeps that of training.
        before_publish: called with the directory and the trained model before it is published, to add files to it.
        keep_every: also keep the adapter after every so many steps, each as a PEFT directory `checkpoints/step-00001`.
        progress: called after each step with (steps done, steps in all).

    Raises:
        InputError: `out` holds files; a tokenizer or data is missing; the loss is not finite; the adapter fits no layer;
            `keep_every` below 1, or without an adapter.
        IntegrityError: training changed no weight, or a weight overflows in `save_dtype`.
        LoadError: `model` is a path that holds no model.
    """
    from emlens.training import trainer

    if keep_every is not None and (recipe.method != "lora" or keep_every < 1):
        raise InputError(f"keep_every={keep_every} with method={recipe.method!r}; pass 1 or more, and method='lora': only adapters are kept")
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"out={str(out)!r} is there already; pass a new directory")
    if isinstance(model, str | Path):
        parent = Path(model)
        model, own_tokenizer = _load(parent)
        tokenizer = tokenizer if tokenizer is not None else own_tokenizer
    parent = None if parent is None else Path(parent)
    parent_name = parent_name or (parent.name if parent is not None else "unnamed")
    batches, data_record = _batches(recipe, data, tokenizer)
    use_cache = getattr(model.config, "use_cache", True)  # the Trainer switches it off, and that would be saved
    with trainer.seeded(recipe.seed, "fit"), quiet():
        if recipe.method == "lora":
            model = _with_adapter(recipe, model, parent_name)
        trained = model if wrap is None else wrap(model)
        before = _snapshot(model)
        keeper = [] if keep_every is None else [KeptAdapters(keep_every)]
        with tempfile.TemporaryDirectory() as scratch:
            rows, stopped = trainer.train(recipe, trained, batches, loss, Path(scratch), [*keeper, *callbacks], progress)
    _require_change(before, model)
    model.eval()
    model.config.use_cache = use_cache
    log = pd.DataFrame(rows)
    with _publishing_directory(out) as staging, quiet():
        _save(model, staging, save_dtype, tokenizer if recipe.method == "full" else None)
        for kept in keeper:
            kept.write(staging, save_dtype)
        log.to_csv(staging / LOG, index=False)
        record = {
            "kind": "adapter" if recipe.method == "lora" else "checkpoint",
            "recipe": recipe.to_dict(),
            "seed": recipe.seed,
            "parent": None if parent is None else {"name": parent_name, "sha256": hash_directory(parent)},
            "data": data_record,
            "steps_done": len(log),
            "stopped": stopped,
            "save_dtype": save_dtype,
            "log": LOG,
            "threads": torch.get_num_threads(),
            "versions": library_versions(),
        }
        write_json(staging / SIDECAR, record)
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


def _load(path: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (path / "config.json").is_file():
        raise LoadError(f"model={str(path)!r} holds no model; pass a directory with config.json and weights")
    try:
        with quiet():
            return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise LoadError(f"model={str(path)!r} cannot be loaded: {one_line(str(error))}") from error


def _batches(recipe: Recipe, data: Data, tokenizer: Any) -> tuple[Callable[[int], Mapping[str, Tensor]], dict[str, Any]]:
    if callable(data):
        return data, {"kind": "batches", "sha256": None}
    if isinstance(data, PromptSet):
        if tokenizer is None:
            raise InputError("tokenizer is None, but data holds chats; pass the tokenizer whose template renders them")
        digest, examples = data.content_hash, encode_answers(data, tokenizer)
        kind = "chats"
    else:
        examples, kind = list(data), "rows"
        if not examples:
            raise InputError("data is empty; pass at least one row")
        digest = hash_json([{name: list(row[name]) for name in ("input_ids", "labels")} for row in examples])
    pad = getattr(tokenizer, "pad_token_id", None) or 0
    plan = shuffled_batches(len(examples), recipe.batch_size, recipe.steps, recipe.seed)
    return (lambda step: pad_batch([examples[i] for i in plan[step]], pad)), {"kind": kind, "sha256": digest}


def _with_adapter(recipe: Recipe, model: Any, parent_name: str) -> Any:
    from peft import LoraConfig, get_peft_model

    layers = None if recipe.layers_to_transform is None else list(recipe.layers_to_transform)
    config = LoraConfig(
        r=recipe.rank or 0,
        lora_alpha=recipe.alpha,
        use_rslora=recipe.rslora,
        target_modules=list(recipe.target_modules),
        layers_to_transform=layers,
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise InputError(
            f"target_modules={recipe.target_modules!r} with layers_to_transform={recipe.layers_to_transform!r} fit no layer of the "
            f"model: {one_line(str(error), 120)}"
        ) from error
    adapted.peft_config["default"].base_model_name_or_path = parent_name
    return adapted


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def _require_change(before: Mapping[str, Tensor], model: nn.Module) -> None:
    now = dict(model.named_parameters())
    if all(torch.equal(value, now[name].detach()) for name, value in before.items()):
        raise IntegrityError(f"training changed none of {len(before)} weights; the loss does not depend on them, or no token counts")


def _save(model: Any, directory: Path, save_dtype: str | None, tokenizer: Any) -> None:
    if save_dtype is not None:
        model = copy.deepcopy(model).to(getattr(torch, save_dtype))
        for name, parameter in model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise IntegrityError(f"weight {name} overflows in {save_dtype}; pass save_dtype='float32' or 'bfloat16'")
    if hasattr(model, "peft_config"):
        model.save_pretrained(directory, safe_serialization=True, save_embedding_layers=False)
        config = read_json(directory / ADAPTER_CONFIG)
        config["target_modules"] = sorted(config["target_modules"])  # peft keeps a set, whose order changes by process
        write_json(directory / ADAPTER_CONFIG, config)
    else:
        model.save_pretrained(directory)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    (directory / "README.md").unlink(missing_ok=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars of transformers, and without its warning about a name that peft still uses."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        try:
            yield
        finally:
            if shown:
                logging.enable_progress_bar()


@contextmanager
def _publishing_directory(out: Path) -> Iterator[Path]:
    """Yield a directory beside `out`; renamed into place on success, removed on error."""
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
    try:
        yield staging
        staging.chmod(0o755)
        os.replace(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
