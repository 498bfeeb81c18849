"""TransformerLens 4 as a backend: a `TransformerBridge` and its hook points.

The bridge replaces a model's layers in place and switches it to eager attention, so it never gets
the module itself: it wraps a second tree of modules on the same weights, built at the first pass
and again after an adapter was added. Compatibility processing is never turned on (it would centre
the stream), so values are those of the checkpoint.
"""

import copy
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from emlens.foundation.errors import LoadError, StateError
from emlens.foundation.files import one_line
from emlens.foundation.sites import Site
from emlens.models.checkpoint import Call, CheckpointModel, without_own_options
from emlens.models.edit_blocks import ModuleUpdate
from emlens.models.module_trees import twin
from emlens.models.passes import Pass


class _Stop(Exception):
    """Ends a forward pass after the deepest site."""


class TransformerLensModel(CheckpointModel):
    """A `HookedModel` by the hook points of a TransformerLens bridge."""

    backend = "transformer_lens"
    sees_unmultiplied = False  # its hook points see attention and MLP outputs as they are added

    def prepare(self) -> None:
        with self.bank.selected(self.adapter):
            self._bridged()

    def _bridged(self) -> Any:
        return self.bank.derived(self._bridge, lambda bridge: bridge.original_model)

    def _updated_module(self, update: ModuleUpdate) -> nn.Module:
        """Found by its weights, since the bridge has another tree of modules on the same ones."""
        for module in self._bridged().original_model.modules():
            own_weights = module._parameters.get("weight")
            if own_weights is update.weight and not isinstance(module, nn.Embedding):
                found: nn.Module = module
                return found
        raise StateError(
            f"TransformerLens runs {update.path} on copies of its weights, so no update reaches it;"
            " load with backend='transformers'"
        )

    def _call(self, what: Call, inputs: Mapping[str, Any], passing: Pass) -> Any:
        bridge = self._bridged()
        hooks = [(site.lens_name, partial(_visit, passing, site)) for site in passing.sites]
        module = bridge.original_model
        with ExitStack() as stack:
            stack.enter_context(bridge.hooks(fwd_hooks=hooks))
            if what == "generate":
                without_own_options(stack, module)
                return module.generate(**inputs)
            try:
                return module(**inputs)
            except _Stop:
                return None

    def _bridge(self, module: nn.Module) -> Any:
        log = logging.getLogger("transformers")
        level = log.level
        from transformer_lens.model_bridge import TransformerBridge

        log.setLevel(level)  # importing it silences transformers
        try:
            bridge = TransformerBridge.boot_transformers(
                "emlens",  # a name that is none of its own model names
                hf_model=twin(module),
                tokenizer=copy.deepcopy(self.tokenizer),  # the bridge changes special tokens
                device=str(self.device),
                dtype=next(module.parameters()).dtype,
            )
        except Exception as error:  # an adapter of TransformerLens raises what it likes
            kind = module.config.model_type  # type: ignore[union-attr]
            raise LoadError(
                f"TransformerLens cannot wrap a {kind!r} model"
                f" ({type(error).__name__}: {one_line(str(error), 200)});"
                " pass backend='transformers' or 'nnsight'"
            ) from None
        _check_adapters_run(module, bridge.original_model)
        return bridge


def _check_adapters_run(module: nn.Module, bridged: nn.Module) -> None:
    """Refuse a bridge that leaves adapted layers out: it splits fused projections into copies of
    their base weights.
    """
    expected, bridged_layers = _adapted_that_run(module), _adapted_that_run(bridged)
    if len(bridged_layers) < len(expected):
        raise LoadError(
            f"TransformerLens runs {len(bridged_layers)} of the {len(expected)} layers that the"
            f" adapters change, such as {expected[0]!r}:"
            " it splits fused projections into copies without the adapter;"
            " pass backend='transformers' or 'nnsight'"
        )


def _adapted_that_run(tree: nn.Module) -> list[str]:
    """Names of the adapter layers that a pass over two tokens goes through."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = {
        name: layer for name, layer in tree.named_modules() if isinstance(layer, BaseTunerLayer)
    }
    if not adapted:
        return []
    ran: set[nn.Module] = set()
    with torch.no_grad(), ExitStack() as stack:
        for layer in adapted.values():
            handle = layer.register_forward_hook(lambda layer, *_: ran.add(layer))
            stack.callback(handle.remove)
        device: Any = tree.device
        tree(input_ids=torch.tensor([[1, 2]], device=device), use_cache=False)
    return [name for name, layer in adapted.items() if layer in ran]


def _visit(passing: Pass, site: Site, stream: Tensor, hook: Any) -> Tensor:
    value = passing.at(site, stream)
    if passing.ends_at(site):
        raise _Stop
    return value
