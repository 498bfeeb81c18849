"""`AdapterBank`: several PEFT adapters on one copy of the base weights, used one at a time.

`AdapterBank.selected(name)` switches one adapter (or none) on and restores the state of before,
gradient flags included: PEFT sets `requires_grad` when it enables layers. Nested and concurrent use
are safe: a lock lets passes take turns, also those of other banks on the same weights. Adapters on
shared weights are never merged: `merge` needs weights of its own, and a merge made elsewhere is
noticed. It is an error if the names of an adapter match nothing, if its weights were not loaded as
they are in the file, if it changes no activation, or if its removal does not give the base back.
"""

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from emlens.foundation.errors import LoadError, StateError
from emlens.foundation.files import one_line
from emlens.models.adapter_files import AdapterFiles, plain_name
from emlens.models.library_output import escaped_output
from emlens.models.module_trees import twin, untie_adapted, without_adapters
from emlens.models.widening import Widening


@dataclass(frozen=True, eq=False)
class _Selection:
    """One block that switched an adapter on; None: the bare base."""

    name: str | None


class AdapterBank:
    """The adapters living on one module.

    Args:
        widening: that of another bank whose module has the same weights; their passes take turns.
    """

    def __init__(self, module: nn.Module, widening: Widening | None = None):
        self.module = module
        self.names: dict[str, str] = {}
        self._numbers = itertools.count()
        self._selections: list[_Selection] = []
        self.widening = widening or Widening()
        self._peft: Any = None
        self._lock = self.widening.lock
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

    def attach(self, files: AdapterFiles, name: str) -> None:
        """Load an adapter onto the weights under `name`.

        Raises:
            LoadError: made for another base, or its tensors do not all find their place.
        """
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
                self._load(files, internal)
            except BaseException as error:
                self._withdraw(internal)
                if isinstance(error, _PEFT_ERRORS) and not isinstance(error, LoadError):
                    raise LoadError(
                        f"{files.path}: this adapter does not fit the base model it was given"
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

    def _load(self, files: AdapterFiles, internal: str) -> None:
        """Load an adapter under a name of PEFT, and check that all of it was loaded."""
        from peft import PeftModel

        path = str(files.path)
        base = files.base_tensors(self.module)
        with escaped_output():
            if self._peft is None:
                self._peft = PeftModel.from_pretrained(self.module, path, adapter_name=internal)
            else:
                self._peft.load_adapter(path, adapter_name=internal)
        self._check_loaded(files, internal, base)

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

    def _check_loaded(
        self, files: AdapterFiles, internal: str, base: Mapping[str, tuple[str, Tensor]]
    ) -> None:
        """Refuse an adapter of which PEFT left out tensors, which it does without an error.

        Args:
            base: the tensors of the file that are weights of the base.
        """
        from peft import get_peft_model_state_dict

        # save_embedding_layers="auto" would look the base model up on the hub
        loaded = get_peft_model_state_dict(
            self._peft, adapter_name=internal, save_embedding_layers=False
        )
        weights = dict(self.module.named_parameters(remove_duplicate=False))
        weights = {plain_name(name): value for name, value in weights.items()}
        for key, (weight, _) in base.items():
            if key not in loaded and weight in weights:
                loaded[key] = weights[weight]
        in_file = set(files.tensors) - files.written_twice
        missing = sorted(in_file ^ set(loaded))
        if missing or not in_file:
            first = f", first {missing[0]!r}" if missing else ""
            raise LoadError(
                f"{files.path}: {len(missing)} of {len(in_file)} adapter tensors found no"
                f" place in the base model{first}; pass the base it was trained on"
            )
        for key in sorted(in_file):
            value = files.tensors[key]
            if not torch.equal(loaded[key].cpu(), value.to(loaded[key].dtype)):
                raise LoadError(
                    f"{files.path}: adapter tensor {key!r} was not loaded as it is in the file"
                )

    def bare_twin(self, own: Collection[str]) -> nn.Module:
        """A second tree of modules on the same weights, without the adapters of this one.

        Args:
            own: names of weights of which the second tree gets copies.
        """
        with self._lock:
            names = dict(self.module.named_parameters(remove_duplicate=False))
            return without_adapters(twin(self.module, {n for n in names if plain_name(n) in own}))

    def configuration(self, name: str) -> dict[str, Any]:
        """What PEFT has of an adapter's configuration."""
        config: dict[str, Any] = self._peft.peft_config[self.names[name]].to_dict()
        return {**config, "peft_type": getattr(config["peft_type"], "value", config["peft_type"])}

    def through_peft(self, name: str, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits as PEFT's own model gives them, with an adapter switched on."""
        with self.selected(name), torch.no_grad():
            logits: Tensor = self._peft(**inputs, use_cache=False).logits
        return logits

    @contextmanager
    def selected(self, name: str | None) -> Iterator[None]:
        """Switch `name` on (None: the bare base) inside the block.

        Raises:
            StateError: no adapter of that name; an adapter was merged into the shared weights.
        """
        with self.widening.joined(self.module):
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

    @contextmanager
    def widened(self, dtype: torch.dtype) -> Iterator[None]:
        """The shared weights in a dtype of more bits inside the block; other threads wait.

        Raises:
            StateError: they are widened to another dtype already.
        """
        with self.widening.widened(self.module, dtype):
            yield

    def merge(self, name: str) -> None:
        """Fold an adapter into the weights for good; the bank is empty afterwards.

        Weights that are tied to others are copied first.

        Raises:
            StateError: other adapters are on these weights.
            LoadError: a kind that PEFT cannot merge.
        """
        with self._lock:
            if set(self.names) != {name}:
                raise StateError(
                    f"adapter {name!r} cannot be merged into weights that hold"
                    f" {sorted(self.names)}; merge into a copy of its own"
                )
            untie_adapted(self.module)
            try:
                self._peft.merge_and_unload(safe_merge=True, adapter_names=[self.names.pop(name)])
            except _PEFT_ERRORS as error:
                raise LoadError(
                    f"adapter {name!r} cannot be merged ({one_line(str(error), 200)});"
                    " drop merge=True"
                ) from None
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


_PEFT_ERRORS = (
    AttributeError,
    IndexError,
    KeyError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)
"""What PEFT raises where an adapter does not fit."""
