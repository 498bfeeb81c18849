"""A saved checkpoint, opened as anyone would open it: plain transformers, and PEFT where it is an
adapter.
"""

from pathlib import Path
from typing import Any

import torch

from emlens.foundation.errors import InputError
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

    adapter, vectors = (
        (Path(path) / name).is_file() for name in ("adapter_config.json", "interventions.json")
    )
    if (adapter or vectors) and parent is None:
        raise InputError(
            f"{path}: is {'an adapter' if adapter else 'steering vectors'};"
            " pass parent=, the checkpoint it was trained on"
        )
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(
            str(parent if adapter or vectors else path), dtype=torch.float32
        )
        if vectors:
            return SteeredModel.load(model, Path(path)).eval()
        return PeftModel.from_pretrained(model, str(path)).eval() if adapter else model.eval()
