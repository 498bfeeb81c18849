"""The reference backend: plain hooks on the modules of a Hugging Face model.

A block's output may be a bare tensor or a tuple whose first entry is the stream; only tuples are
unwrapped (indexing a tensor would silently take batch row 0). `output_hidden_states` is never used.
Hooks are registered through an `ExitStack` for one forward pass and removed at its end, whatever
happens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from emlens.data.rendering import Rendered
from emlens.foundation.errors import StateError
from emlens.foundation.intervention import PaddedRows
from emlens.foundation.sites import Site
from emlens.models.checkpoint import Call, CheckpointModel, without_own_options
from emlens.models.decoding import decode
from emlens.models.passes import Pass
from emlens.models.sampling import Generated, RowSampler


class _Stop(Exception):
    """Ends a forward pass after the deepest wanted site."""


class TransformersModel(CheckpointModel):
    """A `HookedModel` by forward hooks. The least overhead, and what the other backends are
    measured against.
    """

    backend = "transformers"

    def _call(self, what: Call, inputs: Mapping[str, Any], passing: Pass) -> Any:
        places = [(site, *self._place(site)) for site in passing.sites]
        with ExitStack() as stack:
            for site, path, before in places:
                module = self.module.get_submodule(path)
                edit = partial(_stopping, passing, site)
                if before:
                    handle = module.register_forward_pre_hook(_before(edit), with_kwargs=True)
                else:
                    handle = module.register_forward_hook(_after(edit))
                stack.callback(handle.remove)
            if what == "generate":
                without_own_options(stack, self.module)
                return self.module.generate(**inputs)  # type: ignore[operator]
            run = (
                self.module
                if what == "model"
                else self.module.get_submodule(self.architecture.decoder)
            )
            try:
                return run(**inputs)
            except _Stop:
                return None

    def _decode(
        self, rows: Sequence[Rendered], sampler: RowSampler, max_new_tokens: int, slots: int
    ) -> Iterator[list[Generated]]:
        last_only = (
            {"logits_to_keep": 1}
            if "logits_to_keep" in signature(self.module.forward).parameters
            else {}
        )

        def forward(rows: PaddedRows, inputs: Mapping[str, Any]) -> Tensor:
            with self.bank.selected(self.adapter), torch.no_grad():
                passing = self._pass(rows, {})
                output = self._call("model", {**inputs, **last_only, "use_cache": True}, passing)
                passing.check_fired(self.name)
            return output.logits[:, -1]

        return decode(
            forward,
            rows,
            sampler,
            max_new_tokens=max_new_tokens,
            slots=slots,
            stops=self.stop_ids,
            pad_id=self.pad_id,
            device=self.device,
            by_prompt=any(intervention.by_prompt for intervention in self.interventions),
        )


def _stopping(passing: Pass, site: Site, stream: Tensor) -> Tensor:
    value = passing.at(site, stream)
    if passing.ends_at(site):
        raise _Stop
    return value


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
    """Raise `StateError` if the block leaves a forward hook on `module` that was not there before;
    used by the tests.
    """
    before = _count_hooks(module)
    yield
    after = _count_hooks(module)
    if after != before:
        raise StateError(f"{after - before} hooks were left on the model")


def _count_hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())
