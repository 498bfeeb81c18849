"""Losses, `(model, batch) -> scalar` that `fit` minimises, and objectives: records that change what
a run minimises or reads.

A batch is a mapping of tensors; `labels` are token ids with `IGNORED` where a token does not count,
and every other entry goes to the model's forward as it is. An objective is of one of four kinds: it
changes the chats, mixes in rows, adds a penalty, or edits the stream while the answers are learned.
They compose in any number; nothing of them is in the saved model.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from emlens.data.prompts import PromptSet
from emlens.foundation.errors import InputError
from emlens.models.counted_logits import counted_logits
from emlens.training.examples import IGNORED, Example, encode_answers

Loss = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]
SCALES = ("share", "token_ratio", "row_ratio")
"""Entries of a batch that are weights of the part, not inputs of the model."""


def answer_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean negative log-likelihood, in nats per token, of the tokens whose label counts."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    next_labels = labels_of_next_tokens(batch["labels"])
    counted = next_labels != IGNORED
    logits = counted_logits(model, inputs, counted)
    return nn.functional.cross_entropy(logits, next_labels[counted])


def labels_of_next_tokens(labels: Int[Tensor, "row token"]) -> Int[Tensor, "row token"]:
    """At each position the label of the token after it; `IGNORED` after the last."""
    return nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)


def divergence(
    reference: Float[Tensor, "counted vocab"], model: Float[Tensor, "counted vocab"]
) -> Tensor:
    """KL(reference ‖ model) of next-token distributions given by logits, in nats: mean over the
    positions; 0 or more.
    """
    before = reference.log_softmax(-1)
    now = model.log_softmax(-1)
    return (before.exp() * (before - now)).sum(-1).mean()


class NarrowLoss:
    """`answer_loss` plus `weight` · KL(reference ‖ model) on other chats, in nats per answer
    position.

    The reference is the same model with its adapter switched off, so it costs no second copy. The
    batch holds a second set of rows under `kl_input_ids`, `kl_attention_mask` and `kl_labels` (the
    labels only mark the positions).

    Method: the narrow solution of Soligo et al. (2602.07852), with λ per token in nats rather than
    divided by the vocabulary size.

    Raises:
        InputError: the model has no adapter to switch off.
    """

    def __init__(self, weight: float):
        self.weight = weight

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        trained_rows = {name: value for name, value in batch.items() if not name.startswith("kl_")}
        kl_rows = _entries(batch, "kl_")
        counted = labels_of_next_tokens(kl_rows.pop("labels")) != IGNORED
        if not hasattr(model, "disable_adapter"):
            raise InputError(
                f"NarrowLoss needs a model with an adapter; got {type(model).__name__}:"
                " pass a recipe with method='lora'"
            )
        adapted: Any = model
        with torch.no_grad(), adapted.disable_adapter():
            reference = counted_logits(model, kl_rows, counted)
        penalty = divergence(reference, counted_logits(model, kl_rows, counted))
        return answer_loss(model, trained_rows) + self.weight * penalty


def _entries(batch: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries of a batch under a prefix, without it."""
    return {
        name.removeprefix(prefix): value for name, value in batch.items() if name.startswith(prefix)
    }


class Objective(ABC):
    """What a run minimises or reads beside the answers of its data; a frozen record. Subclass one
    of the four below.

    Args:
        kind: its name in the record of a run.
    """

    kind: ClassVar[str]

    @abstractmethod
    def to_record(self) -> dict[str, Any]:
        """JSON-ready: `kind` and everything the run depends on, texts and tensors by their hash."""


class ChatChange(Objective):
    """Trains on other chats than those it is given."""

    @abstractmethod
    def change(self, chats: PromptSet) -> PromptSet:
        """The chats that are trained on."""


class MixedRows(Objective):
    """A share of each batch comes from other chats, with the same loss on their answers."""

    chats: PromptSet
    share: float

    def second_rows(self, tokenizer: Any) -> list[Example]:
        return encode_answers(self.chats, tokenizer)


class Penalty(Objective):
    """A term added to the loss, `weight` times what `measure` gives.

    `chats` are rows of its own, `rows` of them per step; None: it reads the rows that are trained
    on.
    `unit` is what `measure` averages over, answer tokens or rows: a batch that is run in parts
    weighs them by it.
    """

    unit: ClassVar[Literal["token", "row"]]
    chats: PromptSet | None
    rows: int
    weight: float

    def second_rows(self, tokenizer: Any) -> list[Example]:
        if self.chats is None:
            raise InputError(
                f"{self.kind} reads the rows that are trained on; it has none of its own"
            )
        return encode_answers(self.chats, tokenizer)

    @abstractmethod
    def measure(
        self, model: Any, reference: "Reference", inputs: Mapping[str, Tensor], labels: Tensor
    ) -> Tensor:
        """The penalty on rows, averaged over its tokens or rows, with a gradient."""


class StreamEdit(Objective):
    """Edits the stream in the pass that learns the answers, and in no other."""

    @abstractmethod
    def active(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Edits inside, none outside."""


class Reference:
    """The model as it was before the run: its adapter off, or, without one, a frozen copy (a second
    model in memory).
    """

    def __init__(self, model: nn.Module):
        self._copy: nn.Module | None = None
        if not hasattr(model, "disable_adapter"):
            self._copy = copy.deepcopy(model).eval().requires_grad_(False)

    def run(self, model: Any, call: Callable[[Any], Any]) -> Any:
        """`call` on the reference, without gradients; `model` is the module under training."""
        with torch.no_grad():
            if self._copy is not None:
                return call(self._copy)
            with model.disable_adapter():
                return call(model)


def prefix_of(number: int) -> str:
    """Prefix of the entries of a batch that belong to objective `number`."""
    return f"objective{number}_"


class ObjectiveLoss:
    """`loss` under the stream edits, plus every penalty; a penalty joins the log under its kind.

    Args:
        model: the module that is trained, before the first step.
    """

    def __init__(self, loss: Loss, objectives: Sequence[Objective], model: nn.Module):
        self.loss = loss
        self.edits = [objective for objective in objectives if isinstance(objective, StreamEdit)]
        self.penalties = [
            (prefix_of(i), objective)
            for i, objective in enumerate(objectives)
            if isinstance(objective, Penalty)
        ]
        self.reference = Reference(model) if self.penalties else None
        self.last: dict[str, float] = {}

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        trained_rows = {
            name: value
            for name, value in batch.items()
            if not name.startswith("objective") and name not in SCALES
        }
        share = batch.get("share")
        with ExitStack() as stack:
            for edit in self.edits:
                stack.enter_context(edit.active(model))
            total = self.loss(model, trained_rows)
        self._note("answer_loss", total, share)
        for prefix, penalty in self.penalties:
            total = total + self._weighted(prefix, penalty, model, batch, trained_rows)
        return total

    def _weighted(
        self,
        prefix: str,
        penalty: Penalty,
        model: nn.Module,
        batch: Mapping[str, Tensor],
        trained_rows: Mapping[str, Tensor],
    ) -> Tensor:
        """A penalty times its weight, and times its part's share where the batch is a part."""
        if self.reference is None:
            raise InputError("a penalty needs a reference")
        if penalty.chats is None:
            prefix = ""
            inputs = dict(trained_rows)
        else:
            rows = _entries(batch, prefix)
            inputs = {name: value for name, value in rows.items() if name not in SCALES}
        labels = inputs.pop("labels")
        value = penalty.measure(model, self.reference, inputs, labels)
        share = batch.get("share")
        ratio = batch.get(f"{prefix}{penalty.unit}_ratio")
        if share is None or ratio is None:
            self._note(penalty.kind, value, None)
        else:
            self._note(penalty.kind, value, share * ratio)
        return penalty.weight * (value if ratio is None else value * ratio)

    @contextmanager
    def unlogged(self) -> Iterator[None]:
        """Passes inside (SAM's second) leave no trace in the log."""
        before = dict(self.last)
        yield
        self.last = before

    def _note(self, name: str, value: Tensor, share: Tensor | None) -> None:
        weight = 1.0 if share is None else float(share)
        self.last[name] = self.last.get(name, 0.0) + float(value.detach()) * weight

    def values(self, model: nn.Module, step: int) -> Mapping[str, Any]:
        """A training callback: the terms of the step's loss, which then start again from 0."""
        terms, self.last = self.last, {}
        return terms
