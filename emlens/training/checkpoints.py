"""A saved checkpoint, opened as anyone would open it: plain transformers, and PEFT where it is an
adapter.
"""

from pathlib import Path
from typing import Any

import torch

from emlens.foundation.errors import InputError
from emlens.models.library_output import escaped_output
from emlens.training.publishing import quiet
from emlens.training.streams import SteeredModel


def open_checkpoint(path: str | Path, parent: str | Path | None = None) -> Any:
    """The model at `path` in float32 and evaluation mode; an adapter, or steering vectors, are put
    on the checkpoint at `parent`.

    Raises:
        InputError: an adapter or steering vectors without `parent`.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    is_adapter = (Path(path) / "adapter_config.json").is_file()
    is_steering = (Path(path) / "interventions.json").is_file()
    whole_model: str | Path | None = path
    if is_adapter or is_steering:
        whole_model = parent
    if whole_model is None:
        kind = "an adapter" if is_adapter else "steering vectors"
        raise InputError(f"{path}: is {kind}; pass parent=, the checkpoint it was trained on")
    with escaped_output(), quiet():
        model = AutoModelForCausalLM.from_pretrained(str(whole_model), dtype=torch.float32)
        if is_steering:
            return SteeredModel.load(model, Path(path)).eval()
        if is_adapter:
            return PeftModel.from_pretrained(model, str(path)).eval()
        return model.eval()
