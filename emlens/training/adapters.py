"""The adapter after every few steps of a run, kept in memory and written as PEFT directories beside the last one.

Memory: one adapter a kept step, so for adapters that are small beside the model.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
KEPT: Final = "checkpoints"


class KeptAdapters:
    """A training callback that copies the adapter after every `every` steps; `write` puts the copies on disk."""

    def __init__(self, every: int):
        self.every = every
        self._kept: dict[int, dict[str, Tensor]] = {}

    def __call__(self, model: Any, step: int) -> Mapping[str, Any] | None:
        from peft import get_peft_model_state_dict

        if step % self.every == 0:
            state = get_peft_model_state_dict(model, save_embedding_layers=False)
            self._kept[step] = {name: value.detach().clone().contiguous() for name, value in state.items()}
        return None

    def write(self, directory: Path, dtype: str | None) -> None:
        """Write each kept adapter under `directory`, whose own adapter configuration it shares; weights in `dtype`."""
        from safetensors.torch import save_file

        for step, state in self._kept.items():
            target = directory / KEPT / f"step-{step:05d}"
            target.mkdir(parents=True)
            kept = state if dtype is None else {name: value.to(getattr(torch, dtype)) for name, value in state.items()}
            save_file(kept, target / ADAPTER_WEIGHTS, metadata={"format": "pt"})
            shutil.copyfile(directory / ADAPTER_CONFIG, target / ADAPTER_CONFIG)


def kept_adapters(directory: str | Path) -> dict[int, Path]:
    """Step → directory of each adapter that a run kept, in order; empty where it kept none."""
    return {int(path.name.removeprefix("step-")): path for path in sorted((Path(directory) / KEPT).glob("step-*"))}
