"""`CheckpointModel`: a `HookedModel` on a Hugging Face causal LM in this process.

It is what the three backends share. A backend adds one thing: how to call the module while a `Pass`
reads and edits its sites. Several models may share one module through an `AdapterBank`, so passes
take turns.
"""

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from emlens.data.rendering import Rendered
from emlens.foundation.errors import InputError, StateError
from emlens.foundation.intervention import PaddedRows
from emlens.foundation.sites import Site
from emlens.models.adapters import AdapterBank
from emlens.models.architectures import architecture_of, length_threshold
from emlens.models.batches import Batch
from emlens.models.cache_proof import Way, way_to_generate
from emlens.models.edit_blocks import ModuleUpdate, ModuleUpdates
from emlens.models.hooked import HookedModel
from emlens.models.live_weights import weight_versions, weights_fingerprint
from emlens.models.module_trees import is_adapted
from emlens.models.onednn_linear import by_onednn
from emlens.models.pass_counts import note_pass
from emlens.models.passes import Pass, Reader, check_readers
from emlens.models.sampling import Generated, RowSampler
from emlens.models.stops import Ends, Stops
from emlens.models.trunks import run_decoder, whole_key
from emlens.models.widening import can_widen

Call = Literal["decoder", "model", "generate"]
"""The decoder alone (no logits), the whole model, or its `generate`."""


class _Processor(LogitsProcessor):
    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]):
        self._function = function

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self._function(input_ids, scores)


class CheckpointModel(HookedModel):
    """A causal LM of transformers, read and edited by a backend's means."""

    has_row_cache = False
    """Whether the backend can hand the model a cache of rows that come and go."""
    sees_unmultiplied = True
    """Whether the backend sees attention and MLP outputs before the model's multiplier."""

    def __init__(
        self,
        module: nn.Module,
        *,
        bank: AdapterBank | None = None,
        adapter: str | None = None,
        **options: Any,
    ):
        architecture = architecture_of(module)
        super().__init__(n_layers=len(architecture.module(module, architecture.layers)), **options)
        self.module = module
        self.architecture = architecture
        self.site_kinds = architecture.site_kinds
        self.why_missing = architecture.why_missing
        self.threshold = length_threshold(module)
        self.bank = bank or AdapterBank(module)
        self.adapter = adapter
        self._ways: list[Way] = []  # one at most; copies share it
        # whether `emlens.models.continuation_tree` gives its scores; one at most, too
        self.trees_proved: list[bool] = []
        # of `emlens.models.trunks`: which starts were proved, and what a block returns
        self.trunks_proved: dict[tuple[int, str | None, str | None, int], bool] = {}
        self.trunk_forms: dict[str, Any] = {}
        # of `emlens.models.lower_blocks`: first block that is run → whether that was proved
        self.lower_blocks_proved: dict[int, bool] = {}

    def with_adapter(self, adapter: str, *, name: str, provenance: Mapping[str, Any]) -> Self:
        """A copy of this model, on the same weights, with an adapter of its bank switched on."""
        model = copy.copy(self)
        model.adapter = adapter
        model.name = name
        model.provenance = dict(provenance)
        return model

    @property
    def adapter_name(self) -> str | None:
        """What PEFT calls the adapter that is on, a name of its own in the bank; None: none is."""
        if self.adapter is None:
            return None
        return self.bank.names[self.adapter]

    def on_tree(self, module: nn.Module) -> Self:
        """A copy of this model on a second tree of modules on its weights, with its own bank."""
        model = copy.copy(self)
        model.module = module
        model.bank = AdapterBank(module, self.bank.widening)
        model.adapter = None
        model.trunks_proved = {}
        model.lower_blocks_proved = {}
        return model

    def prepare(self) -> None:
        """Build now what the backend would build at its first pass."""
        return

    def require_computable_in(self, dtype: torch.dtype | None) -> None:
        if dtype in (None, self.dtype):
            return
        if not can_widen(self.dtype, dtype):
            raise InputError(
                f"compute_dtype={dtype} cannot hold the weights of {self.name!r} ({self.dtype});"
                " pass 'float32', or load the model in the dtype you want"
            )
        tensors = self.module.parameters()
        if getattr(self.module.config, "quantization_config", None) is not None or any(
            value.is_meta for value in tensors
        ):
            raise InputError(
                f"compute_dtype={dtype}: {self.name!r} has quantised or offloaded weights, which"
                " cannot be widened in place; load it whole and in full precision"
            )

    @contextmanager
    def computing_in(self, dtype: torch.dtype | None) -> Iterator[None]:
        self.require_computable_in(dtype)
        if dtype in (None, self.dtype):
            yield
            return
        with self.bank.widened(dtype):
            yield

    def weights_fingerprint(self) -> str:
        return weights_fingerprint(self.module, self.bank.names.values(), self.adapter_name)

    def weight_versions(self) -> tuple[tuple[int, int], ...]:
        return weight_versions(self.module)

    @abstractmethod
    def _call(self, what: Call, inputs: Mapping[str, Any], passing: Pass) -> Any:
        """Call the module, handing the value at each site of `passing` to `passing.at`.

        The adapter is switched on and gradients are off.

        Returns:
            What the module returns; None where the pass ended early.
        """

    def _called(self, what: Call, inputs: Mapping[str, Any], passing: Pass) -> Any:
        """`_call` with the adapter switched on, under the updates that are active here."""
        with ExitStack() as stack:
            # no other thread runs these modules meanwhile
            stack.enter_context(self.bank.selected(self.adapter))
            stack.enter_context(torch.no_grad())
            stack.enter_context(by_onednn(self.d_model))
            for edit in self.edit_blocks.active:
                if isinstance(edit, ModuleUpdates):
                    for update in edit.updates:
                        module = self._updated_module(update)
                        handle = module.register_forward_hook(_add_update(update))
                        stack.callback(handle.remove)
            output = self._call(what, inputs, passing)
            passing.check_fired(self.name)
            return output

    def _updated_module(self, update: ModuleUpdate) -> nn.Module:
        """The module of the running tree that an update is for."""
        return self.module.get_submodule(update.path)

    @contextmanager
    def updated(self, updates: ModuleUpdates) -> Iterator[Self]:
        """Add low-rank products to what modules compute, in every pass inside the block.

        Like interventions they belong to this context; no weight and no module is touched between
        passes.
        """
        with self.edit_blocks.opened([updates]):
            yield self

    def run(
        self,
        batch: Batch,
        readers: Mapping[Site, Reader] | None = None,
        *,
        with_logits: bool = False,
    ) -> Float[Tensor, "batch token vocab"] | None:
        readers = dict(readers or {})
        if not readers and not with_logits:
            raise InputError("run was asked for nothing; pass readers, or with_logits=True")
        check_readers(readers, self.sites, self.name, self.n_layers, self.why_missing)
        inputs = self._inputs(batch)
        padded = batch.ids.numel()
        note_pass(int(batch.mask.sum()), padded, padded * with_logits)
        if not with_logits:
            key = whole_key(batch)
            run_decoder(self, key, batch.padded_rows(), readers, inputs, stop_early=True)
            return None
        passing = self._pass(batch.padded_rows(), readers)
        logits: Tensor = self._called("model", inputs, passing).logits
        return logits

    @staticmethod
    def _inputs(batch: Batch) -> dict[str, Any]:
        """What the module is called with for a pass over whole rows."""
        mask = batch.mask.long()
        inputs = {"input_ids": batch.ids, "attention_mask": mask, "use_cache": False}
        if batch.side == "left":
            # forward counts positions from the first column, padding included, unless positions
            # are given
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        return inputs

    def _generate(
        self,
        batch: Batch,
        max_new_tokens: int,
        processor: Callable[[Tensor, Tensor], Tensor] | None,
        readers: Mapping[Site, Reader] | None = None,
    ) -> Tensor:
        processors = [_Processor(processor)] if processor else []
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=self.pad_id,
            eos_token_id=sorted(self.stops.ids) or None,
            use_cache=True,
        )
        inputs = {
            "input_ids": batch.ids,
            "attention_mask": batch.mask.long(),
            "generation_config": config,
            "logits_processor": LogitsProcessorList(processors),
        }
        passing = self._pass(batch.padded_rows(max_new_tokens), readers or {})
        ids = self._called("generate", inputs, passing)
        return ids[:, batch.ids.shape[1] :]

    def decode(
        self,
        rows: Sequence[Rendered],
        sampler: RowSampler,
        max_new_tokens: int,
        slots: int,
        ends: Ends,
    ) -> Iterator[list[Generated]]:
        if self.way_to_generate == "again":
            raise StateError(
                f"backend {self.backend!r} cannot generate with {self.name!r}: token by token this"
                " model does not give the scores that it gives to whole rows;"
                " load with backend='transformers', which reads the row again for every token"
            )
        return super().decode(rows, sampler, max_new_tokens, slots, ends)

    @property
    def way_to_generate(self) -> Way:
        """How answers are generated, found at the first call; see `emlens.models.cache_proof`."""
        if not self.architecture.discovered:
            return "rows"
        if not self._ways:
            self._ways.append(way_to_generate(copy.copy(self), self.has_row_cache))
        return self._ways[0]

    @property
    def pads_while_generating(self) -> bool:  # type: ignore[override]
        return not self.architecture.discovered

    def _pass(
        self, rows: PaddedRows, readers: Mapping[Site, Reader], *, stop_early: bool = False
    ) -> Pass:
        """A pass under the active interventions."""
        multiplier = self.architecture.multiplier if self.sees_unmultiplied else 1.0
        return Pass(
            rows, self.edits_by_site(), readers, multiplier=multiplier, stop_early=stop_early
        )

    def _place(self, site: Site) -> tuple[str, bool]:
        """Path of the module at `site`, and whether the site is its input (else its output)."""
        paths = self.architecture
        if site.layer is None:
            return str(paths.final_norm), False
        block = f"{paths.layers}.{site.layer}"
        if site.kind in ("resid_pre", "resid_post"):
            return block, site.kind == "resid_pre"
        if site.kind == "resid_mid":
            return f"{block}.{paths.mid}", True
        child = paths.attn_out if site.kind == "attn_out" else paths.mlp_out
        return f"{block}.{child}", False

    @property
    def stops(self) -> Stops:
        stops = super().stops
        config = getattr(self.module, "generation_config", None)
        ids = getattr(config, "eos_token_id", None)  # may be one, several or none
        if not isinstance(ids, list):
            ids = [ids]
        return Stops(stops.ids | (set(ids) - {None}), stops.texts)

    @property
    def vocab_size(self) -> int:
        return int(self.module.get_output_embeddings().weight.shape[0])  # type: ignore[operator]

    def unembedding(self) -> Float[Tensor, "vocab d_model"]:
        layer: Any = self.module.get_output_embeddings()  # type: ignore[operator]
        if self.adapter is None or not is_adapted(layer):
            return getattr(layer, "base_layer", layer).weight.detach().cpu()
        # an adapter keeps its update beside the weights: read what the layer computes
        with self.bank.selected(self.adapter), torch.no_grad():
            weight = layer.weight
            identity = torch.eye(self.d_model, dtype=weight.dtype, device=weight.device)
            return (layer(identity) - layer(torch.zeros_like(identity[:1]))).T.cpu()


def _add_update(update: ModuleUpdate) -> Callable[..., Tensor]:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return update.added(inputs[0], output)

    return hook


def without_own_options(stack: ExitStack, module: nn.Module) -> None:
    """Take away, until `stack` closes, the generation options of the checkpoint's own file.

    `generate` fills options that a call leaves open from them: a repetition penalty, suppressed
    tokens.
    """
    stack.callback(setattr, module, "generation_config", module.generation_config)
    module.generation_config = GenerationConfig()
