"""A saved checkpoint, opened as anyone would open it: plain transformers, and PEFT where it is an adapter."""

from pathlib import Path
from typing import Any

import torch

from emlens.foundation.errors import InputError
from emlens.training.publishing import quiet


def open_checkpoint(path: str | Path, parent: str | Path | None = None) -> Any:
    """The model at `path` in float32 and evaluation mode; an adapter is put on the checkpoint at `parent`.

    Raises:
        InputError: an adapter without `parent`.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = (Path(path) / "adapter_config.json").is_file()
    if adapter and parent is None:
        raise InputError(f"{path}: is an adapter; pass parent=, the checkpoint it was trained on")
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(str(parent if adapter else path), dtype=torch.float32)
        return PeftModel.from_pretrained(model, str(path)).eval() if adapter else model.eval()
