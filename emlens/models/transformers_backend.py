"""The reference backend: plain hooks on the modules of a Hugging Face model.

A block's output may be a bare tensor or a tuple whose first entry is the stream; only tuples are unwrapped (indexing a
tensor would silently take batch row 0). `output_hidden_states` is never used. Hooks are registered through an
`ExitStack` for one forward pass and removed at its end, whatever happens.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from emlens.foundation.errors import InputError, StateError
from emlens.foundation.intervention import Intervention
from emlens.foundation.sites import Site
from emlens.models.adapters import AdapterBank
from emlens.models.architectures import architecture_of
from emlens.models.batches import Batch
from emlens.models.hooked import HookedModel, Reader


class _Stop(Exception):
    """Ends a forward pass after the deepest wanted site."""


class _Processor(LogitsProcessor):
    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]):
        self._function = function

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self._function(input_ids, scores)


class TransformersModel(HookedModel):
    """A `HookedModel` on a Hugging Face causal LM. Several of them may share one module through an `AdapterBank`."""

    backend = "transformers"

    def __init__(self, module: nn.Module, *, bank: AdapterBank | None = None, adapter: str | None = None, **facts: Any):
        super().__init__(**facts)
        self.module = module
        self.architecture = architecture_of(module)
        self.bank = bank or AdapterBank(module)
        self.adapter = adapter

    # ---- running

    def run(
        self, batch: Batch, readers: Mapping[Site, Reader] | None = None, *, with_logits: bool = False
    ) -> Float[Tensor, "batch token vocab"] | None:
        readers = dict(readers or {})
        if not readers and not with_logits:
            raise InputError("run was asked for nothing; pass readers, or with_logits=True")
        with self.bank.selected(self.adapter), torch.no_grad(), ExitStack() as stack:
            fired = self._hook(stack, batch, readers, stop_early=not with_logits)
            inputs = {"input_ids": batch.ids, "attention_mask": batch.mask.long(), "use_cache": False}
            if batch.side == "left":
                inputs["position_ids"] = (batch.mask.long().cumsum(-1) - 1).clamp(min=0)
            logits = None
            try:
                if with_logits:
                    logits = self.module(**inputs).logits
                else:
                    self.architecture.module(self.module, self.architecture.decoder)(**inputs)
            except _Stop:
                pass
            self._check_fired(fired)
        return logits

    def _generate(self, batch: Batch, max_new_tokens: int, processor: Callable[[Tensor, Tensor], Tensor] | None) -> Tensor:
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=self.pad_id,
            eos_token_id=sorted(self._end_ids) or None,
            use_cache=True,
        )
        own = self.module.generation_config
        processors = LogitsProcessorList([_Processor(processor)] if processor else [])
        with self.bank.selected(self.adapter), torch.no_grad(), ExitStack() as stack:
            # What the checkpoint's own file asks for (a repetition penalty, suppressed tokens) would fill in unset options.
            self.module.generation_config = GenerationConfig()
            stack.callback(setattr, self.module, "generation_config", own)
            fired = self._hook(stack, batch, {}, stop_early=False)
            out = self.module.generate(  # type: ignore[operator]
                input_ids=batch.ids,
                attention_mask=batch.mask.long(),
                generation_config=config,
                logits_processor=processors,
            )
            self._check_fired(fired)
        return out[:, batch.ids.shape[1] :]

    @property
    def _end_ids(self) -> set[int]:
        own = getattr(getattr(self.module, "generation_config", None), "eos_token_id", None)
        return (set(own if isinstance(own, list) else [own]) | {self.tokenizer.eos_token_id}) - {None}

    @property
    def stop_ids(self) -> set[int]:
        return super().stop_ids | self._end_ids

    @property
    def vocab_size(self) -> int:
        return int(self.module.get_output_embeddings().weight.shape[0])  # type: ignore[operator]

    def unembedding(self) -> Float[Tensor, "vocab d_model"]:
        return self.module.get_output_embeddings().weight.detach().cpu()  # type: ignore[operator]

    # ---- hooks

    def _hook(
        self, stack: ExitStack, batch: Batch, readers: Mapping[Site, Reader], *, stop_early: bool
    ) -> dict[Site, bool]:
        """Register a hook for each read or edited site. All sites are resolved before the first hook is set."""
        edits = self.edits_by_site()
        unknown = [site for site in readers if site not in self.sites]
        if unknown:
            raise InputError(f"site {unknown[0]} does not exist in {self.name!r}, which has {self.n_layers} blocks")
        wanted = sorted({*readers, *edits}, key=lambda site: site.order)
        if stop_early:
            deepest = max(readers, key=lambda site: site.order)
            wanted = [site for site in wanted if site.order <= deepest.order]
        modules = [self._module_of(site) for site in wanted]
        fired = dict.fromkeys(wanted, False)
        masks = {edit.positions: batch.scope_mask(edit.positions) for edit in self.interventions}

        def on_stream(site: Site, stream: Tensor) -> Tensor:
            first = not fired[site]
            fired[site] = True
            for edit in edits.get(site, ()):
                stream = edit.apply(stream, _mask_now(edit, masks[edit.positions], stream, first))
            if site in readers:
                readers[site](stream)
            if stop_early and site == wanted[-1]:
                raise _Stop
            return stream

        for site, (module, before) in zip(wanted, modules, strict=True):
            edit_here = partial(on_stream, site)
            if before:
                handle = module.register_forward_pre_hook(_before(edit_here), with_kwargs=True)
            else:
                handle = module.register_forward_hook(_after(edit_here))
            stack.callback(handle.remove)
        return fired

    def _module_of(self, site: Site) -> tuple[nn.Module, bool]:
        """The module to hook, and whether the site is its input."""
        found = self.architecture
        if site.layer is None:
            return found.module(self.module, found.final_norm), False
        block = found.module(self.module, found.layers)[site.layer]
        if site.kind == "resid_pre":
            return block, True
        if site.kind == "resid_post":
            return block, False
        if site.kind == "resid_mid":
            return found.module(block, found.mid_norm), True
        return found.module(block, found.attn_out if site.kind == "attn_out" else found.mlp_out), False

    def _check_fired(self, fired: Mapping[Site, bool]) -> None:
        silent = [str(site) for site, reached in fired.items() if not reached]
        if silent:
            raise StateError(f"hooks at {', '.join(silent)} of {self.name!r} never fired; the model does not run these modules")


def _mask_now(edit: Intervention, mask: Tensor, stream: Tensor, first: bool) -> Tensor:
    """The mask for this pass: as planned in the first one; later passes of a generation hold new tokens only."""
    if first:
        return mask
    return torch.full(stream.shape[:2], edit.positions != "prompt", dtype=torch.bool, device=stream.device)


def _after(edit: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (edit(output[0]), *output[1:])
        return edit(output)

    return hook


def _before(edit: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}

    return hook


@contextmanager
def no_hooks_left(module: nn.Module) -> Iterator[None]:
    """Raise `StateError` if the block leaves a forward hook on `module` that was not there before; used by the tests."""
    before = _count_hooks(module)
    yield
    after = _count_hooks(module)
    if after != before:
        raise StateError(f"{after - before} hooks were left on the model")


def _count_hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())
