"""An adapter directory as PEFT saves it: what it says of itself, and whether emlens can run it.

Refused here, before anything is loaded: adapters that only PEFT's own wrapper runs (virtual tokens,
routers, an adapter that wakes after a phrase), and those whose loading rewrites the parent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from emlens.foundation.bounded import check_archive, check_tensor_file
from emlens.foundation.errors import LoadError
from emlens.foundation.files import canonical_json, one_line, sha256_text
from emlens.foundation.provenance import hash_tensors
from emlens.models.adapter_patterns import require_cheap_patterns
from emlens.models.checkpoint_files import read_object
from emlens.models.sidecars import check_adapter_config

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."
"""What PEFT writes before the path of every module."""

_NO_PASS_OF_ITS_OWN = {
    "PREFIX_TUNING": "prefix tuning puts learned keys and values before every prompt",
    "CARTRIDGE": "a cartridge puts learned keys and values before every prompt",
    "PROMPT_TUNING": "prompt tuning puts virtual tokens before every prompt",
    "MULTITASK_PROMPT_TUNING": "prompt tuning puts virtual tokens before every prompt",
    "P_TUNING": "P-tuning puts virtual tokens before every prompt",
    "CPT": "context-aware prompt tuning puts virtual tokens before every prompt",
    "XLORA": "X-LoRA weighs its adapters by a pass of its own before every pass",
    "POLY": "Poly picks its experts by a task id that is passed with every prompt",
    "SHADOW": "a shadow adapter runs a second stream beside the model's",
}
"""Kinds that live in PEFT's wrapper: the module that emlens hooks would run without them."""
_REWRITES = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations of LoRA that subtract what they put into A and B from the parent's weights."""
_TRAINS_MORE = {
    "modules_to_save": "also trains whole modules (modules_to_save)",
    "trainable_token_indices": "also trains rows of the embedding (trainable_token_indices)",
    "target_parameters": "changes experts (target_parameters), each by an update of its own",
}
"""Options of LoRA that train something beside the output of a module."""
_OWN_TREE = (*_TRAINS_MORE, "ensure_weight_tying")
"""Options of LoRA that replace modules of the parent, which other adapters could not share."""
BEYOND_FACTORS = {
    **_TRAINS_MORE,
    "use_dora": "is a DoRA adapter, whose magnitudes are not a low-rank update",
    "lora_bias": "has biases on its factors (lora_bias), which are not a low-rank update",
    "use_qalora": "pools the inputs of its factors (QA-LoRA)",
    "use_bdlora": "has factors in blocks (BD-LoRA)",
    "velora_config": "compresses what its factors read (VeLoRA)",
    "monteclora_config": "draws its factors at random (MonteCLoRA)",
    "arrow_config": "picks among several adapters at every token (Arrow)",
}
"""Options of LoRA → what they add to, or make of, the product of two factors.

`ensure_weight_tying` is not among them: what it ties stays two factors in each of two modules.
"""


def is_adapter(path: str | Path) -> bool:
    return (Path(path) / CONFIG).is_file()


def named_adapters(path: str | Path) -> list[str]:
    """Folders of a directory that hold an adapter each: PEFT saves named adapters that way."""
    return sorted(folder.parent.name for folder in Path(path).glob(f"*/{CONFIG}"))


def require_adapter(path: str | Path) -> None:
    """Raise `LoadError` for a directory without an adapter, naming those in its folders."""
    if is_adapter(path):
        return
    if names := named_adapters(path):
        shown = ", ".join(one_line(repr(name), 60) for name in names[:8])
        raise LoadError(
            f"{path}: holds {len(names)} named adapters ({shown});"
            f" pass one of its folders, or FineTune(..., subfolder={names[0]!r})"
        )
    raise LoadError(f"{path}: holds no {CONFIG}; pass a directory saved by PEFT")


@dataclass(frozen=True)
class AdapterFiles:
    """The configuration and the tensors of an adapter directory.

    Raises:
        LoadError: not an adapter, files that cannot be read, or a kind that emlens cannot run.
    """

    path: Path

    def __post_init__(self) -> None:
        require_adapter(self.path)
        self._refuse_kinds()
        check_adapter_config(self.path / CONFIG, self.config)
        require_cheap_patterns(self.config, self.path / CONFIG)

    @cached_property
    def config(self) -> dict[str, Any]:
        config = read_object(self.path / CONFIG)
        if not isinstance(config.get("peft_type"), str):
            raise LoadError(f"{self.path / CONFIG}: names no peft_type; pass one saved by PEFT")
        return config

    @property
    def kind(self) -> str:
        return str(self.config["peft_type"]).upper()

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """By the names of the file."""
        for name in WEIGHTS:
            file = self.path / name
            if not file.is_file():
                continue
            check = check_tensor_file if file.suffix == ".safetensors" else check_archive
            check(file)
            try:
                if file.suffix == ".safetensors":
                    return load_file(file)
                return dict(torch.load(file, map_location="cpu", weights_only=True))
            except Exception as error:  # an unpickler raises what it likes
                raise LoadError(f"{file}: cannot be read ({one_line(str(error), 160)})") from None
        raise LoadError(
            f"{self.path}: holds no {WEIGHTS[0]}; save the adapter with save_pretrained"
        )

    @cached_property
    def written_twice(self) -> set[str]:
        """Names of tensors that PEFT writes once more, and reads from their first name.

        It does so for saved modules after the vocabulary was resized.
        """
        twice = set()
        for name in self.tensors:
            for part in (".modules_to_save.", ".original_module."):
                if part in name and name.replace(part, ".") in self.tensors:
                    twice.add(name)
        return twice

    @property
    def sha256(self) -> str:
        """Over the tensors and the configuration, without the name of the base."""
        config = {**self.config, "base_model_name_or_path": None}
        return sha256_text(hash_tensors(self.tensors) + canonical_json(config))

    def _refuse_kinds(self) -> None:
        config, kind = self.config, self.kind
        reason = _NO_PASS_OF_ITS_OWN.get(kind)
        if config.get("alora_invocation_tokens"):
            reason = "an activated LoRA (aLoRA) acts only after its phrase, which PEFT looks for"
        if config.get("arrow_config"):
            reason = "Arrow picks among several adapters at every token"
        if reason is not None:
            raise LoadError(
                f"{self.path}: {reason}, outside the model whose sites are read, so no activation"
                " would be that of this adapter; pass another kind of fine-tune"
            )
        init = config.get("init_lora_weights")
        if isinstance(init, str) and init.lower().startswith(_REWRITES):
            raise LoadError(
                f"{self.path}: was started with init_lora_weights={one_line(repr(init), 40)}, which"
                " takes weights out of the parent, and was not converted; save it with"
                " path_initial_model_for_weight_conversion, or merge it where it was trained"
            )
        if config.get("layer_replication"):
            raise LoadError(
                f"{self.path}: repeats blocks of the parent (layer_replication), so its layers are"
                " not those of the parent; merge it and pass the full checkpoint"
            )

    @property
    def is_low_rank(self) -> bool:
        """Whether it is LoRA on modules' outputs and nothing else (biases of B included).

        Such adapters can share one tree of modules, one switched on at a time.
        """
        config = self.config
        return (
            self.kind == "LORA"
            and config.get("bias", "none") == "none"
            and not any(config.get(option) for option in _OWN_TREE)
        )

    @property
    def trained_tokens(self) -> list[int]:
        """Token ids whose embeddings it trains, where it names them."""
        indices = self.config.get("trainable_token_indices") or self.config.get("token_indices")
        if isinstance(indices, Mapping):
            indices = [token for tokens in indices.values() for token in tokens]
        return [int(token) for token in indices or []]

    def base_tensors(self, module: Any) -> dict[str, tuple[str, Tensor]]:
        """Tensors of the file that are weights of the base: name in the file → (weight, value).

        PEFT saves the embeddings with an adapter that targets them or after the vocabulary was
        resized, and trained biases. Modules of `modules_to_save` are not among them: PEFT keeps
        those beside the base.
        """
        names = {plain_name(name) for name, _ in module.named_parameters(remove_duplicate=False)}
        whole_modules = self.config.get("modules_to_save") or []
        tensors = {}
        for name, value in self.tensors.items():
            weight = plain_name(name)
            if weight in names and not _is_inside(weight, whole_modules):
                tensors[name] = (weight, value)
        return tensors


def plain_name(name: str) -> str:
    """The name without adapters, of a weight that PEFT moved to `x.base_layer.weight`."""
    return name.removeprefix(PREFIX).replace(".base_layer", "")


def _is_inside(weight: str, modules: Any) -> bool:
    """Whether a weight belongs to a module that the list names, by PEFT's rule."""
    parts = weight.split(".")
    paths = [".".join(parts[:i]) for i in range(1, len(parts))]
    return any(path.endswith(str(name)) for path in paths for name in modules)


_RECORDED = (
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "use_dora",
    "target_modules",
    "target_parameters",
    "modules_to_save",
    "trainable_token_indices",
    "bias",
    "lora_bias",
    "layers_to_transform",
    "base_model_name_or_path",
)
_SAID_BY_ABSENCE = ("target_parameters", "modules_to_save", "trainable_token_indices", "lora_bias")


def adapter_provenance(path: str | Path) -> dict[str, Any]:
    """What provenance records of an adapter: type, rank, scale rule, targets, the base it names."""
    config = read_object(Path(path) / CONFIG)
    record = {key: config[key] for key in _RECORDED if key in config}
    for key in _SAID_BY_ABSENCE:
        if not record.get(key):
            record.pop(key, None)
    if record.get("bias") == "none":
        del record["bias"]
    if isinstance(record.get("target_modules"), list):
        record["target_modules"] = sorted(map(str, record["target_modules"]))
    base = record.get("base_model_name_or_path")
    if isinstance(base, str) and (Path(base).is_absolute() or "\\" in base):
        # a directory of another machine says nothing here; its last part may
        record["base_model_name_or_path"] = Path(base.replace("\\", "/")).name
    return record
