"""`HookedModel`: one interface to a causal language model, whatever backend runs it.

A backend supplies two things: run a padded batch while reading and editing sites, and generate.
Everything a user calls (logits, likelihoods, generation, interventions) is built on these here, so
that it is the same on every backend. Hooks exist only while a forward pass runs; between calls no
model carries one.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from emlens.data.chat_text import ChatFormat
from emlens.data.encoding import text_for_words
from emlens.data.prompt_inputs import PromptsLike, as_prompts, warn_of_bare_texts
from emlens.data.prompts import Prompt
from emlens.data.rendering import Rendered, chat_format, render
from emlens.data.templates import template_of
from emlens.foundation.errors import InputError, StateError
from emlens.foundation.intervention import Intervention
from emlens.foundation.notebooks import as_table
from emlens.foundation.sites import SITE_KINDS, Site
from emlens.models.batches import Batch, pad, plan_batches
from emlens.models.edit_blocks import EditBlocks, SiteEdit, resolved
from emlens.models.finite import refuse_not_finite
from emlens.models.likelihoods import (
    AllLogits,
    equal_choices,
    last_logits,
    logprobs_by_token,
    logprobs_in_trees,
    packed_logprobs,
    response_start,
    summed_logprobs,
    through_response,
    with_continuation,
)
from emlens.models.packing import packed_batches
from emlens.models.pass_memory import LOGITS
from emlens.models.passes import Reader
from emlens.models.prefix_plan import plan_shared_batches
from emlens.models.remembered_rows import RememberedRows
from emlens.models.shared_passes import keeping_beginnings
from emlens.models.stops import Ends, Stops, template_stops
from emlens.models.token_trees import tree_batches

if TYPE_CHECKING:
    from emlens.models.sampling import Generated, RowSampler

DEFAULT_BATCH_TOKENS = 8192
GENERATION_TOKENS = 32_768
"""Tokens whose keys and values are held while answers are generated; 6 GiB for a 14B model in 16
bits. A model whose keys and values are larger gets fewer (`pass_memory.CACHE_BYTES`).
"""


class HookedModel(ABC):
    """A causal language model whose residual stream can be read and edited at named sites.

    A copy (`copy.copy`) shares the weights and has interventions of its own.

    Args:
        tokenizer: of transformers.
        n_layers: number of blocks.
        d_model: width of the stream.
        max_length: tokens of a row at most; None: no limit known.
        chat_template: the template, or None where the model has none.
    """

    backend: str
    site_kinds: tuple[str, ...] = SITE_KINDS
    """Kinds of site that exist in this model (parallel blocks have no `resid_mid`)."""
    why_missing: Mapping[str, str] = MappingProxyType({})
    """Kinds of site that do not exist in this model → why, and what to read instead."""
    pads_while_generating = True
    """Whether rows of other lengths may share a batch that is generated."""
    threshold: int | None = None
    """A row of more tokens is another function of its tokens; rows on either side run apart."""

    @property
    def no_sharing(self) -> str | None:
        """Why this model cannot run the first tokens that rows share once; None: it can."""
        return f"backend {self.backend!r} runs whole rows"

    def __init__(
        self,
        *,
        name: str,
        tokenizer: Any,
        n_layers: int,
        d_model: int,
        device: torch.device,
        max_length: int | None,
        chat_template: str | None,
        provenance: Mapping[str, Any],
    ):
        self.name = name
        self.tokenizer = tokenizer
        self.n_layers = n_layers
        self.d_model = d_model
        self.device = device
        self.max_length = max_length
        self.chat_template = template_of(tokenizer, chat_template)
        self.provenance: dict[str, Any] = dict(provenance)
        self.edit_blocks = EditBlocks()
        self._remembered: dict[str | None, RememberedRows] = {}
        self._stops: dict[str | None, Stops] = {}

    def __copy__(self) -> Self:
        """A copy on the same weights, on which no edit is active."""
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        copied.edit_blocks = EditBlocks()
        return copied

    def speak_by(self, tokenizer: Any, chat_template: str | None) -> None:
        """Take another tokenizer and chat template for this model alone, not for its copies."""
        self.tokenizer = tokenizer
        self.chat_template = template_of(tokenizer, chat_template)
        self._remembered = {}
        self._stops = {}

    def __repr__(self) -> str:
        return (
            f"HookedModel({self.name!r}, backend={self.backend!r}, n_layers={self.n_layers},"
            f" d_model={self.d_model})"
        )

    def _repr_html_(self) -> str:
        facts: dict[str, object] = {
            "backend": self.backend,
            "blocks": self.n_layers,
            "d_model": self.d_model,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device,
            "sites": ", ".join(self.site_kinds),
            "chat template": self.chat_template is not None,
        }
        if self.edit_blocks.active:
            facts["edits now"] = len(self.edit_blocks.active)
        return as_table(f"HookedModel {self.name}", facts)

    @property
    def sites(self) -> list[Site]:
        """Every site of the model, in the order in which a forward pass reaches them."""
        kinds = [kind for kind in self.site_kinds if kind != "final_norm"]
        sites = [Site(kind, layer) for layer in range(self.n_layers) for kind in kinds]
        if "final_norm" in self.site_kinds:
            sites.append(Site("final_norm"))
        return sites

    @abstractmethod
    def run(
        self,
        batch: Batch,
        readers: Mapping[Site, Reader] | None = None,
        *,
        with_logits: bool = False,
    ) -> Float[Tensor, "batch token vocab"] | None:
        """One forward pass under the active interventions.

        Args:
            readers: called with the activation at their site, after the interventions there;
                without `with_logits` the pass stops after the deepest of them.
            with_logits: return logits at every token (rows of padding hold no meaning).

        Raises:
            StateError: a site was never reached.
        """

    @abstractmethod
    def _generate(
        self,
        batch: Batch,
        max_new_tokens: int,
        processor: Callable[[Tensor, Tensor], Tensor] | None,
    ) -> Tensor:
        """New token ids (batch, new tokens) of a left-padded batch; `processor(ids, scores)` edits
        next-token scores.
        """

    @property
    def dtype(self) -> torch.dtype:
        """Of the residual stream, as the loader recorded it; float32 where it recorded none."""
        dtype = getattr(torch, str(self.provenance.get("dtype")), None)
        if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
            return dtype
        return torch.float32

    def require_computable_in(self, dtype: torch.dtype | None) -> None:
        """Refuse a dtype that passes cannot run in.

        Raises:
            InputError: this is one.
        """
        if dtype not in (None, self.dtype):
            raise InputError(
                f"compute_dtype={dtype} is not that of {self.name!r} ({self.dtype}),"
                f" and backend {self.backend!r} cannot change it"
            )

    @contextmanager
    def computing_in(self, dtype: torch.dtype | None) -> Iterator[None]:
        """Run passes in `dtype` inside the block (`emlens.models.widening`); None: as always."""
        self.require_computable_in(dtype)
        yield

    def weights_fingerprint(self) -> str | None:
        """A hash of the weights as they are in memory now (`emlens.models.live_weights`); None
        where a backend has none here.
        """
        return None

    def weight_versions(self) -> tuple[tuple[int, int], ...]:
        """Another value once torch saw a weight change; costs next to nothing."""
        return ()

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Rows of the output matrix (the padded vocabulary)."""

    @abstractmethod
    def unembedding(self) -> Float[Tensor, "vocab d_model"]:
        """The output matrix, on the CPU."""

    # ---- interventions

    @property
    def interventions(self) -> tuple[Intervention, ...]:
        """Those active in this context, outermost first; at one site they apply in this order."""
        edits = self.edit_blocks.active
        return tuple(edit.intervention for edit in edits if isinstance(edit, SiteEdit))

    def edit_records(self) -> list[dict[str, Any]]:
        """What provenance says of everything that changes this model's passes now.

        Interventions in order of application, and adapters that are applied in memory.
        """
        return [edit.describe() for edit in self.edit_blocks.active]

    @contextmanager
    def intervene(
        self, interventions: Intervention | Iterable[Intervention]
    ) -> Iterator["HookedModel"]:
        """Edit activations in every forward pass inside the block, by one intervention or several.

        Undone at the end of the block, also after an error. Threads and asyncio tasks do not see
        each other's blocks, and blocks may end in any order. A plain generator shares its caller's
        context: where it yields inside a block, its caller's passes run under the block too.

        Nested blocks compose: an outer block's interventions apply first, those of one block in the
        order of the list.

        Raises:
            InputError: neither an intervention nor a list of them, or one that matches no site of
                this model or has another width (checked before any pass).
        """
        with self.edit_blocks.opened(resolved(interventions, self.sites, self.d_model)):
            yield self

    @contextmanager
    def edited_like(self, other: "HookedModel") -> Iterator["HookedModel"]:
        """Run this copy of a model under the edits that are active on `other`."""
        with self.edit_blocks.opened(other.edit_blocks.active):
            yield self

    def edits_by_site(self) -> dict[Site, list[Intervention]]:
        """The active interventions at each site they act on, in order of application."""
        edits: dict[Site, list[Intervention]] = {}
        for edit in self.edit_blocks.active:
            if isinstance(edit, SiteEdit):
                for site in edit.sites:
                    edits.setdefault(site, []).append(edit.intervention)
        return edits

    # ---- text in

    def render(self, prompts: Iterable[Prompt], *, remember: bool = True) -> list[Rendered]:
        """Token ids of prompts (and kept responses) as this model reads them.

        Remembered, since a study renders the same prompts often.
        """
        prompts = list(prompts)
        all_prompts = all(isinstance(prompt, Prompt) for prompt in prompts)
        if not remember or not prompts or not all_prompts:
            return self._render(prompts)  # which refuses what is not a prompt
        remembered = self._remembered.setdefault(self.chat_template, RememberedRows())
        return remembered.rows(prompts, self._render)

    def _asked(self, prompts: PromptsLike) -> list[Prompt]:
        """The prompts of a call, whatever they came as; prompts themselves stay as they are."""
        if isinstance(prompts, list) and all(isinstance(prompt, Prompt) for prompt in prompts):
            return prompts
        return list(as_prompts(prompts))

    def _render(self, prompts: list[Prompt]) -> list[Rendered]:
        warn_of_bare_texts(prompts, self.name, self.chat_template)
        return render(
            prompts, self.tokenizer, chat_template=self.chat_template, max_length=self.max_length
        )

    def rendered_texts(self, prompts: Iterable[Prompt]) -> dict[str, str]:
        """Id → all that the model reads of a prompt: system message, template and text; special
        tokens stand apart from words.

        What a text baseline of a forecast has to be given.
        """
        texts = {}
        for row in self.render(prompts):
            texts[row.id] = text_for_words(self.tokenizer, row.ids[: row.prompt_end])
        return texts

    @property
    def chat_format(self) -> ChatFormat | None:
        """What the model's chat template does; None without one."""
        return chat_format(self.tokenizer, self.chat_template)

    @property
    def opens_thought(self) -> bool:
        """Whether the chat template's opening of an answer opens a thought."""
        return self.chat_format is not None and self.chat_format.opens_thought

    @property
    def pad_id(self) -> int:
        for name in ("pad_token_id", "eos_token_id"):
            value = getattr(self.tokenizer, name, None)
            if value is not None:
                return int(value)
        return 0

    @property
    def stops(self) -> Stops:
        """What ends an answer: end of sequence and padding of the tokenizer, and the end of turn of
        the chat template.

        A backend adds the tokens of the model's own generation configuration.
        """
        if self.chat_template not in self._stops:
            self._stops[self.chat_template] = template_stops(self.tokenizer, self.chat_template)
        of_template = self._stops[self.chat_template]
        own = {self.tokenizer.eos_token_id, self.tokenizer.pad_token_id} - {None}
        return Stops(of_template.ids | own, of_template.texts)

    def why_not_packed(self, longest: int) -> str | None:
        """Why no row of a batch can hold several prompts; None where it can.

        Args:
            longest: tokens of a prompt at most.
        """
        return f"backend {self.backend!r} runs whole rows"

    def batches(
        self,
        rows: Sequence[Rendered],
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
        side: Literal["left", "right"] = "right",
    ) -> Iterator[Batch]:
        """Padded batches of rows, longest first."""
        lengths = [len(row.ids) for row in rows]
        for index in plan_batches(lengths, batch_tokens, self.threshold):
            yield pad([rows[i] for i in index], index, self.pad_id, side, self.device)

    def shared_batches(
        self,
        rows: Sequence[Rendered],
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
        limits: Sequence[int] | None = None,
    ) -> Iterator[Batch]:
        """`batches` in which first tokens that rows share are run once, where the model can.

        Args:
            limits: first tokens that each row may share at most; None: all but its last.
        """
        if self.no_sharing is not None:
            yield from self.batches(rows, batch_tokens)
            return
        plan = plan_shared_batches([row.ids for row in rows], batch_tokens, self.threshold, limits)
        for batch in plan:
            batch_rows = [rows[i] for i in batch.rows]
            yield pad(batch_rows, batch.rows, self.pad_id, "right", self.device, batch.shared)

    # ---- what users call

    @torch.no_grad()
    def logits(
        self, prompts: PromptsLike, *, batch_tokens: int = DEFAULT_BATCH_TOKENS
    ) -> Float[Tensor, "prompt vocab"]:
        """Next-token logits after the last token of each row; float32, CPU.

        A row is a prompt, followed by its response where it keeps one.

        Args:
            prompts: whatever `capture` takes: prompts, questions, strings, conversations, a data
                frame.

        Raises:
            NotFiniteError: NaN or infinite values; here and in every call below it names the prompt
                and the first site.
        """
        rows = self.render(self._asked(prompts))
        batches = self.shared_batches(rows, self.logit_tokens(batch_tokens))
        logits_of_row = last_logits(batches, self.logits_at, self.refuse_not_finite)
        return torch.stack([logits_of_row[i] for i in range(len(rows))])

    @torch.no_grad()
    def token_logprobs(
        self, prompts: Iterable[Prompt], *, batch_tokens: int = DEFAULT_BATCH_TOKENS
    ) -> list[Float[Tensor, "token vocab"]]:
        """Log-probabilities (nats) over the next token after every token of each row.

        Float32, CPU, one tensor per prompt. First tokens that rows share are run once.
        """
        rows = self.render(prompts)
        batch_tokens = self.logit_tokens(batch_tokens)
        limits = [len(row.ids) for row in rows]
        trees = tree_batches(self, rows, batch_tokens, limits, packed=False)
        if trees is not None:
            logprobs_of_row = logprobs_in_trees(trees, self.logits_at, self.refuse_not_finite)
        else:
            batches = self.shared_batches(rows, batch_tokens)
            logprobs_of_row = logprobs_by_token(batches, self.all_logits, self.refuse_not_finite)
        return [logprobs_of_row[i] for i in range(len(rows))]

    @torch.no_grad()
    def sequence_logprob(
        self,
        prompts: Iterable[Prompt],
        continuations: Sequence[str] | Sequence[Sequence[str]],
        *,
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
    ) -> Float[Tensor, " prompt"] | Float[Tensor, "prompt choice"]:
        """Summed log-probability (nats) of a continuation after each prompt; float64, CPU.

        Args:
            continuations: one string per prompt (result: one value each), or equally many strings
                per prompt (result: prompt x choice). Each is tokenised by itself, without special
                tokens, and appended to the rendered prompt's ids.

        Raises:
            InputError: lengths that do not fit, or a continuation without tokens.
        """
        rows = self.render(prompts)
        choices = equal_choices(continuations, len(rows))
        longer: list[Rendered] = []
        starts: list[int] = []
        for row, texts in zip(rows, choices, strict=True):
            for text in texts:
                longer.append(with_continuation(row, text, self.tokenizer, self.max_length))
                starts.append(len(row.ids))
        sums = self._summed_logprobs(longer, starts, batch_tokens)
        table = sums.view(len(rows), -1)
        single = all(isinstance(item, str) for item in continuations)
        return table[:, 0] if single else table

    @torch.no_grad()
    def response_logprob(
        self, prompts: Iterable[Prompt], *, batch_tokens: int = DEFAULT_BATCH_TOKENS
    ) -> Float[Tensor, " prompt"]:
        """Summed log-probability (nats) of the response that each prompt keeps; float64, CPU.

        The tokens that count are those of the position `mean_response`: the answer itself, as the
        chat template writes it, without a thought and without the end of the turn.

        Raises:
            InputError: a prompt without a response, or whose response has no token.
        """
        rows = self.render(prompts)
        starts = [response_start(row) for row in rows]
        return self._summed_logprobs([through_response(row) for row in rows], starts, batch_tokens)

    def _summed_logprobs(
        self, rows: Sequence[Rendered], starts: Sequence[int], batch_tokens: int
    ) -> Float[Tensor, " row"]:
        """Log-probability of each row's tokens from its start on; prompts that rows share are run
        once.
        """
        # the token before the first that counts gives its probability, so it is never shared
        limits = [start - 1 for start in starts]
        batch_tokens = self.logit_tokens(batch_tokens)
        packed = tree_batches(self, rows, batch_tokens, limits)
        if packed is None and rows and self.why_not_packed(max(len(r.ids) for r in rows)) is None:
            packed = packed_batches(
                rows, batch_tokens, limits, self.interventions, self.pad_id, self.device
            )
        if packed is not None:
            with keeping_beginnings():
                return packed_logprobs(packed, rows, starts, self.logits_at, self.refuse_not_finite)
        batches = self.shared_batches(rows, batch_tokens, limits)
        return summed_logprobs(batches, starts, self.logits_at, self.refuse_not_finite)

    def generate(
        self,
        prompts: PromptsLike,
        *,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        seed: int = 0,
        batch_tokens: int = GENERATION_TOKENS,
    ) -> list[str]:
        """One sampled answer per prompt (greedy at `temperature=0`).

        Each row draws its own random numbers, seeded by `seed` and the prompt's id, so that its
        answer does not depend on the other rows of its batch.

        Args:
            prompts: whatever `capture` takes: prompts, questions, strings, conversations, a data
                frame.
            batch_tokens: tokens, of prompts and answers together, in the model at once at most.

        Raises:
            InputError: `max_new_tokens` below 1, a negative temperature, or a row that would
                outgrow the context.
        """
        chunks = self.generate_each(
            self._asked(prompts),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            batch_tokens=batch_tokens,
        )
        texts = {index: text for chunk in chunks for index, text, _ in chunk}
        return [texts[i] for i in range(len(texts))]

    def generate_each(
        self,
        prompts: Iterable[Prompt],
        *,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        seed: int = 0,
        batch_tokens: int = GENERATION_TOKENS,
    ) -> Iterator[list[tuple[int, str, str]]]:
        """`generate`, a few at a time as answers end.

        Yields (number of the prompt, text, `"stop"` or `"length"`). All of it runs under the
        interventions that were active at the call, whenever the next ones are taken.
        """
        from emlens.models.answering import answers_as_they_end

        return answers_as_they_end(
            self, list(prompts), max_new_tokens, temperature, seed, batch_tokens
        )

    def decode(
        self,
        rows: Sequence[Rendered],
        sampler: "RowSampler",
        max_new_tokens: int,
        slots: int,
        ends: Ends,
    ) -> "Iterator[list[Generated]]":
        """Finished rows, a few at a time, with at most `slots` rows in the model.

        Here batch by batch through `_generate`; a backend may do better.
        """
        from emlens.models.batch_decoding import decode_in_batches

        return decode_in_batches(self, rows, sampler, max_new_tokens, slots, ends)

    def logit_tokens(self, batch_tokens: int) -> int:
        """Tokens of a batch whose logits may all be in memory."""
        return max(1, min(batch_tokens, LOGITS // max(1, self.vocab_size)))

    def refuse_not_finite(
        self, row: Rendered, seen_at: str, *, kept: torch.dtype | None = None
    ) -> NoReturn:
        """Raise the error that says where this row first becomes NaN or infinite
        (`emlens.models.finite`).
        """
        refuse_not_finite(self, row, seen_at, kept=kept)

    def logits_at(
        self, batch: Batch, counted: Bool[Tensor, "batch token"]
    ) -> Float[Tensor, "counted vocab"]:
        """Logits at the counted tokens of a batch, row by row; a backend may compute no others.

        Args:
            counted: no shared token among them.
        """
        logits = self._logits(batch)
        return logits[counted.to(logits.device)]

    def all_logits(self, batch: Batch) -> AllLogits:
        """Logits at every token of a batch; a backend may run shared tokens once."""
        return AllLogits(self._logits(batch))

    def _logits(self, batch: Batch) -> Tensor:
        logits = self.run(batch, with_logits=True)
        if logits is None:
            raise StateError(f"backend {self.backend!r} returned no logits")
        return logits
