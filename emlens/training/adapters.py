"""Adapters: put on a model as a recipe says, and kept after every few steps of a run as PEFT
directories beside the last one.

Disk: one adapter per kept step, in float32 until the run is published.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.training.recipes import Recipe
from emlens.training.split_weights import whole_tensor

ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
KEPT: Final = "checkpoints"


def with_adapter(recipe: Recipe, model: Any, parent_name: str) -> Any:
    """The model with the recipe's adapter on it, new and without effect yet.

    Raises:
        InputError: the recipe's modules or blocks fit none of the model's.
    """
    from peft import LoraConfig, get_peft_model

    layers = None if recipe.layers_to_transform is None else list(recipe.layers_to_transform)
    config = LoraConfig(
        r=recipe.rank or 0,
        lora_alpha=recipe.alpha,
        use_rslora=recipe.rslora,
        use_dora=recipe.dora,
        target_modules=list(recipe.target_modules),
        layers_to_transform=layers,
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise InputError(
            f"target_modules={recipe.target_modules!r} with"
            f" layers_to_transform={recipe.layers_to_transform!r} fit no layer of the model:"
            f" {one_line(str(error), 120)}"
        ) from error
    adapted.peft_config["default"].base_model_name_or_path = parent_name
    return adapted


class KeptAdapters:
    """A training callback that writes the adapter after every `every` steps into a directory;
    `publish` puts them in their place.
    """

    def __init__(self, every: int, directory: Path):
        self.every = every
        self.directory = directory

    def __call__(self, model: Any, step: int) -> Mapping[str, Any] | None:
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        if step % self.every == 0:
            state = get_peft_model_state_dict(model, save_embedding_layers=False)
            self.directory.mkdir(parents=True, exist_ok=True)
            part = self.directory / f".{_name(step)}"
            save_file(
                {name: _saved(value) for name, value in state.items()},
                part,
                metadata={"format": "pt"},
            )
            part.replace(self.directory / f"{_name(step)}.safetensors")
        return None

    def publish(self, target: Path, last: int, dtype: str | None) -> None:
        """Write each adapter up to step `last` under `target`, whose own adapter configuration it
        shares; weights in `dtype`.
        """
        from safetensors.torch import load_file, save_file

        for path in sorted(self.directory.glob("step-*.safetensors")):
            if int(path.stem.removeprefix("step-")) > last:
                continue
            place = target / KEPT / path.stem
            place.mkdir(parents=True)
            state = load_file(path)
            if dtype is not None:
                state = {name: value.to(getattr(torch, dtype)) for name, value in state.items()}
            save_file(state, place / ADAPTER_WEIGHTS, metadata={"format": "pt"})
            shutil.copyfile(target / ADAPTER_CONFIG, place / ADAPTER_CONFIG)


def _saved(value: Tensor) -> Tensor:
    return whole_tensor(value.detach()).cpu().clone().contiguous()


def _name(step: int) -> str:
    return f"step-{step:05d}"


def kept_adapters(directory: str | Path) -> dict[int, Path]:
    """Step → directory of each adapter that a run kept, in order; empty where it kept none."""
    paths = (Path(directory) / KEPT).glob("step-*")
    by_step = {int(path.name.removeprefix("step-")): path for path in paths}
    return dict(sorted(by_step.items()))
