"""Several PEFT adapters on one copy of the base weights, and a lock that lets one be used at a
time.

`AdapterBank.selected(name)` puts one adapter (or none) in force and restores what was before,
gradient flags included (PEFT switches them on when it enables layers). Nested and concurrent use
are safe: passes take turns. Adapters on shared weights are never merged: `merge` wants weights of
its own, and a merge behind our back is noticed. Guards: an adapter whose names match nothing, whose
weights did not arrive as they are in the file, that changes no activation, or whose removal does
not give the base back, is an error.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from emlens.foundation.errors import LoadError, StateError
from emlens.foundation.files import one_line


def is_adapter(path: str | Path) -> bool:
    return (Path(path) / "adapter_config.json").is_file()


class AdapterBank:
    """The adapters living on one module."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.names: dict[str, str] = {}
        self._peft: Any = None
        self._lock = threading.RLock()
        self._active: str | None = None
        self._layers: list[tuple[Any, list[nn.Parameter]]] | None = None
        self._derived: tuple[Any, nn.Module | None] | None = None

    def derived(
        self, build: Callable[[nn.Module], Any], tree: Callable[[Any], nn.Module] | None = None
    ) -> Any:
        """What a backend builds from the module; built anew once an adapter was added or taken off.

        Args:
            tree: gives modules of its own that the built thing holds on the same weights; adapters
                are switched there too.
        """
        if self._derived is None:
            made = build(self.module)
            self._derived = (made, tree(made) if tree else None)
            self._layers = None
            self._switch(self._active)
        return self._derived[0]

    def attach(self, path: str | Path, name: str, *, weights_hash: str | None = None) -> None:
        """Load an adapter directory onto the shared weights under `name`.

        Args:
            weights_hash: hash of the parent's files; compared with the one a fit of emlens recorded
                beside the adapter.

        Raises:
            LoadError: not an adapter, made for another base, or its tensors do not all find their
                place.
        """
        path = Path(path)
        if not is_adapter(path):
            raise LoadError(f"{path}: holds no adapter_config.json; pass a directory saved by PEFT")
        if name in self.names:
            raise LoadError(f"adapter name {name!r} is already on this model")
        _check_parent(path, weights_hash)
        from peft import PeftConfig, PeftModel

        internal = f"a{len(self.names)}"
        with self._lock:
            originals = [
                (parameter, parameter.requires_grad) for parameter in self.module.parameters()
            ]
            try:
                config = PeftConfig.from_pretrained(str(path))
                if getattr(config, "bias", "none") != "none" or getattr(
                    config, "modules_to_save", None
                ):
                    raise LoadError(
                        f"{path}: the adapter also trains biases or whole modules,"
                        " so switching it off would not give the base back;"
                        " merge it and pass the full checkpoint"
                    )
                stored = _stored(path, self.module)
                if self._peft is None:
                    self._peft = PeftModel.from_pretrained(
                        self.module, str(path), adapter_name=internal
                    )
                else:
                    self._peft.load_adapter(str(path), adapter_name=internal)
                self._check_arrived(path, internal, stored)
            except BaseException as error:
                self._withdraw(internal)
                if isinstance(
                    error,
                    ValueError | RuntimeError | KeyError | TypeError | OSError | SafetensorError,
                ) and not isinstance(error, LoadError):
                    raise LoadError(
                        f"{path}: this adapter does not fit the base model it was given"
                        f" ({one_line(str(error), 300)}); pass the base it was trained on"
                    ) from None
                raise
            finally:
                for parameter, flag in originals:
                    parameter.requires_grad_(flag)
            kept = {id(parameter) for parameter, _ in originals}
            for parameter in self._peft.parameters():
                if id(parameter) not in kept:
                    parameter.requires_grad_(False)
            self.names[name] = internal
            self._layers = self._derived = None
            self._switch(self._active)

    def detach(self, name: str) -> None:
        """Take an adapter off again; the base stands as before."""
        with self._lock:
            self._withdraw(self.names.pop(name))

    def _withdraw(self, internal: str) -> None:
        """Take a half-loaded adapter off again, and the wrappers that hold no other."""
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
            self._switch(self._active)
        else:
            self._peft = None
            self.module.__dict__.pop("peft_config", None)

    def _check_arrived(self, path: Path, internal: str, stored: Mapping[str, Tensor]) -> None:
        from peft import get_peft_model_state_dict

        # "auto" would look the base model up on the hub
        loaded = get_peft_model_state_dict(
            self._peft, adapter_name=internal, save_embedding_layers=False
        )
        missing = sorted(set(stored) ^ set(loaded))
        if missing or not stored:
            raise LoadError(
                f"{path}: {len(missing)} of {len(stored)} adapter tensors found no place in the"
                " base model"
                + (f", first {missing[0]!r}" if missing else "")
                + "; pass the base it was trained on"
            )
        for key, value in stored.items():
            if not torch.equal(loaded[key].cpu(), value.to(loaded[key].dtype)):
                raise LoadError(
                    f"{path}: adapter tensor {key!r} was not loaded as it stands in the file"
                )

    @contextmanager
    def selected(self, name: str | None) -> Iterator[None]:
        """Put `name` (None: the bare base) in force inside the block."""
        with self._lock:
            before = self._active
            if name is not None and name not in self.names:
                raise StateError(
                    f"adapter {name!r} is not on this model; it has {sorted(self.names)}"
                )
            if any(layer.merged for layer, _ in self._tuners()):
                raise StateError(
                    "an adapter was merged into the shared weights behind emlens,"
                    " so the base is no longer the base; load the family anew,"
                    " and pass FineTune(..., merge=True) for a merged model of its own"
                )
            if name != before:
                self._switch(name)
            try:
                yield
            finally:
                if name != before:
                    self._switch(before)

    def merge(self, name: str) -> None:
        """Fold an adapter into the weights for good; the bank is empty afterwards.

        Raises:
            StateError: other adapters live on these weights.
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
        """Every layer that holds adapters, with its parameters; remembered until an adapter comes
        or goes.
        """
        if self._peft is None:
            return []
        if self._layers is None:
            from peft.tuners.tuners_utils import BaseTunerLayer

            tree = self._derived[1] if self._derived else None
            modules = [*self._peft.modules(), *(tree.modules() if tree is not None else ())]
            self._layers = [
                (module, list(module.parameters()))
                for module in modules
                if isinstance(module, BaseTunerLayer)
            ]
        return self._layers

    def _switch(self, name: str | None) -> None:
        """Set every adapter layer; gradient flags stay as they were (PEFT switches them on as a
        side effect).
        """
        self._active = name
        for layer, parameters in self._tuners():
            flags = [parameter.requires_grad for parameter in parameters]
            layer.enable_adapters(name is not None)
            if name is not None:
                layer.set_adapter([self.names[name]])
            for parameter, flag in zip(parameters, flags, strict=True):
                parameter.requires_grad_(flag)


def _stored(path: Path, module: nn.Module) -> dict[str, Tensor]:
    """The adapter's tensors as they lie in its file; refused where they would overwrite weights of
    the base.
    """
    file = path / "adapter_model.safetensors"
    if not file.is_file():
        raise LoadError(
            f"{path}: holds no adapter_model.safetensors;"
            " save the adapter with safe_serialization=True"
        )
    stored = load_file(file)
    own = {name for name, _ in module.named_parameters()} | {
        name.replace(".base_layer", "") for name, _ in module.named_parameters()
    }
    replaced = sorted(
        name
        for name in stored
        if name.removeprefix("base_model.model.").replace(".base_layer", "") in own
    )
    if replaced:
        raise LoadError(
            f"{path}: also holds weights of the base itself, first {replaced[0]!r},"
            " so switching it off would not give the base back;"
            " merge it and pass the full checkpoint"
        )
    return stored


def adapter_facts(path: str | Path) -> dict[str, Any]:
    """What provenance records of an adapter directory: type, rank, scale rule, targets, the base it
    names.
    """
    config = json.loads((Path(path) / "adapter_config.json").read_text("utf-8"))
    keys = (
        "peft_type",
        "r",
        "lora_alpha",
        "use_rslora",
        "use_dora",
        "target_modules",
        "layers_to_transform",
        "base_model_name_or_path",
    )
    facts = {key: config.get(key) for key in keys if key in config}
    if isinstance(facts.get("target_modules"), list):
        facts["target_modules"] = sorted(facts["target_modules"])
    named = facts.get("base_model_name_or_path")
    if isinstance(named, str) and (Path(named).is_absolute() or "\\" in named):
        # a folder of some machine says nothing to others
        facts["base_model_name_or_path"] = Path(named.replace("\\", "/")).name
    return facts


def _check_parent(path: Path, weights_hash: str | None) -> None:
    record = path / "emlens.json"
    if weights_hash is None or not record.is_file():
        return
    parent = json.loads(record.read_text("utf-8")).get("parent")  # as `training.fit` records it
    expected = parent.get("sha256") if isinstance(parent, dict) else None
    if expected is not None and expected != weights_hash:
        raise LoadError(
            f"{path}: was trained on a base whose weights hash begins {expected[:12]},"
            f" but the base given has {weights_hash[:12]}; pass the base it was trained on"
        )


def check_named_base(path: str | Path, own: str | Path, other: str | Path | None) -> None:
    """Refuse an adapter whose configuration names another base than the one it is given.

    Directories may have been moved, so a name only speaks where it is that of the family's other
    parent, or where both are hub ids.

    Raises:
        LoadError: says which base the adapter names.
    """
    config = json.loads((Path(path) / "adapter_config.json").read_text("utf-8"))
    named = config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named or _last(named) == _last(own):
        return
    if other is not None and _last(named) == _last(other):
        raise LoadError(
            f"{path}: says it was trained on {named!r}, the family's other parent,"
            f" not on {str(own)!r}; name it with FineTune(..., parent=)"
        )
    if is_hub_id(named) and is_hub_id(str(own)) and not Path(own).exists():
        raise LoadError(
            f"{path}: says it was trained on {named!r}, but was given {str(own)!r};"
            " pass that base, or FineTune(..., check_base=False) where both names hold the same"
            " weights"
        )


def is_hub_id(text: str) -> bool:
    """Whether it is written like `org/name`."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text) is not None


def _last(source: str | Path) -> str:
    return re.split(r"[/\\]", str(source).rstrip("/\\"))[-1].lower()
