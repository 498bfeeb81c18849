"""A trained model on disk: an ordinary checkpoint directory, a PEFT adapter or steering vectors,
whole or not at all.
"""

import copy
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emlens.foundation.errors import IntegrityError
from emlens.foundation.files import read_json, write_json
from emlens.training.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS


def save_model(model: Any, directory: Path, save_dtype: str | None, tokenizer: Any) -> None:
    """Write a checkpoint or an adapter, and the tokenizer if there is one, weights in `save_dtype`
    (None: as they are).

    Raises:
        IntegrityError: a weight overflows in that dtype.
    """
    if hasattr(model, "peft_config"):
        _save_adapter(model, directory, save_dtype)
    else:
        if save_dtype is not None:
            model = copy.deepcopy(model).to(getattr(torch, save_dtype))
            _require_finite(dict(model.named_parameters()), save_dtype)
        model.save_pretrained(directory)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    (directory / "README.md").unlink(missing_ok=True)


def _save_adapter(model: Any, directory: Path, save_dtype: str | None) -> None:
    """Write an adapter; its parent is not copied for the dtype, and may be quantised."""
    from safetensors.torch import load_file, save_file

    model.save_pretrained(directory, safe_serialization=True, save_embedding_layers=False)
    config = read_json(directory / ADAPTER_CONFIG)
    # peft keeps a set, whose order changes from process to process
    config["target_modules"] = sorted(config["target_modules"])
    write_json(directory / ADAPTER_CONFIG, config)
    if save_dtype is not None:
        dtype = getattr(torch, save_dtype)
        weights = {k: v.to(dtype) for k, v in load_file(directory / ADAPTER_WEIGHTS).items()}
        _require_finite(weights, save_dtype)
        save_file(weights, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def _require_finite(weights: Mapping[str, Tensor], save_dtype: str) -> None:
    """Raises:
    IntegrityError: a weight is not finite, once it is in that dtype.
    """
    for name, weight in weights.items():
        if not weight.is_meta and not torch.isfinite(weight).all():
            raise IntegrityError(
                f"weight {name} overflows in {save_dtype}; pass save_dtype='float32' or 'bfloat16'"
            )


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars of transformers, and without its warning about a name that peft
    still uses.
    """
    from transformers.utils import logging

    bar_is_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning
        )
        try:
            yield
        finally:
            if bar_is_enabled:
                logging.enable_progress_bar()


@contextmanager
def publishing_directory(out: Path) -> Iterator[Path]:
    """Yield a directory beside `out`; renamed into place on success, removed on error."""
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
    try:
        yield staging
        staging.chmod(0o755)
        os.replace(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
