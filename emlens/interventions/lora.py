"""A LoRA adapter as plain factors: read from a directory or off a running model, written as a
directory that PEFT loads.

Factors stay apart: ΔW = scale · B A is never formed here. Read: LoRA and rsLoRA, with rank and
alpha patterns, on linear layers and embeddings. Refused: DoRA (its magnitudes are no low-rank
update), and adapters that train biases or whole modules. Memory: the adapter's own size.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from emlens.foundation.errors import InputError, LoadError, StateError
from emlens.foundation.files import one_line, publishing, write_json
from emlens.models.checkpoint import CheckpointModel
from emlens.models.hooked import HookedModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WRITERS = frozenset({"o_proj", "out_proj", "dense", "c_proj", "down_proj", "dense_4h_to_h", "fc2"})
"""Last parts of the paths of output projections."""
_PREFIX = "base_model.model."


@dataclass(frozen=True, eq=False)
class LoraFactors:
    """The update of one module: ΔW = scale · B A.

    Args:
        a: what it reads.
        b: what it writes; for `down_proj` and `o_proj` the residual stream.
        scale: α/r, or α/√r with rank-stabilised LoRA.
        embedding: of an embedding, whose table is (d_in, d_out): its update is (scale · B A)ᵀ.
    """

    a: Float[Tensor, "r d_in"]
    b: Float[Tensor, "d_out r"]
    scale: float
    embedding: bool = False

    @property
    def r(self) -> int:
        return self.a.shape[0]

    def writes_to_stream(self, module: str, d_model: int) -> bool:
        """Whether this module's output is added to the residual stream: an embedding, or an output
        projection by its name.
        """
        return self.b.shape[0] == d_model and (
            self.embedding or module.rpartition(".")[2] in WRITERS
        )


@dataclass(frozen=True)
class LoraAdapter:
    """Every module's factors by its path inside the causal LM, such as
    `model.layers.3.mlp.down_proj`.

    Args:
        modules: in the order of the model's blocks.
        config: `adapter_config.json` as it was read; empty for an adapter made here.
        edits: what was done to it, oldest first; written beside the weights.
    """

    modules: Mapping[str, LoraFactors]
    config: Mapping[str, Any] = field(default_factory=dict)
    edits: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if not self.modules:
            raise InputError("modules is empty; an adapter changes at least one module")
        ordered = sorted(self.modules.items(), key=lambda item: _natural(item[0]))
        object.__setattr__(self, "modules", MappingProxyType(dict(ordered)))

    def __getitem__(self, module: str) -> LoraFactors:
        if module not in self.modules:
            raise InputError(
                f"the adapter has no module {module!r};"
                f" it has {', '.join(list(self.modules)[:4])} …"
            )
        return self.modules[module]

    @classmethod
    def read(cls, directory: str | Path) -> "LoraAdapter":
        """Read an adapter directory saved by PEFT.

        Raises:
            LoadError: no such adapter; not LoRA, or LoRA with parts that are no low-rank update; a
                factor without its partner.
        """
        path = Path(directory)
        config = _config(path)
        try:
            tensors = load_file(path / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise LoadError(
                f"{path / WEIGHTS}: cannot be read ({one_line(str(error), 160)});"
                " pass a directory saved by PEFT"
            ) from None
        found: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            module, _, factor = name.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
            if factor not in ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"):
                raise LoadError(
                    f"{path}: holds {name!r}, which is no factor of a low-rank update;"
                    " merge the adapter and pass the full checkpoint"
                )
            found.setdefault(module, {})[factor] = value
        modules = {}
        for module, parts in found.items():
            embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
            a, b = (parts.get(f"lora_{'embedding_' * embedding}{side}") for side in "AB")
            if a is None or b is None or a.shape[0] != b.shape[1]:
                raise LoadError(
                    f"{path}: module {module!r} has no pair of factors that fit each other;"
                    " the file is incomplete"
                )
            modules[module] = LoraFactors(a, b, _scale(config, module, a.shape[0]), embedding)
        return cls(modules, config)

    @classmethod
    def of(cls, model: HookedModel) -> "LoraAdapter | None":
        """The adapter that a model wears, as it is in memory; None for a model without one.

        Raises:
            StateError: a backend that holds no PEFT adapters, a merged adapter, or one that is not
                plain LoRA.
        """
        if not isinstance(model, CheckpointModel):
            raise StateError(
                f"backend {model.backend!r} holds no adapters that could be read;"
                " load with backend='transformers'"
            )
        if model.adapter is None:
            return None
        from peft.tuners.lora import LoraLayer

        internal = model.bank.names[model.adapter]
        modules = {}
        for path, layer in model.module.named_modules():
            if not isinstance(layer, LoraLayer) or internal not in layer.scaling:
                continue
            if layer.use_dora.get(internal):
                raise StateError(
                    f"{model.name!r} wears DoRA, whose magnitudes are no low-rank update;"
                    " merge it and pass the full checkpoint"
                )
            embedding = internal in layer.lora_embedding_A
            a = layer.lora_embedding_A[internal] if embedding else layer.lora_A[internal].weight
            b = layer.lora_embedding_B[internal] if embedding else layer.lora_B[internal].weight
            modules[path] = LoraFactors(
                a.detach().cpu().clone(),
                b.detach().cpu().clone(),
                float(layer.scaling[internal]),
                embedding,
            )
        if not modules:
            raise StateError(
                f"{model.name!r} wears adapter {model.adapter!r},"
                " but no LoRA layer of it was found; pass a LoRA adapter"
            )
        return cls(modules)

    def replaced(
        self, modules: Mapping[str, LoraFactors], edit: Mapping[str, Any]
    ) -> "LoraAdapter":
        """The same adapter with some modules' factors replaced, and a line on how."""
        return replace(self, modules={**self.modules, **modules}, edits=(*self.edits, edit))

    def save(self, directory: str | Path, *, base: str | None = None) -> Path:
        """Write a directory that `PeftModel.from_pretrained` and `FineTune(path)` load.

        Scales are written as each module's alpha and rank, without rank stabilisation, so that they
        come back as they are.

        Args:
            base: `base_model_name_or_path`; default: as it was read.

        Raises:
            InputError: the directory already holds an adapter.
        """
        from peft import LoraConfig

        path = Path(directory)
        if (path / CONFIG).exists() or path.is_file():
            raise InputError(f"{path}: already holds an adapter or is a file; pass a new directory")
        path.mkdir(parents=True, exist_ok=True)
        first = next(iter(self.modules.values()))
        config = LoraConfig(
            r=first.r,
            lora_alpha=first.scale * first.r,  # PEFT divides whatever number it is
            target_modules=list(self.modules),
            rank_pattern={_exactly(module): factors.r for module, factors in self.modules.items()},
            alpha_pattern={
                _exactly(module): factors.scale * factors.r
                for module, factors in self.modules.items()
            },
            fan_in_fan_out=bool(self.config.get("fan_in_fan_out", False)),
            inference_mode=True,
            task_type="CAUSAL_LM",
            base_model_name_or_path=(
                base if base is not None else self.config.get("base_model_name_or_path")
            ),
        )
        tensors = {}
        for module, factors in self.modules.items():
            names = (
                ("lora_embedding_A", "lora_embedding_B")
                if factors.embedding
                else ("lora_A.weight", "lora_B.weight")
            )
            for name, value in zip(names, (factors.a, factors.b), strict=True):
                tensors[f"{_PREFIX}{module}.{name}"] = value.contiguous()
        with publishing(path / WEIGHTS) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
        if self.edits:
            write_json(path / "edits.json", [dict(edit) for edit in self.edits])
        record = config.to_dict()
        record["target_modules"] = sorted(record["target_modules"])
        write_json(path / CONFIG, record)
        return path


def layer_of(module: str) -> int | None:
    """The block index in a module's path; None outside the blocks."""
    numbers = [int(part) for part in module.split(".") if part.isdigit()]
    return numbers[0] if numbers else None


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / CONFIG).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(
            f"{path / CONFIG}: cannot be read ({one_line(str(error), 160)});"
            " pass a directory saved by PEFT"
        ) from None
    if not isinstance(config, dict) or str(config.get("peft_type")).upper() != "LORA":
        raise LoadError(
            f"{path}: is no LoRA adapter (peft_type"
            f" {config.get('peft_type') if isinstance(config, dict) else None!r})"
        )
    if config.get("use_dora"):
        raise LoadError(
            f"{path}: is a DoRA adapter, whose magnitudes are no low-rank update;"
            " merge it and pass the full checkpoint"
        )
    return config


def _scale(config: Mapping[str, Any], module: str, r: int) -> float:
    from peft.utils.other import get_pattern_key

    alphas = config.get("alpha_pattern") or {}
    alpha = alphas.get(get_pattern_key(alphas, module), config["lora_alpha"])
    return float(alpha) / (math.sqrt(r) if config.get("use_rslora") else r)


def _exactly(module: str) -> str:
    return "^" + module.replace(".", r"\.")


def _natural(module: str) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in module.split(".")]
