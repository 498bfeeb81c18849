"""`AdapterBank`: several PEFT adapters on one copy of the base weights, used one at a time.

`AdapterBank.selected(name)` switches one adapter (or none) on and restores the state of before,
gradient flags included: PEFT sets `requires_grad` when it enables layers. Nested and concurrent use
are safe: a lock lets passes take turns. Adapters on shared weights are never merged: `merge` needs
weights of its own, and a merge made elsewhere is noticed. It is an error if the names of an adapter
match nothing, if its weights were not loaded as they are in the file, if it changes no activation,
or if its removal does not give the base back.
"""

import itertools
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from emlens.foundation.errors import LoadError, StateError
from emlens.foundation.files import one_line
from emlens.models.checkpoint_files import read_object


def is_adapter(path: str | Path) -> bool:
    return (Path(path) / "adapter_config.json").is_file()


@dataclass(frozen=True, eq=False)
class _Selection:
    """One block that switched an adapter on; None: the bare base."""

    name: str | None


class AdapterBank:
    """The adapters living on one module."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.names: dict[str, str] = {}
        self._numbers = itertools.count()
        self._selections: list[_Selection] = []
        self._peft: Any = None
        self._lock = threading.RLock()
        self._active: str | None = None
        self._layers: list[tuple[Any, list[nn.Parameter]]] | None = None
        self._derived: tuple[Any, nn.Module | None] | None = None

    def derived(
        self, build: Callable[[nn.Module], Any], tree: Callable[[Any], nn.Module] | None = None
    ) -> Any:
        """What a backend builds from the module; built again after an adapter was added or removed.

        Args:
            tree: gives the modules that the built object has of its own, on the same weights;
                adapters are switched there too.
        """
        if self._derived is None:
            built = build(self.module)
            self._derived = (built, tree(built) if tree else None)
            self._layers = None
            self._switch(self._active)
        return self._derived[0]

    def attach(self, path: str | Path, name: str) -> None:
        """Load an adapter directory onto the shared weights under `name`.

        Raises:
            LoadError: not an adapter, made for another base, or its tensors do not all find their
                place.
        """
        path = Path(path)
        if not is_adapter(path):
            raise LoadError(f"{path}: holds no adapter_config.json; pass a directory saved by PEFT")
        if name in self.names:
            raise LoadError(f"adapter name {name!r} is already on this model")
        # PEFT's names become parts of module paths: no dots; never one that was used before, since
        # adapters may be removed in any order
        internal = f"a{next(self._numbers)}"
        with self._lock:
            base_flags = [
                (parameter, parameter.requires_grad) for parameter in self.module.parameters()
            ]
            try:
                self._load(path, internal)
            except BaseException as error:
                self._withdraw(internal)
                if isinstance(error, _PEFT_ERRORS) and not isinstance(error, LoadError):
                    raise LoadError(
                        f"{path}: this adapter does not fit the base model it was given"
                        f" ({one_line(str(error), 300)}); pass the base it was trained on"
                    ) from None
                raise
            finally:
                # PEFT freezes the base and sets requires_grad on what it adds
                for parameter, flag in base_flags:
                    parameter.requires_grad_(flag)
            base_parameters = {id(parameter) for parameter, _ in base_flags}
            for parameter in self._peft.parameters():
                if id(parameter) not in base_parameters:
                    parameter.requires_grad_(False)
            self.names[name] = internal
            self._layers = self._derived = None
            self._switch(self._active)

    def _load(self, path: Path, internal: str) -> None:
        """Load an adapter under a name of PEFT, and check that all of it was loaded."""
        from peft import PeftConfig, PeftModel

        config = PeftConfig.from_pretrained(str(path))
        trains_biases = getattr(config, "bias", "none") != "none"
        if trains_biases or getattr(config, "modules_to_save", None):
            raise LoadError(
                f"{path}: the adapter also trains biases or whole modules,"
                " so switching it off would not give the base back;"
                " merge it and pass the full checkpoint"
            )
        tensors = _adapter_tensors(path, self.module)
        if self._peft is None:
            self._peft = PeftModel.from_pretrained(self.module, str(path), adapter_name=internal)
        else:
            self._peft.load_adapter(str(path), adapter_name=internal)
        self._check_loaded(path, internal, tensors)

    def detach(self, name: str) -> None:
        """Remove an adapter; the base is as it was before."""
        with self._lock:
            self._withdraw(self.names.pop(name))

    def _withdraw(self, internal: str) -> None:
        """Remove an adapter, also a half-loaded one, and the wrappers that hold no other."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._layers = self._derived = None
        for path, layer in list(self.module.named_modules()):
            if not isinstance(layer, BaseTunerLayer):
                continue
            layer.delete_adapter(internal)
            if not layer._all_available_adapter_names():
                parent, _, last = path.rpartition(".")
                setattr(self.module.get_submodule(parent), last, layer.get_base_layer())
        if self.names:
            self._peft.peft_config.pop(internal, None)
            # PEFT looks its active adapter up when it loads the next one
            active = next(iter(self.names.values()))
            self._peft.active_adapter = self._peft.base_model.active_adapter = active
            self._switch(self._active)
        else:
            self._peft = None
            self.module.__dict__.pop("peft_config", None)

    def _check_loaded(self, path: Path, internal: str, tensors: Mapping[str, Tensor]) -> None:
        """Refuse an adapter of which PEFT left out tensors, which it does without an error."""
        from peft import get_peft_model_state_dict

        # save_embedding_layers="auto" would look the base model up on the hub
        loaded = get_peft_model_state_dict(
            self._peft, adapter_name=internal, save_embedding_layers=False
        )
        missing = sorted(set(tensors) ^ set(loaded))
        if missing or not tensors:
            first = f", first {missing[0]!r}" if missing else ""
            raise LoadError(
                f"{path}: {len(missing)} of {len(tensors)} adapter tensors found no place in the"
                f" base model{first}; pass the base it was trained on"
            )
        for key, value in tensors.items():
            if not torch.equal(loaded[key].cpu(), value.to(loaded[key].dtype)):
                raise LoadError(
                    f"{path}: adapter tensor {key!r} was not loaded as it is in the file"
                )

    @contextmanager
    def selected(self, name: str | None) -> Iterator[None]:
        """Switch `name` on (None: the bare base) inside the block.

        Raises:
            StateError: no adapter of that name; an adapter was merged into the shared weights.
        """
        with self._lock:
            if name is not None and name not in self.names:
                raise StateError(
                    f"adapter {name!r} is not on this model; it has {sorted(self.names)}"
                )
            if any(layer.merged for layer, _ in self._tuners()):
                raise StateError(
                    "an adapter was merged into the shared weights outside emlens,"
                    " so the base is no longer the base; load the family again,"
                    " and pass FineTune(..., merge=True) for a merged model of its own"
                )
            selection = _Selection(name)
            self._selections.append(selection)
            if name != self._active:
                self._switch(name)
            try:
                yield
            finally:
                # by identity: generators and tasks of one thread may end in any order
                self._selections.remove(selection)
                remaining = self._selections[-1].name if self._selections else None
                if remaining != self._active:
                    self._switch(remaining)

    def merge(self, name: str) -> None:
        """Fold an adapter into the weights for good; the bank is empty afterwards.

        Raises:
            StateError: other adapters are on these weights.
        """
        with self._lock:
            if set(self.names) != {name}:
                raise StateError(
                    f"adapter {name!r} cannot be merged into weights that hold"
                    f" {sorted(self.names)}; merge into a copy of its own"
                )
            self._peft.merge_and_unload(safe_merge=True, adapter_names=[self.names.pop(name)])
            self._peft = self._layers = self._derived = self._active = None
            self.module.__dict__.pop("peft_config", None)
            for parameter in self.module.parameters():
                parameter.requires_grad_(False)

    def _tuners(self) -> list[tuple[Any, list[nn.Parameter]]]:
        """Every layer that holds adapters, with its parameters.

        Remembered until an adapter is added or removed: a search of all modules costs more than a
        short pass.
        """
        if self._peft is None:
            return []
        if self._layers is None:
            from peft.tuners.tuners_utils import BaseTunerLayer

            modules = list(self._peft.modules())
            if self._derived is not None and self._derived[1] is not None:
                modules += self._derived[1].modules()
            self._layers = [
                (module, list(module.parameters()))
                for module in modules
                if isinstance(module, BaseTunerLayer)
            ]
        return self._layers

    def _switch(self, name: str | None) -> None:
        """Set every adapter layer, and keep the gradient flags.

        PEFT's `enable_adapters` and `set_adapter` set `requires_grad` as a side effect.
        """
        self._active = name
        for layer, parameters in self._tuners():
            flags = [parameter.requires_grad for parameter in parameters]
            layer.enable_adapters(name is not None)
            if name is not None:
                layer.set_adapter([self.names[name]])
            for parameter, flag in zip(parameters, flags, strict=True):
                parameter.requires_grad_(flag)


_PEFT_ERRORS = (ValueError, RuntimeError, KeyError, TypeError, OSError, SafetensorError)
"""What PEFT raises where an adapter does not fit."""


def _adapter_tensors(path: Path, module: nn.Module) -> dict[str, Tensor]:
    """The adapter's tensors as they are in its file.

    Raises:
        LoadError: no file of tensors, or one that would overwrite weights of the base.
    """
    file = path / "adapter_model.safetensors"
    if not file.is_file():
        raise LoadError(
            f"{path}: holds no adapter_model.safetensors;"
            " save the adapter with safe_serialization=True"
        )
    tensors = load_file(file)
    # PEFT moves an adapted weight `x.weight` to `x.base_layer.weight`
    weights = {name.replace(".base_layer", "") for name, _ in module.named_parameters()}
    weights |= {name for name, _ in module.named_parameters()}
    overwritten = []
    for name in sorted(tensors):
        weight = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if weight in weights:
            overwritten.append(name)
    if overwritten:
        raise LoadError(
            f"{path}: also holds weights of the base itself, first {overwritten[0]!r},"
            " so switching it off would not give the base back;"
            " merge it and pass the full checkpoint"
        )
    return tensors


_RECORDED = (
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "use_dora",
    "target_modules",
    "layers_to_transform",
    "base_model_name_or_path",
)


def adapter_provenance(path: str | Path) -> dict[str, Any]:
    """What provenance records of an adapter: type, rank, scale rule, targets, the base it names."""
    config = _adapter_config(path)
    record = {key: config[key] for key in _RECORDED if key in config}
    if isinstance(record.get("target_modules"), list):
        record["target_modules"] = sorted(record["target_modules"])
    base = record.get("base_model_name_or_path")
    if isinstance(base, str) and (Path(base).is_absolute() or "\\" in base):
        # a directory of another machine says nothing here; its last part may
        record["base_model_name_or_path"] = Path(base.replace("\\", "/")).name
    return record


def _adapter_config(path: str | Path) -> dict[str, Any]:
    return read_object(Path(path) / "adapter_config.json")


_PARENT_HASHES = (
    "weights_sha256",
    "config_sha256",
    "tokenizer_sha256",
    "chat_template_sha256",
)


def parent_differences(path: str | Path, parent: Mapping[str, Any]) -> list[str]:
    """Which files of the parent are not those that `training.fit` recorded beside an adapter.

    Args:
        parent: provenance of the model that the adapter is to be put on.

    Returns:
        Among "config", "tokenizer" and "chat_template"; empty without a record.

    Raises:
        LoadError: other weights, or a record that cannot be read.
    """
    record = Path(path) / "emlens.json"
    if not record.is_file():
        return []
    recorded = read_object(record).get("parent")
    if not isinstance(recorded, dict):
        return []
    if "sha256" in recorded:
        raise LoadError(
            f"{record}: names its parent by a hash of whole directories, as an earlier build wrote"
            " it, which says nothing about the weights; train again, or remove the file"
        )
    differences = []
    for name in _PARENT_HASHES:
        expected, given = recorded.get(name), parent.get(name)
        if expected is not None and given is not None and expected != given:
            differences.append(name.removesuffix("_sha256"))
    if "weights" in differences:
        expected, given = str(recorded["weights_sha256"]), str(parent["weights_sha256"])
        raise LoadError(
            f"{path}: was trained on a base whose weights hash begins {one_line(expected[:12])},"
            f" but the base given has {given[:12]}; pass the base it was trained on"
        )
    return differences


def check_named_base(path: str | Path, parent: str | Path, other_parent: str | Path | None) -> None:
    """Refuse an adapter whose configuration names another base than its parent.

    Directories may have been moved, so a name counts only where it is that of the family's other
    parent, or where both are hub ids.

    Args:
        parent, other_parent: where the two parents of the family were loaded from.

    Raises:
        LoadError: says which base the adapter names.
    """
    base = _adapter_config(path).get("base_model_name_or_path")
    if not isinstance(base, str) or not base or _last_part(base) == _last_part(parent):
        return
    if other_parent is not None and _last_part(base) == _last_part(other_parent):
        raise LoadError(
            f"{path}: says it was trained on {base!r}, the family's other parent,"
            f" not on {str(parent)!r}; name it with FineTune(..., parent=)"
        )
    if is_hub_id(base) and is_hub_id(str(parent)) and not Path(parent).exists():
        raise LoadError(
            f"{path}: says it was trained on {base!r}, but was given {str(parent)!r};"
            " pass that base, or FineTune(..., check_base=False) where both names hold the same"
            " weights"
        )


def is_hub_id(text: str) -> bool:
    """Whether it is written like `org/name`."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text) is not None


def _last_part(source: str | Path) -> str:
    return re.split(r"[/\\]", str(source).rstrip("/\\"))[-1].lower()
