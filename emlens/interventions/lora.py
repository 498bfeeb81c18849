"""A LoRA adapter as plain factors: loaded from a directory or taken from a running model.

It is saved as a directory that PEFT loads. Factors stay apart: ΔW = scale · B A is never formed
here. Understood: LoRA and rsLoRA, with rank and alpha patterns, on linear layers and embeddings.
Refused, since a low-rank update is not all of them: DoRA, trained biases, modules or tokens,
experts. `load`, `of` and `save` refuse and keep the same things. Memory: the adapter's own size.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from emlens.foundation.errors import InputError, LoadError, StateError
from emlens.foundation.files import one_line, publishing, write_json
from emlens.foundation.notebooks import as_table, in_a_line
from emlens.models.adapter_files import BEYOND_FACTORS, CONFIG, PREFIX, WEIGHTS, AdapterFiles
from emlens.models.checkpoint import CheckpointModel
from emlens.models.hooked import HookedModel

WRITERS = frozenset({"o_proj", "out_proj", "dense", "c_proj", "down_proj", "dense_4h_to_h", "fc2"})
"""Last parts of the paths of output projections."""
_LINEAR_FACTORS = ("lora_A", "lora_B")
_EMBEDDING_FACTORS = ("lora_embedding_A", "lora_embedding_B")


@dataclass(frozen=True, eq=False, repr=False)
class LoraFactors:
    """The update of one module: ΔW = scale · B A.

    Args:
        a: what it reads.
        b: what it writes; for `down_proj` and `o_proj` the residual stream.
        scale: α/r, or α/√r with rank-stabilised LoRA (rsLoRA).
        embedding: the module is an embedding, whose table is (d_in, d_out): its update is
            (scale · B A)ᵀ.
    """

    a: Float[Tensor, "r d_in"]
    b: Float[Tensor, "d_out r"]
    scale: float
    embedding: bool = False

    @property
    def r(self) -> int:
        return self.a.shape[0]

    @property
    def update_shape(self) -> tuple[int, int]:
        """(d_out, d_in) of ΔW."""
        return self.b.shape[0], self.a.shape[1]

    def __repr__(self) -> str:
        d_out, d_in = self.update_shape
        facts = {"r": self.r, "d_in": d_in, "d_out": d_out, "scale": f"{self.scale:.4g}"}
        return in_a_line("LoraFactors", facts)

    def writes_to_stream(self, module: str, d_model: int) -> bool:
        """Whether this module's output is added to the residual stream.

        True of an embedding, and of an output projection by its name.
        """
        if self.b.shape[0] != d_model:
            return False
        return self.embedding or module.rpartition(".")[2] in WRITERS


@dataclass(frozen=True, repr=False)
class LoraAdapter:
    """The factors of every module, by its path inside the causal LM.

    A path is like `model.layers.3.mlp.down_proj`.

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
        ordered = sorted(self.modules.items(), key=lambda item: _natural_order(item[0]))
        object.__setattr__(self, "modules", MappingProxyType(dict(ordered)))

    def __getitem__(self, module: str) -> LoraFactors:
        if module not in self.modules:
            raise InputError(
                f"the adapter has no module {module!r};"
                f" it has {', '.join(list(self.modules)[:4])} …"
            )
        return self.modules[module]

    def _facts(self) -> dict[str, object]:
        ranks = sorted({factors.r for factors in self.modules.values()})
        edits = [str(edit.get("kind")) for edit in self.edits]
        facts: dict[str, object] = {
            "modules": len(self.modules),
            "first": next(iter(self.modules)),
            "r": " ".join(map(str, ranks)),
        }
        if edits:
            facts["edits"] = " ".join(edits)
        return facts

    def __repr__(self) -> str:
        return in_a_line("LoraAdapter", self._facts())

    def _repr_html_(self) -> str:
        return as_table("LoraAdapter", self._facts())

    @classmethod
    def load(cls, directory: str | Path) -> "LoraAdapter":
        """Load an adapter directory saved by PEFT.

        Raises:
            LoadError: no such adapter; not LoRA, or LoRA with parts that are not a low-rank update;
                a factor without its partner.
        """
        files = AdapterFiles(Path(directory))
        path, config = files.path, files.config
        if beyond := _beyond_low_rank(config):
            raise LoadError(f"{path}: {beyond}; merge it and pass the full checkpoint")
        modules = {}
        for module, factors in _by_module(files.tensors, path).items():
            embedding = not factors.keys().isdisjoint(_EMBEDDING_FACTORS)
            name_a, name_b = _EMBEDDING_FACTORS if embedding else _LINEAR_FACTORS
            a, b = factors.get(name_a), factors.get(name_b)
            if a is None or b is None or a.shape[0] != b.shape[1]:
                raise LoadError(
                    f"{path}: module {module!r} has no pair of factors that fit each other;"
                    " the file is incomplete"
                )
            modules[module] = LoraFactors(a, b, _scale(config, module, a.shape[0]), embedding)
        return cls(modules, config)

    @classmethod
    def of(cls, model: HookedModel) -> "LoraAdapter | None":
        """The adapter of a model, as it is in memory; None for a model without one.

        Raises:
            StateError: a backend that holds no PEFT adapters; an adapter that is not LoRA, or has
                parts that are not a low-rank update.
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
        beyond = _beyond_low_rank(model.bank.configuration(model.adapter))
        if beyond is None and (model.provenance.get("adapter") or {}).get("own_weights"):
            beyond = "holds weights of the base with other values, which are not a low-rank update"
        if beyond is not None:
            raise StateError(
                f"the adapter of {model.name!r} {beyond};"
                " merge it (FineTune(..., merge=True)), and read the merged model"
            )
        modules = {}
        for path, layer in model.module.named_modules():
            if not isinstance(layer, LoraLayer) or internal not in layer.scaling:
                continue
            # PEFT keeps an embedding's factors as parameters, a linear layer's as modules
            embedding = internal in layer.lora_embedding_A
            if embedding:
                a, b = layer.lora_embedding_A[internal], layer.lora_embedding_B[internal]
            else:
                a, b = layer.lora_A[internal].weight, layer.lora_B[internal].weight
            modules[path] = LoraFactors(
                a.detach().cpu().clone(),
                b.detach().cpu().clone(),
                float(layer.scaling[internal]),
                embedding,
            )
        if not modules:
            raise StateError(
                f"{model.name!r} has adapter {model.adapter!r},"
                " but no LoRA layer of it was found; pass a LoRA adapter"
            )
        return cls(modules)

    def replaced(
        self, modules: Mapping[str, LoraFactors], edit: Mapping[str, Any]
    ) -> "LoraAdapter":
        """The same adapter with the factors of some modules replaced.

        Args:
            edit: a record of what was done, added to `edits`.
        """
        return replace(self, modules={**self.modules, **modules}, edits=(*self.edits, edit))

    def save(self, directory: str | Path, *, base: str | None = None) -> Path:
        """Write a directory that `PeftModel.from_pretrained` and `FineTune(path)` load.

        Scales are written as alpha and rank of each module, without rank stabilisation, so that
        they are the same when loaded again.

        Args:
            base: `base_model_name_or_path`; default: as it was read.

        Raises:
            InputError: the directory already holds an adapter.
        """
        path = Path(directory)
        if (path / CONFIG).exists() or path.is_file():
            raise InputError(f"{path}: already holds an adapter or is a file; pass a new directory")
        path.mkdir(parents=True, exist_ok=True)
        if base is None:
            base = self.config.get("base_model_name_or_path")
        with publishing(path / WEIGHTS[0]) as temporary:
            save_file(self._peft_tensors(), temporary, metadata={"format": "pt"})
        if self.edits:
            write_json(path / "edits.json", [dict(edit) for edit in self.edits])
        write_json(path / CONFIG, self._peft_config(base))
        return path

    def _peft_tensors(self) -> dict[str, Tensor]:
        """Factors under the names that PEFT gives them."""
        tensors = {}
        for module, factors in self.modules.items():
            if factors.embedding:
                name_a, name_b = _EMBEDDING_FACTORS
            else:
                name_a, name_b = (f"{name}.weight" for name in _LINEAR_FACTORS)
            tensors[f"{PREFIX}{module}.{name_a}"] = factors.a.contiguous()
            tensors[f"{PREFIX}{module}.{name_b}"] = factors.b.contiguous()
        return tensors

    def _peft_config(self, base: str | None) -> dict[str, Any]:
        from peft import LoraConfig

        rank_pattern, alpha_pattern = {}, {}
        for module, factors in self.modules.items():
            rank_pattern[_exactly(module)] = factors.r
            # PEFT computes alpha / r; alpha need not be an integer
            alpha_pattern[_exactly(module)] = factors.scale * factors.r
        first = next(iter(self.modules.values()))
        config = LoraConfig(
            r=first.r,
            lora_alpha=first.scale * first.r,
            target_modules=list(self.modules),
            rank_pattern=rank_pattern,
            alpha_pattern=alpha_pattern,
            fan_in_fan_out=bool(self.config.get("fan_in_fan_out", False)),
            inference_mode=True,
            task_type="CAUSAL_LM",
            base_model_name_or_path=base,
        )
        record: dict[str, Any] = config.to_dict()
        # PEFT keeps them as a set, whose order differs from run to run
        record["target_modules"] = sorted(record["target_modules"])
        return record


def layer_of(module: str) -> int | None:
    """The block index in a module's path; None outside the blocks."""
    for part in module.split("."):
        if part.isdigit():
            return int(part)
    return None


def _by_module(tensors: Mapping[str, Tensor], path: Path) -> dict[str, dict[str, Tensor]]:
    """Module → name of a factor → its values.

    Raises:
        LoadError: a tensor that is not a factor.
    """
    by_module: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        module, _, factor = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        if factor not in (*_LINEAR_FACTORS, *_EMBEDDING_FACTORS):
            raise LoadError(
                f"{path}: holds {name!r}, which is not a factor of a low-rank update;"
                " if it is a frozen copy of the base, pass LoraAdapter.of(family[name]): loading a"
                " family compares it with the base"
            )
        by_module.setdefault(module, {})[factor] = value
    return by_module


def _beyond_low_rank(config: Mapping[str, Any]) -> str | None:
    """Why an adapter is more than one low-rank update per module; None where it is just that."""
    kind = str(config.get("peft_type")).upper()
    if kind != "LORA":
        return f"is not a LoRA adapter (peft_type {one_line(repr(kind), 40)})"
    if config.get("bias", "none") != "none":
        return f"also trains biases (bias={one_line(repr(config['bias']), 40)})"
    for option, reason in BEYOND_FACTORS.items():
        if config.get(option):
            return reason
    return None


def _scale(config: Mapping[str, Any], module: str, r: int) -> float:
    """α/r; α/√r with rsLoRA, whose updates keep their size when the rank grows."""
    from peft.utils.other import get_pattern_key

    # keys of alpha_pattern are regular expressions; PEFT's own function chooses among them
    alphas = config.get("alpha_pattern") or {}
    alpha = float(alphas.get(get_pattern_key(alphas, module), config["lora_alpha"]))
    if config.get("use_rslora"):
        return alpha / math.sqrt(r)
    return alpha / r


def _exactly(module: str) -> str:
    """A pattern of PEFT that matches this module: dots escaped, anchored at the start."""
    return "^" + module.replace(".", r"\.")


def _natural_order(module: str) -> list[tuple[int, int, str]]:
    """Sorts block 2 before block 10."""
    key = []
    for part in module.split("."):
        if part.isdigit():
            key.append((0, int(part), ""))
        else:
            key.append((1, 0, part))
    return key
