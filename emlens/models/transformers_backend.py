"""The reference backend: plain hooks on the modules of a Hugging Face model.

`output_hidden_states` is never used.
Hooks are registered through an `ExitStack` for one forward pass and removed at its end, whatever
happens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import signature
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from emlens.data.rendering import Rendered
from emlens.foundation.errors import StateError
from emlens.foundation.intervention import PaddedRows
from emlens.foundation.sites import Site
from emlens.models.batch_decoding import decode_again
from emlens.models.batches import Batch
from emlens.models.block_outputs import stream_of, with_stream
from emlens.models.checkpoint import Call, CheckpointModel, without_own_options
from emlens.models.counted_logits import only_counted
from emlens.models.decoding import Decoding, decode
from emlens.models.likelihoods import AllLogits
from emlens.models.lower_blocks import lower_blocks_left_out
from emlens.models.pass_counts import note_pass, note_sampling
from emlens.models.passes import Pass, Reader, check_readers
from emlens.models.sampling import Generated, RowSampler
from emlens.models.shared_passes import all_logits_of_parts, packed_inputs, read_shared, run_rest
from emlens.models.stops import Ends


class _Stop(Exception):
    """Ends a forward pass after the deepest site."""


class TransformersModel(CheckpointModel):
    """A `HookedModel` by forward hooks: the least overhead, and the reference of other backends."""

    backend = "transformers"
    has_row_cache = True

    def _call(self, what: Call, inputs: Mapping[str, Any], passing: Pass) -> Any:
        with ExitStack() as stack:
            # Hooks of one module run in the order of registration: sites come in the order in which
            # a pass reaches them.
            for site in passing.sites:
                path, is_input = self._place(site)
                module = self.module.get_submodule(path)
                edit = partial(_at_site, passing, site)
                if is_input:
                    handle = module.register_forward_pre_hook(_on_input(edit), with_kwargs=True)
                else:
                    handle = module.register_forward_hook(_on_output(edit))
                stack.callback(handle.remove)
            if what == "generate":
                without_own_options(stack, self.module)
                return self.module.generate(**inputs)  # type: ignore[operator]
            module = self.module
            if what == "decoder":
                module = module.get_submodule(self.architecture.decoder)
            try:
                return module(**inputs)
            except _Stop:
                return None

    @property
    def no_sharing(self) -> str | None:
        if self.way_to_generate != "rows":
            return "what it keeps of a row is more than keys and values"
        return None

    def why_not_packed(self, longest: int) -> str | None:
        from emlens.models.continuation_tree import why_no_masks

        return why_no_masks(self, longest)

    def run(
        self,
        batch: Batch,
        readers: Mapping[Site, Reader] | None = None,
        *,
        with_logits: bool = False,
    ) -> Float[Tensor, "batch token vocab"] | None:
        if not batch.shared or with_logits or not readers or self.no_sharing is not None:
            return super().run(batch, readers, with_logits=with_logits)
        check_readers(readers, self.sites, self.name, self.n_layers, self.why_missing)
        read_shared(self, batch, readers)
        return None

    def logits_at(
        self, batch: Batch, counted: Bool[Tensor, "batch token"]
    ) -> Float[Tensor, "counted vocab"]:
        if not batch.shared or self.no_sharing is not None:
            inputs, rows = self._inputs(batch), batch.padded_rows()
            if batch.packing is not None:
                inputs |= packed_inputs(batch, batch.packing, self.dtype)
                rows = batch.packing.rows(0)
            padded = batch.ids.numel()
            note_pass(int(batch.mask.sum()), padded, int(counted.sum()))
            return self._counted(rows, inputs, counted)
        if bool(counted[:, : batch.shared].any()):
            raise StateError("logits were asked for at tokens that are run once for all rows")
        rest = counted[:, batch.shared :]
        return run_rest(
            self, batch, int(rest.sum()), lambda rows, inputs: self._counted(rows, inputs, rest)
        )

    def all_logits(self, batch: Batch) -> AllLogits:
        if not batch.shared or self.no_sharing is not None:
            return super().all_logits(batch)

        def call(rows: PaddedRows, inputs: Mapping[str, Any]) -> Tensor:
            logits: Tensor = self._called("model", inputs, self._pass(rows, {})).logits
            return logits

        return all_logits_of_parts(self, batch, call)

    def _counted(
        self, rows: PaddedRows, inputs: Mapping[str, Any], counted: Bool[Tensor, "batch token"]
    ) -> Float[Tensor, "counted vocab"]:
        # inside the adapter's block, since other threads run this output layer too
        with ExitStack() as stack:
            stack.enter_context(self.bank.selected(self.adapter))
            selected = stack.enter_context(only_counted(self.module, counted))
            stack.enter_context(lower_blocks_left_out(self, inputs))
            output = self._called("model", inputs, self._pass(rows, {}))
        return selected.of(output.logits)

    def decode(
        self,
        rows: Sequence[Rendered],
        sampler: RowSampler,
        max_new_tokens: int,
        slots: int,
        ends: Ends,
    ) -> Iterator[list[Generated]]:
        way = self.way_to_generate
        if way == "batches":
            return super().decode(rows, sampler, max_new_tokens, slots, ends)
        options: dict[str, Any] = {"use_cache": way == "rows"}
        # logits of the last token alone, where the architecture can leave out the others
        if "logits_to_keep" in signature(self.module.forward).parameters:
            options["logits_to_keep"] = 1

        def forward(rows: PaddedRows, inputs: Mapping[str, Any]) -> Tensor:
            # one new token for each row, or prompts with their mask
            tokens = inputs["input_ids"].numel()
            if inputs["input_ids"].shape == inputs["attention_mask"].shape:
                tokens = int(inputs["attention_mask"].sum())
            note_sampling(tokens)
            passing = self._pass(rows, {})
            output = self._called("model", {**inputs, **options}, passing)
            return output.logits[:, -1]

        setting = Decoding(
            forward,
            sampler,
            max_new_tokens,
            stops=self.stops.ids,
            ends=ends,
            pad_id=self.pad_id,
            device=self.device,
            by_prompt=any(intervention.by_prompt for intervention in self.interventions),
            threshold=self.threshold,
        )
        if way == "again":
            return decode_again(setting, rows, slots)
        return decode(setting, rows, slots)


def _at_site(passing: Pass, site: Site, stream: Tensor) -> Tensor:
    value = passing.at(site, stream)
    if passing.ends_at(site):
        raise _Stop
    return value


def _on_output(edit: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        return with_stream(output, edit(stream_of(output)))

    return hook


def _on_input(edit: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # some architectures pass the stream by position, others by name
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        name = "hidden_states"
        if name not in kwargs:
            name = next(key for key, value in kwargs.items() if isinstance(value, Tensor))
        return args, {**kwargs, name: edit(kwargs[name])}

    return hook


@contextmanager
def no_hooks_left(module: nn.Module) -> Iterator[None]:
    """Raise `StateError` if the block leaves a new forward hook on `module`; used by the tests."""
    before = _count_hooks(module)
    yield
    after = _count_hooks(module)
    if after != before:
        raise StateError(f"{after - before} hooks were left on the model")


def _count_hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())
